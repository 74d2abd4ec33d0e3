"""Search, count and scroll over one state of a namespace: exact, deterministic, without locks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vectors.engine.distances import (
    Query,
    Scan,
    batch_products,
    exact_scores,
    lower_is_better,
    products,
)
from vectors.engine.filters import Filter, mask
from vectors.engine.namespace import NamespaceView
from vectors.engine.parts import FrozenPart, PartView
from vectors.engine.topk import contenders, kth_largest

# Below this share of matching rows, gathering them costs less than a product over all rows (measured: a gathered row
# costs about four times a scanned one).
_GATHER_SHARE = 0.2
_QUERIES_PER_PRODUCT = 64
_ROWS_AT_ONCE = 4096
_PRODUCT_BYTES = 64 * 1024 * 1024


class Found(NamedTuple):
    """One row of an answer, still in its part: `score` float64."""

    key: bytes
    score: float
    view: PartView
    row: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search asks of the engine; `threshold` is the worst score to answer."""

    query: Query
    k: int
    filter: Filter | None = None
    threshold: float | None = None


class Result(NamedTuple):
    """The rows found, best first, and how many were scored exactly to find them."""

    found: list[Found]
    candidates: int


class _Proposal(NamedTuple):
    view: PartView
    rows: np.ndarray
    goodness: np.ndarray
    error: float | np.ndarray
    floor: float


def search(view: NamespaceView, wanted: Wanted) -> Result:
    """Return the `k` best living rows that match, best first, equal scores in key order."""
    proposals = []
    floor = _floor_of(wanted)
    for part in view.parts:
        proposal = _propose(part, wanted, floor)
        if proposal is not None:
            proposals.append(proposal)
            # What k rows of one part reach, those of the next ones have to reach as well.
            floor = proposal.floor
    return _settle(proposals, wanted)


