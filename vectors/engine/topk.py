"""Top-k by threshold: block maxima give a floor that at least k rows reach, and one pass keeps the rows above it.

Several times cheaper than a partition of all scores, and it keeps every row whose error could still lift it into the k.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

_MIN_BLOCKS = 1024
_ROWS_PER_BLOCK = 8
_FEW_ROWS = 1024
_FEW = 4
"""Rows per answer that are so few that looking for a better floor costs more than their exact scores."""


class Contenders(NamedTuple):
    """The rows (m,) int64 that may be among the k best, and a goodness that k rows are known to reach."""

    rows: np.ndarray
    floor: float


def contenders(goodness: np.ndarray, k: int, error: float | np.ndarray, floor: float = -np.inf) -> Contenders:
    """Return the rows that may be among the k best: m ≥ min(k, finite rows), but for those that `floor` leaves out.

    `goodness` (n,) float; rows at -inf are out. `error`: how far a goodness may be from the truth, for all rows or
    (n,). A row is left out only if k others are better even when they are overrated and it is underrated; `floor` is
    what others, of which nothing is seen here, are known to reach.
    """
    if floor > -np.inf:
        rows = _reaching(goodness, error, floor)
        if len(rows) <= _FEW * k:
            return Contenders(rows, floor)
    worst = goodness - error if isinstance(error, np.ndarray) else goodness
    own = kth_largest(worst, k) - (0.0 if isinstance(error, np.ndarray) else error)
    floor = max(floor, own)
    return Contenders(_reaching(goodness, error, floor), floor)


def _reaching(goodness: np.ndarray, error: float | np.ndarray, floor: float) -> np.ndarray:
    if isinstance(error, np.ndarray):
        return _reaches(goodness + error, floor).nonzero()[0]
    return _reaches(goodness, floor - error).nonzero()[0]


def kth_largest(values: np.ndarray, k: int) -> float:
    """Return the k-th largest of (n,) values, -inf when there are fewer than k."""
    count = len(values)
    if count < k:
        return -np.inf
    blocks = max(_MIN_BLOCKS, 8 * k)
    if count >= blocks * _ROWS_PER_BLOCK:
        height = count // blocks
        maxima = values[: height * blocks].reshape(height, blocks).max(axis=0)
        floor = np.partition(maxima, blocks - k)[blocks - k]
        if floor == -np.inf:
            values = values[values > -np.inf]
        else:
            values = values[values >= floor]
        if len(values) < k:
            return -np.inf
    # The method of a copy is what the function does, at half of its cost where there are few.
    values = values.copy()
    values.partition(len(values) - k)
    return float(values[len(values) - k])


def _reaches(values: np.ndarray, floor: float) -> np.ndarray:
    if floor == -np.inf:
        return values > -np.inf
    if len(values) <= _FEW_ROWS:
        # In float64 there is nothing to round, and of so few no time to lose.
        return values >= np.float64(floor)
    # The comparison stays in the array's own type; rounding the floor down keeps it a floor.
    kind, lowest, highest = _range_of(values.dtype)
    limit = kind(min(max(floor, lowest), highest))
    if float(limit) > floor and float(limit) > lowest:
        limit = np.nextafter(limit, kind(-np.inf))
    return values >= limit


@cache
def _range_of(dtype: np.dtype) -> tuple[type[np.floating], float, float]:
    limits = np.finfo(dtype)
    return dtype.type, float(limits.min), float(limits.max)
