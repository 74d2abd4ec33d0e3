"""The query processor of a single node: answers from one of its shard copies."""

from __future__ import annotations

from vectors.query_processor.reads import LocalReads
from vectors.query_processor.writes import LocalWrites


class LocalQueryProcessor(LocalWrites, LocalReads):
    """One shard copy of this node behind the port; see `OpenCopy` for what it is made with."""
