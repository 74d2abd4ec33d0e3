"""Search, count and scroll over one state of a namespace: deterministic, without locks.

Rows are proposed by products with all of them, or by the index of a segment, which looks at a part of them: enough of
it for the recall that is asked for. Whoever proposes, scores are exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Literal, NamedTuple

import numpy as np

from vectors.engine.distances import (
    Query,
    Scan,
    batch_products,
    exact_scores,
    is_safe_in_float32,
    lower_is_better,
    products,
)
from vectors.engine.filters import Filter, mask
from vectors.engine.namespace import NamespaceView
from vectors.engine.parts import FrozenPart, PartView
from vectors.engine.selection import Selection, select
from vectors.engine.topk import contenders, kth_largest

# Below this share of matching rows, gathering them costs less than a product over all rows (measured: a gathered row
# costs about four times a scanned one).
_GATHER_SHARE = 0.2
_QUERIES_PER_PRODUCT = 64
_ROWS_AT_ONCE = 4096
_PRODUCT_BYTES = 64 * 1024 * 1024
_KEY, _SCORE = itemgetter(0), itemgetter(1)


Strategy = Literal["exact", "index", "index+exact"]
"""Who proposed the rows: products with all of them, indexes of segments, or each in some parts."""


class Found(NamedTuple):
    """One row of an answer, still in its part: `score` float64."""

    key: bytes
    score: float
    view: PartView
    row: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search asks of the engine; `threshold` is the worst score to answer.

    `recall` is the share of the truly best rows to find, None for the namespace's own target; `exact` is all of them.
    """

    query: Query
    k: int
    filter: Filter | None = None
    threshold: float | None = None
    recall: float | None = None
    exact: bool = False


class Result(NamedTuple):
    """The rows found, best first, how many were scored exactly to find them, and how they were found."""

    found: list[Found]
    candidates: int
    strategy: Strategy = "exact"


class _Proposal(NamedTuple):
    view: PartView
    rows: np.ndarray
    goodness: np.ndarray
    error: float | np.ndarray
    floor: float
    strategy: Strategy = "exact"


def search(view: NamespaceView, wanted: Wanted) -> Result:
    """Return the `k` best living rows that match, best first, equal scores in key order.

    All of them are the best there are where no index is used; else about the share of `recall` of them.
    """
    recall = _recall_of(view, wanted)
    proposals: list[_Proposal] = []
    floor = _floor_of(wanted)
    for part in view.parts:
        selection = select(part, wanted.filter)
        if not selection.count:
            continue
        proposed = None if recall is None else _from_index(part, selection, [wanted], recall)[0]
        if proposed is None:
            proposals.append(_propose(part, selection, wanted, floor))
        else:
            proposals.append(_keep_proposed(part, proposed, wanted, floor))
        # What k rows of one part reach, those of the next ones have to reach as well.
        floor = proposals[-1].floor
    return _settle(proposals, wanted)


def search_batch(view: NamespaceView, wanteds: Sequence[Wanted]) -> list[Result]:
    """Answer many searches on one state; those that look for the same among the same rows share scans and products."""
    proposals: list[list[_Proposal]] = [[] for _ in wanteds]
    floors = [_floor_of(wanted) for wanted in wanteds]
    recalls = [_recall_of(view, wanted) for wanted in wanteds]
    groups: dict[tuple[Filter | None, int, float | None], list[int]] = {}
    for number, wanted in enumerate(wanteds):
        groups.setdefault((wanted.filter, wanted.k, recalls[number]), []).append(number)
    for part in view.parts:
        together: list[int] = []
        for (filter, _k, recall), group in groups.items():
            selection = select(part, filter)
            if not selection.count:
                continue
            asked = [wanteds[number] for number in group]
            found = [None] * len(group) if recall is None else _from_index(part, selection, asked, recall)
            for number, proposed in zip(group, found, strict=True):
                if proposed is not None:
                    proposals[number].append(_keep_proposed(part, proposed, wanteds[number], floors[number]))
                elif filter is None:
                    together.append(number)
                else:
                    proposals[number].append(_propose(part, selection, wanteds[number], floors[number]))
        _propose_together(part, together, wanteds, floors, proposals)
        for number, mine in enumerate(proposals):
            if mine:
                floors[number] = mine[-1].floor
    return [_settle(mine, wanted) for mine, wanted in zip(proposals, wanteds, strict=True)]


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
    """Return (rows,) bool of living rows that match, not to be written; None when all rows do."""
    return select(view, filter).mask


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


def _recall_of(view: NamespaceView, wanted: Wanted) -> float | None:
    """Return the recall with which indexes may be asked, None where they may not."""
    if wanted.exact or wanted.query.metric != view.spec.metric:
        return None
    recall = view.spec.recall_target if wanted.recall is None else wanted.recall
    return recall if recall < 1.0 else None


def _from_index(
    view: PartView, selection: Selection, wanteds: Sequence[Wanted], recall: float
) -> Sequence[np.ndarray | None]:
    """Return for searches for as many rows each what the part's index proposes; None where all are to be scored."""
    part = view.part
    # Read once: another manifest may exchange it meanwhile.
    index = part.index if isinstance(part, FrozenPart) else None
    if index is None:
        return [None] * len(wanteds)
    queries = [wanted.query for wanted in wanteds]
    if not all(is_safe_in_float32(part, view.rows, query) for query in queries):
        return [None] * len(wanteds)
    return index.propose_many(queries, k=wanteds[0].k, recall=recall, selection=selection)


