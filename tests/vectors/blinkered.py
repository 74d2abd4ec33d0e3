"""An index that sees a part of its segment's rows: recall as bad as a test wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from vectors.engine.distances import Query
from vectors.engine.parts import FrozenPart
from vectors.engine.selection import Selection
from vectors.store import recovery


class BlinkeredIndex:
    """Stands for a `SegmentIndex`; of every ten rows it sees the first `sees`."""

    nbytes = 0

    def __init__(self, *, sees: int) -> None:
        self.sees = sees
        self.summary = {"recall": 0.9912, "recall_target": 0.99, "queries": 0}
        self.recalls: set[float] = set()

    def propose(self, query: Query, *, k: int, recall: float, selection: Selection) -> np.ndarray:
        """Return the rows it sees."""
        self.recalls.add(recall)
        return selection.rows[selection.rows % 10 < self.sees]

    def propose_many(
        self, queries: Sequence[Query], *, k: int, recall: float, selection: Selection
    ) -> Sequence[np.ndarray]:
        """Return them for each query."""
        return [self.propose(query, k=k, recall=recall, selection=selection) for query in queries]


@contextmanager
def blinkers_on(patch: pytest.MonkeyPatch, *, sees: int, fewest: int = 1) -> Iterator[BlinkeredIndex]:
    """Give every segment of `fewest` rows or more such an index while the block runs, whoever opens it."""
    index = BlinkeredIndex(sees=sees)
    original = recovery.open_shard

    def open_shard(*args: object, **options: object) -> recovery.OpenShard:
        opened = original(*args, **options)
        for part in opened.parts.values():
            assert isinstance(part, FrozenPart)
            part.index = index if part.rows >= fewest else None
        return opened

    with patch.context() as patched:
        patched.setattr(recovery, "open_shard", open_shard)
        yield index
