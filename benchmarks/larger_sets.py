"""Larger sets of the same kind as a file: rows mixed of two near ones, with noise.

Copies with little noise would be too easy: each has its original as a neighbour far nearer than all others. Mixes of
two near rows lie between them, and noise of 0.8 of their length takes them away from both. How much is needed was
tried with 20,000 real sentence embeddings and queries apart from them: a set made of 3,334 of them is as hard to search
as all of them. For a recall of 0.985 an HNSW graph (M=16) needs ef=88 there and 87 with the real ones; with noise of
0.2 to 0.6, 66 to 78.
"""

from __future__ import annotations

import numpy as np

_PARENTS = 20_000
_NEAR = 9
_NOISE = 0.8
_ROWS_AT_ONCE = 1000


def rows_and_queries(rows: np.ndarray, queries: np.ndarray | None, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows and queries, (n, d) and (q, d) float32; without queries some of the rows are taken for them."""
    rows = _unit(rows.astype(np.float32))
    if queries is not None:
        return rows, _unit(queries.astype(np.float32))
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(500, len(rows) // 5)
    return rows[np.sort(order[count:])], rows[order[:count]]


def grown(rows: np.ndarray, count: int, *, seed: int = 1) -> np.ndarray:
    """Return `count` unit rows: those there are, in order, and mixes of them where that is not enough."""
    if count <= len(rows):
        return rows[:count]
    generator = np.random.default_rng(seed)
    parents = rows[np.sort(generator.permutation(len(rows))[:_PARENTS])]
    near = _near(parents)
    made = np.empty((count, rows.shape[1]), dtype=np.float32)
    made[: len(rows)] = rows
    for start in range(len(rows), count, _ROWS_AT_ONCE):
        stop = min(count, start + _ROWS_AT_ONCE)
        first = generator.integers(0, len(parents), stop - start)
        second = near[first, generator.integers(0, near.shape[1], stop - start)]
        share = generator.uniform(0.3, 0.7, (stop - start, 1)).astype(np.float32)
        mixed = _unit(share * parents[first] + (1 - share) * parents[second])
        noise = generator.standard_normal(mixed.shape, dtype=np.float32) / np.float32(np.sqrt(mixed.shape[1]))
        made[start:stop] = _unit(mixed + np.float32(_NOISE) * noise)
    return made


def metadata_of(number: int, flags: dict[str, np.ndarray]) -> dict[str, object]:
    """Return the metadata of a row: some small fields, and those that filters ask for."""
    found: dict[str, object] = {"number": number, "group": number % 100, "name": f"row number {number}"}
    found.update((name, int(values[number])) for name, values in flags.items())
    return found


def flags_of(count: int, *, seed: int = 3) -> dict[str, np.ndarray]:
    """Return fields that are 1 for 50, 10, 1 and 0.1 % of rows and 0 for the others: name to (count,) bool."""
    generator = np.random.default_rng(seed)
    shares = {"f50": 0.5, "f10": 0.1, "f1": 0.01, "f01": 0.001}
    return {name: generator.random(count) < share for name, share in shares.items()}


def _near(rows: np.ndarray) -> np.ndarray:
    """Return the nearest others of each row: (n, _NEAR) int64."""
    keep = min(_NEAR + 1, len(rows))
    near = np.empty((len(rows), keep - 1), dtype=np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(start, min(len(rows), start + _ROWS_AT_ONCE))
        goodness = rows[some] @ rows.T
        goodness[np.arange(some.stop - start), np.arange(start, some.stop)] = -np.inf
        near[some] = np.argpartition(-goodness, keep - 2, axis=1)[:, : keep - 1]
    return near


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.where(norms == 0, 1, norms)
    return unit