def _keep_proposed(view: PartView, rows: np.ndarray, wanted: Wanted, floor: float) -> _Proposal:
    scan = products(view.part, view.rows, wanted.query, rows)
    return _keep(view, scan, None, rows, wanted.k, floor, strategy="index")


def _propose(view: PartView, selection: Selection, wanted: Wanted, floor: float) -> _Proposal:
    if selection.mask is None:
        scan = products(view.part, view.rows, wanted.query, None)
        return _keep(view, scan, None, None, wanted.k, floor)
    gathered = selection.gathered(view.part.matrix) if wanted.filter is not None else None
    if gathered is not None or selection.count < view.rows * _GATHER_SHARE:
        chosen = selection.rows
        scan = products(view.part, view.rows, wanted.query, chosen, gathered=gathered)
        return _keep(view, scan, None, chosen, wanted.k, floor)
    return _keep(view, products(view.part, view.rows, wanted.query, None), selection.mask, None, wanted.k, floor)


def _propose_together(
    view: PartView,
    numbers: Sequence[int],
    wanteds: Sequence[Wanted],
    floors: Sequence[float],
    proposals: Sequence[list[_Proposal]],
) -> None:
    """Add what searches without a filter find among all rows of a part, by products of some of them at once."""
    step = max(1, min(_QUERIES_PER_PRODUCT, _PRODUCT_BYTES // (4 * view.rows)))
    for start in range(0, len(numbers), step):
        group = numbers[start : start + step]
        scans = batch_products(view.part, view.rows, [wanteds[number].query for number in group])
        for number, scan in zip(group, scans, strict=True):
            proposals[number].append(_keep(view, scan, view.living, None, wanteds[number].k, floors[number]))


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
    view: PartView,
    scan: Scan,
    matching: np.ndarray | None,
    chosen: np.ndarray | None,
    k: int,
    floor: float,
    strategy: Strategy = "exact",
) -> _Proposal:
    goodness = scan.goodness
    if matching is not None:
        goodness[~matching] = -np.inf
    kept, floor = contenders(goodness, k, scan.error, floor)
    error = scan.error[kept] if isinstance(scan.error, np.ndarray) else scan.error
    return _Proposal(view, kept if chosen is None else chosen[kept], goodness[kept], error, floor, strategy)


def _settle(proposals: Sequence[_Proposal], wanted: Wanted) -> Result:
    if not proposals:
        return Result([], 0)
    # Rows that those of later parts surely beat need no exact score.
    floor = proposals[-1].floor
    if len(proposals) > 1:
        floor = max(floor, kth_largest(np.concatenate([item.goodness - item.error for item in proposals]), wanted.k))
    chosen: list[np.ndarray] = []
    views: list[PartView] = []
    for item in proposals:
        rows = item.rows
        if item.floor < floor:
            rows = rows[item.goodness + item.error >= floor]
        if len(rows):
            chosen.append(rows)
            views.append(item.view)
    strategy = _strategy_of(proposals)
    if not chosen:
        return Result([], 0, strategy)
    descending = -1.0 if not lower_is_better(wanted.query.metric) else 1.0
    ranked = _exact(views, chosen, wanted.query) * descending
    candidates = len(ranked)
    worst = np.inf if wanted.threshold is None else wanted.threshold * descending
    if candidates > wanted.k:
        worst = min(worst, float(np.partition(ranked, wanted.k - 1)[wanted.k - 1]))
    found: list[Found] = []
    start = 0
    for view, rows in zip(views, chosen, strict=True):
        ranks = ranked[start : start + len(rows)]
        start += len(rows)
        if worst < np.inf:
            kept = np.flatnonzero(ranks <= worst)
            ranks, rows = ranks[kept], rows[kept]
        scores = (ranks * descending).tolist()
        found.extend(map(Found, view.part.keys_of(rows), scores, repeat(view), rows.tolist()))
    # Python's sort keeps the order of equal ones: by key first, by score then.
    found.sort(key=_KEY)
    found.sort(key=_SCORE, reverse=descending < 0)
    return Result(found[: wanted.k], candidates, strategy)


def _strategy_of(proposals: Sequence[_Proposal]) -> Strategy:
    used = {proposal.strategy for proposal in proposals}
    return "index+exact" if len(used) > 1 else used.pop()


def _exact(views: Sequence[PartView], chosen: Sequence[np.ndarray], query: Query) -> np.ndarray:
    """Return the exact scores of the chosen rows of some parts, one after the other."""
    if sum(len(rows) for rows in chosen) > _ROWS_AT_ONCE:
        # Where nothing tells rows apart all of them are chosen: they must not be in memory once more.
        return np.concatenate(
            [exact_scores(view.part.matrix[rows], query) for view, rows in zip(views, chosen, strict=True)]
        )
    values = [view.part.matrix[rows] for view, rows in zip(views, chosen, strict=True)]
    return exact_scores(values[0] if len(values) == 1 else np.concatenate(values), query)
