"""The search index of a segment: coarse cells and 4-bit codes propose rows, numpy scores them exactly.

`build` makes one from the rows of a segment and tunes it, `open_index` maps one from its file. Without faiss, which
scans the codes, nothing is built and nothing opened: segments answer exactly.
"""

from vectors.engine.index.building import BuiltIndex, build, worthwhile
from vectors.engine.index.scanner import available
from vectors.engine.index.segment_index import SegmentIndex, open_index

__all__ = ["BuiltIndex", "SegmentIndex", "available", "build", "open_index", "worthwhile"]