def search_batch(view: NamespaceView, wanteds: Sequence[Wanted]) -> list[Result]:
    """Answer many searches on one state; those without a filter share matrix products."""
    results: list[Result | None] = [None] * len(wanteds)
    plain = [number for number, wanted in enumerate(wanteds) if wanted.filter is None]
    largest = max((part.rows for part in view.parts), default=1)
    step = max(1, min(_QUERIES_PER_PRODUCT, _PRODUCT_BYTES // (4 * largest)))
    for start in range(0, len(plain), step):
        group = plain[start : start + step]
        proposals: dict[int, list[_Proposal]] = {number: [] for number in group}
        floors = {number: _floor_of(wanteds[number]) for number in group}
        for part in view.parts:
            scans = batch_products(part.part, part.rows, [wanteds[number].query for number in group])
            for number, scan in zip(group, scans, strict=True):
                proposal = _keep(part, scan, part.living, None, wanteds[number].k, floors[number])
                proposals[number].append(proposal)
                floors[number] = proposal.floor
        for number in group:
            results[number] = _settle(proposals[number], wanteds[number])
    return [search(view, wanted) if result is None else result for wanted, result in zip(wanteds, results, strict=True)]


def count(view: NamespaceView, filter: Filter | None) -> int:
    """Return how many living rows match."""
    if filter is None:
        return view.count
    total = 0
    for part in view.parts:
        matching = matching_rows(part, filter)
        total += part.rows if matching is None else int(np.count_nonzero(matching))
    return total


def scroll(
    view: NamespaceView, *, limit: int, after: bytes | None, filter: Filter | None
) -> tuple[list[tuple[bytes, PartView, int]], bool]:
    """Return up to `limit` living, matching rows (key, part, row) after a key in key order, and if there are more."""
    tail = {id(part): _row_filter(part, filter) for part in view.parts if not isinstance(part.part, FrozenPart)}
    streams: list[Iterator[tuple[bytes, PartView, int]]] = [
        _frozen_rows(part, after=after, filter=filter) for part in view.frozen
    ]
    streams.append(
        (key, part, row)
        for key, part, row in view.sorted_tail
        if (after is None or key > after) and ((chosen := tail[id(part)]) is None or chosen[row])
    )
    rows: list[tuple[bytes, PartView, int]] = []
    for item in heapq.merge(*streams, key=lambda item: item[0]):
        if len(rows) == limit:
            return rows, True
        rows.append(item)
    return rows, False


def matching_keys(view: NamespaceView, filter: Filter) -> list[bytes]:
    """Return the keys of living, matching rows."""
    keys: list[bytes] = []
    for part in view.parts:
        matching = matching_rows(part, filter)
        rows = range(part.rows) if matching is None else np.flatnonzero(matching).tolist()
        source = part.part.keys
        keys.extend(source[row] for row in rows)
    return keys


def matching_rows(view: PartView, filter: Filter | None) -> np.ndarray | None:
    """Return (rows,) bool of living rows that match, None when all rows do."""
    chosen = _row_filter(view, filter)
    if chosen is None or view.living is None:
        return view.living if chosen is None else chosen
    both: np.ndarray = chosen & view.living
    return both


def _row_filter(view: PartView, filter: Filter | None) -> np.ndarray | None:
    return None if filter is None else mask(filter, view.part.columns, view.rows)


def _frozen_rows(
    view: PartView, *, after: bytes | None, filter: Filter | None
) -> Iterator[tuple[bytes, PartView, int]]:
    part = view.part
    assert isinstance(part, FrozenPart)
    start = 0 if after is None else part.keys.position(after, after=True)
    matching = matching_rows(view, filter)
    rows = range(start, view.rows) if matching is None else start + np.flatnonzero(matching[start:])
    for row in rows:
        yield part.keys[int(row)], view, int(row)


def _propose(view: PartView, wanted: Wanted, floor: float) -> _Proposal | None:
    matching = matching_rows(view, wanted.filter)
    if matching is None:
        scan = products(view.part, view.rows, wanted.query, None)
        return _keep(view, scan, None, None, wanted.k, floor)
    matches = int(np.count_nonzero(matching))
    if not matches:
        return None
    if matches < view.rows * _GATHER_SHARE:
        chosen = np.flatnonzero(matching)
        return _keep(view, products(view.part, view.rows, wanted.query, chosen), None, chosen, wanted.k, floor)
    return _keep(view, products(view.part, view.rows, wanted.query, None), matching, None, wanted.k, floor)


def _floor_of(wanted: Wanted) -> float:
    """Return the goodness of a row with the worst score that is asked for; -inf where any will do."""
    threshold, query = wanted.threshold, wanted.query
    if threshold is None:
        return -np.inf
    if lower_is_better(query.metric):
        # The subtraction rounds; a row at the threshold itself has to stay.
        return query.squared_norm - threshold - (query.squared_norm + abs(threshold)) * 2.0**-40
    return threshold


def _keep(
    view: PartView, scan: Scan, matching: np.ndarray | None, chosen: np.ndarray | None, k: int, floor: float
) -> _Proposal:
    goodness = scan.goodness
    if matching is not None:
        goodness[~matching] = -np.inf
    kept, floor = contenders(goodness, k, scan.error, floor)
    error = scan.error[kept] if isinstance(scan.error, np.ndarray) else scan.error
    return _Proposal(view, kept if chosen is None else chosen[kept], goodness[kept], error, floor)


def _settle(proposals: Sequence[_Proposal], wanted: Wanted) -> Result:
    if not proposals:
        return Result([], 0)
    # Rows that those of later parts surely beat need no exact score.
    floor = proposals[-1].floor
    if len(proposals) > 1:
        floor = max(floor, kth_largest(np.concatenate([item.goodness - item.error for item in proposals]), wanted.k))
    places: list[tuple[PartView, int]] = []
    chosen: list[np.ndarray] = []
    views: list[PartView] = []
    for item in proposals:
        rows = item.rows[item.goodness + item.error >= floor]
        if len(rows):
            places.extend((item.view, row) for row in rows.tolist())
            chosen.append(rows)
            views.append(item.view)
    if not places:
        return Result([], 0)
    descending = -1.0 if not lower_is_better(wanted.query.metric) else 1.0
    ranked = _exact(views, chosen, wanted.query) * descending
    candidates = len(ranked)
    positions = np.arange(candidates)
    if wanted.threshold is not None:
        positions = positions[ranked <= wanted.threshold * descending]
    if len(positions) > wanted.k:
        worst = np.partition(ranked[positions], wanted.k - 1)[wanted.k - 1]
        positions = positions[ranked[positions] <= worst]
    found = []
    for position in positions.tolist():
        view, row = places[position]
        found.append(Found(view.part.keys[row], float(ranked[position] * descending), view, row))
    found.sort(key=lambda item: (item.score * descending, item.key))
    return Result(found[: wanted.k], candidates)


def _exact(views: Sequence[PartView], chosen: Sequence[np.ndarray], query: Query) -> np.ndarray:
    """Return the exact scores of the chosen rows of some parts, one after the other."""
    if sum(len(rows) for rows in chosen) > _ROWS_AT_ONCE:
        # Where nothing tells rows apart all of them are chosen: they must not be in memory once more.
        return np.concatenate(
            [exact_scores(view.part.matrix[rows], query) for view, rows in zip(views, chosen, strict=True)]
        )
    values = [view.part.matrix[rows] for view, rows in zip(views, chosen, strict=True)]
    return exact_scores(values[0] if len(values) == 1 else np.concatenate(values), query)
