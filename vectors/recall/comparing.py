"""What share of the true neighbours searches by index find, counted beside exact ones on one state. No database.

A row counts as found when its exact score is as good as that of the last true neighbour: of equally good rows any will
do. The share is the mean over the queries; how far it may be from that of all queries is estimated from how much they
differ (the standard error of a mean), and at least as much as coin tosses of that share would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vectors.engine import search
from vectors.engine.distances import Query, lower_is_better
from vectors.engine.index import SegmentIndex
from vectors.engine.namespace import NamespaceView
from vectors.engine.parts import FrozenPart, PartView

NEIGHBOURS = 10
"""Recall is that of the ten nearest, recall@10."""

_QUERIES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Compared:
    """The share found, 0 to 1, over so many queries; `error` is its standard error."""

    recall: float
    error: float
    queries: int

    def is_short(self, target: float) -> bool:
        """Whether the target is missed by more than twice what chance explains."""
        return self.recall + 2.0 * self.error < target


def indexed_rows(view: NamespaceView) -> int:
    """Return how many living rows lie in segments with an index."""
    return sum(part.alive for part in view.frozen if _index_of(part) is not None)


def tuned_recall(view: NamespaceView) -> float | None:
    """Return the recall that the indexes reached when they were tuned, by rows, rows without one counted as found.

    None where no segment has an index.
    """
    found = 0.0
    for part in view.frozen:
        index = _index_of(part)
        found += part.alive * (1.0 if index is None else float(index.summary["recall"]))
    rows = sum(part.alive for part in view.frozen)
    return found / rows if indexed_rows(view) else None


def compared(
    view: NamespaceView, queries: np.ndarray, *, recall: float, own_rows: bool = False, limit_s: float = math.inf
) -> Compared | None:
    """Search for (n, d) float32 queries with the index, at `recall`, and without; None when there is nothing to find.

    `own_rows` says that the queries are rows of the namespace: each is not counted as its own neighbour. After
    `limit_s` seconds no further queries are begun.
    """
    ended = time.monotonic() + limit_s
    k = NEIGHBOURS + own_rows
    shares: list[float] = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        wanted = [Query.of(query, view.spec.metric) for query in queries[start : start + _QUERIES_AT_ONCE]]
        exact = search.search_batch(view, [search.Wanted(query, k, exact=True) for query in wanted])
        for query, truth in zip(wanted, exact, strict=True):
            # One by one, as most clients search.
            found = search.search(view, search.Wanted(query, k, recall=recall))
            share = _share(found.found, truth.found, view.spec.metric, own_rows=own_rows)
            if share is not None:
                shares.append(share)
        if time.monotonic() > ended:
            break
    if not shares:
        return None
    mean = float(np.mean(shares))
    spread = float(np.std(shares)) / math.sqrt(len(shares))
    tosses = math.sqrt(recall * (1.0 - recall) / (len(shares) * NEIGHBOURS))
    return Compared(mean, max(spread, tosses), len(shares))


def own_rows_of(view: NamespaceView, count: int) -> np.ndarray:
    """Return living rows of the indexed segments to search by where no queries are known: (n, d) float32.

    Spread evenly over the rows, so that the same state gives the same ones.
    """
    chosen = []
    indexed = [part for part in view.frozen if _index_of(part) is not None]
    total = sum(part.alive for part in indexed)
    for part in indexed:
        living = np.arange(part.rows) if part.living is None else np.flatnonzero(part.living)
        share = min(len(living), max(1, round(count * len(living) / max(1, total))))
        if not share:
            continue
        places = ((np.arange(share) + 0.5) * (len(living) / share)).astype(np.int64)
        chosen.append(np.asarray(part.part.matrix[living[places]], dtype=np.float32))
    rows = np.concatenate(chosen) if chosen else np.empty((0, view.spec.dimension), np.float32)
    return rows[rows.any(axis=1)][:count]


def _share(
    found: Sequence[search.Found], truth: Sequence[search.Found], metric: str, *, own_rows: bool
) -> float | None:
    best = truth[0].score if truth else None
    if own_rows:
        # The best of all is the row itself, or one that is equal to it.
        truth = truth[1:]
    if not truth:
        return None
    worst = truth[-1].score
    if lower_is_better(metric):  # type: ignore[arg-type]
        hits = sum(1 for item in found if item.score <= worst)
    else:
        hits = sum(1 for item in found if item.score >= worst)
    if own_rows and found and found[0].score == best:
        hits -= 1
    return min(hits, len(truth)) / len(truth)


def _index_of(view: PartView) -> SegmentIndex | None:
    return view.part.index if isinstance(view.part, FrozenPart) else None
