"""The promise: searches find at least the share of the truly nearest rows that was asked for, whatever the filter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.engine.index.segments import clustered, indexed, segment, view_of
from vectors.bench.data import random_rows
from vectors.engine.distances import Metric, Query
from vectors.engine.filters import Filter, parse_filter
from vectors.engine.index import segment_index
from vectors.engine.namespace import NamespaceView
from vectors.engine.search import Wanted, search, search_batch

ROWS = 12_000
QUERIES = 80


def recall_of(
    view: NamespaceView,
    queries: Sequence[Query],
    *,
    k: int = 10,
    filter: Filter | None = None,
    recall: float | None = None,
) -> tuple[float, set[str]]:
    """Return the share of the truly nearest rows that searches find, and how they were found."""
    found = wanted = 0
    ways: set[str] = set()
    for query in queries:
        truth = {item.key for item in search(view, Wanted(query, k, filter, exact=True)).found}
        result = search(view, Wanted(query, k, filter, recall=recall))
        assert len(result.found) == len(truth)
        found += len(truth & {item.key for item in result.found})
        wanted += len(truth)
        ways.add(result.strategy)
    return found / wanted, ways


def queries_near(values: np.ndarray, metric: Metric, *, seed: int = 9) -> list[Query]:
    generator = np.random.default_rng(seed)
    chosen = values[generator.choice(len(values), size=QUERIES, replace=False)]
    moved = chosen + generator.normal(scale=0.3 * values.std(), size=chosen.shape)
    return [Query.of(row.astype(np.float32), metric) for row in moved]


def filter_of(document: dict) -> Filter:
    return parse_filter(document, field="filter", max_conditions=10, max_depth=5, max_values=10)


@pytest.mark.parametrize(
    ("metric", "dimension", "lengths"),
    [("cosine", 96, 0.3), ("l2", 48, 0.0), ("ip", 64, 0.0), ("ip", 40, 0.3), ("cosine", 33, 0.0), ("l2", 17, 0.2)],
)
def test_every_metric_finds_what_is_promised(metric: Metric, dimension: int, lengths: float, tmp_path: Path) -> None:
    values = clustered(ROWS, dimension, lengths=lengths)
    part = segment(values)
    indexed(part, tmp_path, metric)
    view = view_of(part, metric=metric)

    recall, ways = recall_of(view, queries_near(values, metric))

    assert recall >= 0.95
    assert "index" in ways


@pytest.mark.parametrize("k", [1, 3, 10, 40, 100, 250])
def test_any_number_of_neighbours_is_found_with_the_recall_promised(k: int, tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values)
    indexed(part, tmp_path)

    recall, _ways = recall_of(view_of(part), queries_near(values, "cosine"), k=k)

    assert recall >= 0.95


@pytest.mark.parametrize("asked", [0.9, 0.97, 0.99])
def test_a_search_may_ask_for_another_recall(asked: float, tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values)
    indexed(part, tmp_path)
    view = view_of(part)

    recall, _ways = recall_of(view, queries_near(values, "cosine"), recall=asked)

    assert recall >= asked


def test_a_recall_of_one_and_another_metric_are_exact(tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values)
    indexed(part, tmp_path)
    view = view_of(part)
    query = queries_near(values, "cosine")[0]

    assert search(view, Wanted(query, 10)).strategy == "index"
    assert search(view, Wanted(query, 10, recall=1.0)).strategy == "exact"
    assert search(view, Wanted(query, 10, exact=True)).strategy == "exact"
    assert search(view, Wanted(Query.of(query.scan, "l2"), 10)).strategy == "exact"


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.03, 0.001])
def test_filters_lose_no_hits(share: float, coded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not coded:
        monkeypatch.setattr(segment_index, "CODED_BYTES", 0)
    values = clustered(ROWS, 64)
    chosen = np.random.default_rng(4).random(ROWS) < share
    part = segment(values, [b'{"chosen":true}' if item else b"{}" for item in chosen])
    indexed(part, tmp_path)

    recall, _ways = recall_of(view_of(part), queries_near(values, "cosine"), filter=filter_of({"chosen": True}))

    assert recall >= 0.95


@pytest.mark.parametrize("coded", [True, False])
def test_a_filter_on_what_is_far_from_the_query_loses_no_hits(
    coded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rows that match lie elsewhere, the cells near the query have none of them."""
    if not coded:
        monkeypatch.setattr(segment_index, "CODED_BYTES", 0)
    values = clustered(ROWS, 64)
    query = Query.of(values[0], "cosine")
    far = values @ query.scan < np.quantile(values @ query.scan, 0.4)
    part = segment(values, [b'{"far":true}' if item else b"{}" for item in far])
    indexed(part, tmp_path)
    near = [Query.of(values[0] + 0.1 * row, "cosine") for row in clustered(30, 64, seed=2)]

    recall, _ways = recall_of(view_of(part), near, filter=filter_of({"far": True}))

    assert recall >= 0.95


