"""How far a query reaches from cell to cell: easy queries look at few cells and hard ones at many.

The reach of a cell is the logarithm of its rank among the cells by distance from the query, plus how much farther away
than the nearest it is. Where one cell is much nearer than the others a search ends soon; where many are about as near
it goes on. So the same recall takes a quarter to a third fewer cells than the same number of them for each query.
"""

from __future__ import annotations

import numpy as np

_MOST_CELLS = 1 << 16
_LOG_RANKS = np.log(np.arange(1, _MOST_CELLS + 1, dtype=np.float32))


def of_cells(distances: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Order cells by `distances` (n, c) of queries: their numbers (n, c) int64, nearest first, and the reach of each.

    A `spread` (> 0) farther away than the nearest counts as 2.7 times the rank. The reach (n, c) float32 ascends.
    """
    cells = np.argsort(distances, axis=1)
    reach = np.take_along_axis(distances, cells, axis=1)
    reach -= reach[:, :1].copy()
    reach *= np.float32(1.0 / spread)
    reach += _LOG_RANKS[: reach.shape[1]]
    return cells, reach


def nearest(distances: np.ndarray, spread: float, reach: float) -> np.ndarray:
    """Return the cells within a reach, for each query nearest first, then -1: (n, most of one query) int64."""
    if len(distances) == 1:
        cells, count = nearest_of_one(distances[0], spread, reach)
        return cells[np.newaxis, :count]
    cells, found = of_cells(distances, spread)
    counts = np.maximum(1, np.count_nonzero(found <= reach, axis=1))
    chosen = np.ascontiguousarray(cells[:, : int(counts.max())])
    chosen[np.arange(chosen.shape[1]) >= counts[:, np.newaxis]] = -1
    return chosen


def nearest_of_one(distances: np.ndarray, spread: float, reach: float) -> tuple[np.ndarray, int]:
    """Return all cells of one query by `distances` (c,), nearest first, and how many are within a reach: at least 1."""
    # A search does this each time, with caches that its scan has emptied: as few calls as there may be.
    cells = distances.argsort()
    found = distances[cells]
    found -= found[0]
    found *= np.float32(1.0 / spread)
    found += _LOG_RANKS[: len(found)]
    return cells, max(1, int(found.searchsorted(reach, "right")))


def spread_of(distances: np.ndarray) -> float:
    """Return the spread of the cells seen from usual queries, by their distances (n, c): greater than 0."""
    return max(float(distances.std(axis=1).mean()), float(np.finfo(np.float32).tiny))
