"""Rows and queries of a measurement, and the oracle that judges what searches found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOP_K = 10

_TIE = 1e-9
_DIRECTIONS, _NOISE = 32, 0.3
_LARGEST_SHARE_OF_QUERIES = 5


class BenchData:
    """Rows (n, d) and queries (q, d), float32, and what a brute-force search finds: the oracle of the recall."""

    def __init__(self, rows: np.ndarray, queries: np.ndarray) -> None:
        self.rows = rows
        self.queries = queries
        norms = np.linalg.norm(rows, axis=1).astype(np.float64)
        self._norms = np.where(norms == 0, 1.0, norms)
        self._worst = np.array([self._tenth_score(query) for query in queries])

    def recall(self, found: Sequence[Sequence[int | str]]) -> float:
        """Return the share of answered ids, over all queries, whose rows are among the truly nearest (ties count)."""
        good = 0
        for ids, query, worst in zip(found, self.queries, self._worst, strict=True):
            good += int(np.count_nonzero(self._scores(query, np.array(ids, dtype=np.int64)) >= worst - _TIE))
        return good / (len(self.queries) * min(TOP_K, len(self.rows)))

    def _tenth_score(self, query: np.ndarray) -> float:
        fast = (self.rows @ query) / self._norms
        # The product in float32 proposes more rows than are needed; float64 decides.
        proposed = np.argpartition(-fast, min(10 * TOP_K, len(fast)) - 1)[: 10 * TOP_K]
        return float(np.sort(self._scores(query, proposed))[::-1][:TOP_K][-1])

    def _scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (self.rows[rows].astype(np.float64) @ query.astype(np.float64)) / self._norms[rows]
        return scores


def held_out(rows: np.ndarray, *, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, queries): some rows, at most a fifth, are taken out to be asked for.

    A row that is there, or one a little moved, has a neighbour nearer than any that a real query has: an index finds
    it with too little effort.
    """
    count = min(queries, max(1, len(rows) // _LARGEST_SHARE_OF_QUERIES))
    if len(rows) <= count:
        return rows, rows
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[np.random.default_rng(seed).choice(len(rows), size=count, replace=False)] = True
    return np.ascontiguousarray(rows[~chosen]), np.ascontiguousarray(rows[chosen])


def random_rows(count: int, dimension: int, *, seed: int = 0) -> np.ndarray:
    """Return rows that vary in 32 directions, and little in the others: (count, dimension) float32.

    Real embeddings are about as hard to search. Noise alone has no near and far, and an index has nothing to go by.
    """
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((_DIRECTIONS, dimension), dtype=np.float32) / np.float32(_DIRECTIONS**0.5)
    rows: np.ndarray = generator.standard_normal((count, _DIRECTIONS), dtype=np.float32) @ directions
    rows += np.float32(_NOISE) * generator.standard_normal((count, dimension), dtype=np.float32)
    return rows
