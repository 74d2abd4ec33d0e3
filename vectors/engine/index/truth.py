"""The truly nearest rows of a part for many queries at once, by matrix products of some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vectors.engine.distances import Query, batch_goodness
from vectors.engine.parts import FrozenPart

_ROWS_AT_ONCE = 16384


def nearest(
    part: FrozenPart,
    queries: Sequence[Query],
    *,
    depth: int,
    leave_out: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Return the `depth` nearest rows of each query, nearest first, as float32 products rank them: (q, depth) int64.

    `leave_out` (q,) is one row for each query that is none of its neighbours: itself. `mask` (rows,) bool says which
    rows count. Up to `threads` threads share the queries: products are of one thread in every process of a node.
    """
    shares = [share for share in np.array_split(np.arange(len(queries)), threads) if len(share)]
    with ThreadPoolExecutor(max_workers=max(1, len(shares))) as pool:
        found = pool.map(
            lambda share: _nearest(
                part,
                queries[share[0] : share[-1] + 1],
                depth=depth,
                leave_out=None if leave_out is None else leave_out[share],
                mask=mask,
            ),
            shares,
        )
        return np.concatenate(list(found))


def _nearest(
    part: FrozenPart,
    queries: Sequence[Query],
    *,
    depth: int,
    leave_out: np.ndarray | None,
    mask: np.ndarray | None,
) -> np.ndarray:
    there = part.rows if mask is None else int(np.count_nonzero(mask))
    depth = max(1, min(depth, there - (leave_out is not None)))
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, part.rows, _ROWS_AT_ONCE):
        stop = min(part.rows, start + _ROWS_AT_ONCE)
        some = np.arange(start, stop) if mask is None else start + np.flatnonzero(mask[start:stop])
        if not len(some):
            continue
        goodness = batch_goodness(part, slice(start, stop) if mask is None else some, queries)
        if leave_out is not None:
            places = np.minimum(np.searchsorted(some, leave_out), len(some) - 1)
            own = np.flatnonzero(some[places] == leave_out)
            goodness[own, places[own]] = -np.inf
        keep = min(depth, len(some))
        np.negative(goodness, out=goodness)
        chosen = np.argpartition(goodness, keep - 1, axis=1)[:, :keep]
        best = np.concatenate((best, -np.take_along_axis(goodness, chosen, axis=1)), axis=1)
        rows = np.concatenate((rows, some[chosen]), axis=1)
        if best.shape[1] > depth:
            chosen = np.argpartition(-best, depth - 1, axis=1)[:, :depth]
            best, rows = np.take_along_axis(best, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    found: np.ndarray = np.take_along_axis(rows, order, axis=1)
    return found