def test_a_filter_that_comes_again_is_answered_from_codes_of_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = clustered(ROWS, 64)
    part = segment(values, [b'{"chosen":true}' if row % 3 else b"{}" for row in range(ROWS)])
    opened = indexed(part, tmp_path)
    queries, filter = queries_near(values, "cosine"), filter_of({"chosen": True})
    view = view_of(part)
    for query in queries[:2]:
        assert search(view, Wanted(query, 10, filter)).strategy == "index"

    monkeypatch.setattr(opened._scanner, "scan", lambda *_, **__: pytest.fail("other rows are passed"))
    recall, ways = recall_of(view, queries, filter=filter)

    assert recall >= 0.95
    assert ways == {"index"}
    gone = search(view, Wanted(queries[0], 10, filter)).found[:3]
    part.kill([item.row for item in gone])
    monkeypatch.undo()
    for _ in range(3):
        found = search(view_of(part), Wanted(queries[0], 10, filter)).found
        assert len(found) == 10
        assert not {item.key for item in found} & {item.key for item in gone}


def test_one_matching_row_is_found(tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values, [b'{"only":1}' if row == 77 else b"{}" for row in range(ROWS)])
    indexed(part, tmp_path)

    found = search(view_of(part), Wanted(Query.of(-values[77], "cosine"), 10, filter_of({"only": 1}))).found

    assert [item.row for item in found] == [77]


def test_deleted_rows_and_those_of_other_slots_are_not_found(tmp_path: Path) -> None:
    from vectors.engine.slots import SlotSet

    values = clustered(ROWS, 64)
    part = segment(values)
    indexed(part, tmp_path)
    query = queries_near(values, "cosine")[0]
    best = [item.row for item in search(view_of(part), Wanted(query, 10)).found]
    part.kill(best[:5])
    slots = SlotSet.of(np.setdiff1d(np.arange(16384), part.slots[best[5:7]]))

    rows = [item.row for item in search(view_of(part).only(slots), Wanted(query, 10)).found]

    assert len(rows) == 10
    assert not set(rows) & set(best[:7])
    assert set(best[7:]) <= set(rows)


def test_a_batch_finds_what_single_searches_find(tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values, [b'{"odd":%d}' % (row % 2) for row in range(ROWS)])
    indexed(part, tmp_path)
    view = view_of(part, segment(clustered(500, 64, seed=5)))
    queries = queries_near(values, "cosine")
    wanteds = [
        Wanted(query, 10 if number % 3 else 20, filter_of({"odd": 1}) if number % 2 else None, exact=number % 7 == 0)
        for number, query in enumerate(queries)
    ]

    # Rows of a filter that comes again are kept side by side, which may change what is cheaper: not between the two.
    for wanted in wanteds:
        search(view, wanted)

    together = search_batch(view, wanteds)

    for wanted, result in zip(wanteds, together, strict=True):
        alone = search(view, wanted)
        assert [(item.key, item.score) for item in alone.found] == [(item.key, item.score) for item in result.found]
        assert alone.strategy == result.strategy


def test_scores_are_exact_whoever_proposed_the_rows(tmp_path: Path) -> None:
    values = clustered(ROWS, 64)
    part = segment(values)
    indexed(part, tmp_path)
    view = view_of(part)
    for query in queries_near(values, "cosine")[:10]:
        exact = {item.key: item.score for item in search(view, Wanted(query, ROWS, exact=True)).found}
        result = search(view, Wanted(query, 10))
        assert result.strategy == "index"
        assert [item.score for item in result.found] == [exact[item.key] for item in result.found]


def test_queries_unlike_the_rows_find_what_is_promised_before_any_was_seen(tmp_path: Path) -> None:
    # Most rows lie between two others, close to both; queries do not.
    generator = np.random.default_rng(2)
    alike = random_rows(2600, 96, seed=4)
    base, asked = alike[:2400], alike[2400:]
    near = np.argsort(-(base @ base.T), axis=1)[:, 1:5]
    first = generator.integers(len(base), size=12_000)
    second = near[first, generator.integers(4, size=len(first))]
    weight = generator.uniform(0.2, 0.8, size=(len(first), 1)).astype(np.float32)
    part = segment(np.concatenate((base, weight * base[first] + (1 - weight) * base[second])))
    indexed(part, tmp_path)

    reached, ways = recall_of(view_of(part), [Query.of(row, "cosine") for row in asked])

    assert reached >= 0.95
    assert ways == {"index"}
