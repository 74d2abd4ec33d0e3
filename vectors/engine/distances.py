"""Scores: fast float32 products with a bound on their error, and exact float64 ones that depend on nothing but the row.

A BLAS product may differ in its last bits with the place of a row in its matrix. So products only propose rows;
what is answered and sorted by is computed anew per row in float64, in an order of additions fixed by the dimension
alone. Two workers, or two shards, that hold the same row in different segments answer the same score.

*Goodness* is what top-k maximises: the score of cosine and ip; |q|² - distance of l2, so that greater is better
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np

from vectors.engine.fetching import products_of
from vectors.engine.parts import Part

Metric = Literal["cosine", "ip", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

_UNIT_ROUNDOFF = 2.0**-24
_FLOAT32_SAFE_HIGH = 1e18
_FLOAT32_SAFE_LOW = 1e-15
_CHUNK_ROWS = 4096


def lower_is_better(metric: Metric) -> bool:
    """Whether a smaller score is a better one."""
    return metric == "l2"


def squared_norms(values: np.ndarray) -> np.ndarray:
    """Return |x|² of each row of (n, d) float32: (n,) float64."""
    norms = np.einsum("ij,ij->i", values, values, dtype=np.float64, casting="safe")
    return cast(np.ndarray, norms)


@dataclass(frozen=True, slots=True)
class Query:
    """A query vector prepared for one metric: `scan` (d,) float32 (of length 1 for cosine), `exact` (d,) float64."""

    metric: Metric
    scan: np.ndarray
    exact: np.ndarray
    norm: float
    squared_norm: float

    @classmethod
    def of(cls, values: np.ndarray, metric: Metric) -> Query:
        """Prepare (d,) float32 values."""
        exact = values.astype(np.float64)
        # Summed as the rows are, so that a row compared with itself has a cosine of exactly 1.
        squared = float(np.add.reduce(np.square(exact[np.newaxis, :]), axis=1)[0])
        norm = math.sqrt(squared)
        if metric == "cosine":
            scan = (exact / norm if norm else exact).astype(np.float32)
            return cls(metric, scan, exact, norm, squared)
        return cls(metric, np.ascontiguousarray(values, dtype=np.float32), exact, norm, squared)


def exact_scores(rows: np.ndarray, query: Query) -> np.ndarray:
    """Return the scores of (n, d) float32 rows: (n,) float64, the same bits wherever a row stands."""
    scores = np.empty(len(rows), dtype=np.float64)
    for start in range(0, len(rows), _CHUNK_ROWS):
        values = rows[start : start + _CHUNK_ROWS].astype(np.float64)
        some = scores[start : start + len(values)]
        if query.metric == "l2":
            np.subtract(values, query.exact, out=values)
            np.add.reduce(np.square(values, out=values), axis=1, out=some)
            continue
        np.add.reduce(values * query.exact, axis=1, out=some)
        if query.metric == "cosine":
            lengths = np.add.reduce(np.square(values, out=values), axis=1)
            lengths *= query.squared_norm
            np.sqrt(lengths, out=lengths)
            if not lengths.all():
                some[lengths == 0.0] = 0.0
                lengths[lengths == 0.0] = 1.0
            some /= lengths
            np.maximum(np.minimum(some, 1.0, out=some), -1.0, out=some)
    return scores


class Scan(NamedTuple):
    """Goodness (n,) of rows, and how far each may be from the true one: one number, or (n,)."""

    goodness: np.ndarray
    error: float | np.ndarray


def products(
    part: Part, rows: int, query: Query, chosen: np.ndarray | None, *, gathered: np.ndarray | None = None
) -> Scan:
    """Return the goodness of the first `rows` rows of a part, or of the `chosen` (m,) ones among them.

    `gathered` are the vectors of the chosen rows where they are at hand: (m, d) float32.
    """
    if not is_safe_in_float32(part, rows, query):
        return _products_in_float64(part, rows, query, chosen)
    if chosen is None:
        raw = part.matrix[:rows] @ query.scan
    elif gathered is not None:
        raw = gathered @ query.scan
    else:
        raw = products_of(part.matrix, chosen, query.scan)
    return to_goodness(part, rows, query, raw, chosen)


def batch_goodness(part: Part, rows: slice | np.ndarray, queries: Sequence[Query]) -> np.ndarray:
    """Return the goodness of some rows for several queries of one metric, as float32 products have it: (q, n)."""
    goodness: np.ndarray = np.stack([query.scan for query in queries]) @ part.matrix[rows].T
    metric = queries[0].metric
    if metric == "cosine":
        goodness *= part.inverse_norms(part.rows)[rows]
    elif metric == "l2":
        goodness *= 2.0
        goodness -= part.squared_norms[rows].astype(np.float32)
    return goodness


def batch_products(part: Part, rows: int, queries: list[Query]) -> list[Scan]:
    """Return the goodness of the first `rows` rows of a part for several queries, by one matrix product."""
    if not all(is_safe_in_float32(part, rows, query) for query in queries):
        return [products(part, rows, query, None) for query in queries]
    raw = np.stack([query.scan for query in queries]) @ part.matrix[:rows].T
    return [to_goodness(part, rows, query, raw[number], None) for number, query in enumerate(queries)]


def to_goodness(part: Part, rows: int, query: Query, raw: np.ndarray, chosen: np.ndarray | None) -> Scan:
    """Turn raw float32 products (changed in place) into goodness with its error bound.

    Bound of a float32 dot product in any order of additions: d·u·|x||q| (Higham, Accuracy and Stability of Numerical
    Algorithms, §3.1), with some room for the roundings around it.
    """
    bound = (len(query.scan) + 16) * _UNIT_ROUNDOFF
    if query.metric == "cosine":
        inverse = part.inverse_norms(rows)
        raw *= inverse if chosen is None else inverse[chosen]
        return Scan(raw, bound)
    low, high = part.norm_range(rows)
    even = high <= 2.0 * low
    if query.metric == "ip":
        if even:
            return Scan(raw, bound * query.norm * high)
        norms = np.sqrt(_some(part.squared_norms, rows, chosen))
        return Scan(raw, (bound * query.norm) * norms)
    squared = _some(part.squared_norms, rows, chosen)
    raw *= 2.0
    raw -= squared.astype(np.float32)
    if even:
        return Scan(raw, bound * (2.0 * query.norm * high + high * high + query.norm * query.norm))
    error = np.sqrt(squared) * (2.0 * query.norm) + squared + query.norm * query.norm
    error *= bound
    return Scan(raw, error)


def _some(array: np.ndarray, rows: int, chosen: np.ndarray | None) -> np.ndarray:
    return array[:rows] if chosen is None else array[chosen]


def is_safe_in_float32(part: Part, rows: int, query: Query | None = None) -> bool:
    """Whether float32 holds the products of the first `rows` rows of a part with a query, or with one another."""
    low, high = part.norm_range(rows)
    norm = low if query is None else 1.0 if query.metric == "cosine" else query.norm
    if high == 0.0 or norm == 0.0:
        return high <= _FLOAT32_SAFE_HIGH and norm <= _FLOAT32_SAFE_HIGH
    return max(high, norm) <= _FLOAT32_SAFE_HIGH and min(low, norm) > _FLOAT32_SAFE_LOW


def _products_in_float64(part: Part, rows: int, query: Query, chosen: np.ndarray | None) -> Scan:
    count = rows if chosen is None else len(chosen)
    goodness = np.empty(count, dtype=np.float64)
    for start in range(0, count, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, count)
        some = part.matrix[start:stop] if chosen is None else part.matrix[chosen[start:stop]]
        goodness[start:stop] = exact_scores(some, query)
    if query.metric != "l2":
        return Scan(goodness, 0.0)
    # On the scale of the other path: rows of several parts are compared by goodness.
    error = (goodness + query.squared_norm) * 2.0**-50
    np.subtract(query.squared_norm, goodness, out=goodness)
    return Scan(goodness, error)
