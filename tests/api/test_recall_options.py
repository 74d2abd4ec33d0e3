"""`recall` and `exact` over HTTP: what reaches the engine, what it says of itself, and what is known of a namespace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vectors.engine import search
from vectors.models import Namespace, RecallMeasure


@dataclass
class Engine:
    """The engine's searches, noted on their way; they answer that they were done in the way of `strategies`."""

    wanted: list[search.Wanted] = field(default_factory=list)
    strategies: list[str] = field(default_factory=list)

    def result(self, wanted: search.Wanted, found: search.Result) -> search.Result:
        self.wanted.append(wanted)
        strategy = self.strategies.pop(0) if self.strategies else found.strategy
        return found._replace(candidates=100 + len(self.wanted), strategy=strategy)


@pytest.fixture
def engine(api, monkeypatch) -> Engine:
    noted = Engine()
    one, many = search.search, search.search_batch
    monkeypatch.setattr(search, "search", lambda view, wanted: noted.result(wanted, one(view, wanted)))
    monkeypatch.setattr(
        search,
        "search_batch",
        lambda view, wanteds: [
            noted.result(wanted, found) for wanted, found in zip(wanteds, many(view, wanteds), strict=True)
        ],
    )
    rows = [{"id": number, "values": [1, number]} for number in range(5)]
    assert api.put("/vectors/batch", {"vectors": rows}).status_code == 200
    return noted


def options(engine: Engine) -> list[tuple[float | None, bool]]:
    return [(wanted.recall, wanted.exact) for wanted in engine.wanted]


def test_a_search_s_recall_and_exactness_reach_the_engine(api, engine):
    for body in ({}, {"recall": 0.9}, {"recall": 1}, {"exact": True}, {"exact": False, "recall": 0.5}):
        assert api.post("/search", {"query": [1, 0], **body}).status_code == 200

    assert options(engine) == [(None, False), (0.9, False), (1.0, False), (None, True), (0.5, False)]


def test_each_search_of_a_batch_has_its_own(api, engine):
    searches = [{"query": [1, 0], "recall": 0.9}, {"id": 3, "exact": True}, {"query": [0, 1]}]
    assert api.post("/search/batch", {"searches": searches}).status_code == 200

    assert options(engine) == [(0.9, False), (None, True), (None, False)]


@pytest.mark.parametrize("recall", [0, -0.1, 1.01, "0.9", True])
def test_a_recall_that_is_no_share_is_refused(api, engine, recall):
    response = api.post("/search", {"query": [1, 0], "recall": recall})

    assert response.status_code == 400
    assert response.json()["error"]["field"] == "recall"
    assert engine.wanted == []


def test_an_explanation_says_how_the_rows_were_found(api, engine):
    engine.strategies = ["index"]
    body = api.post("/search?explain=1", {"query": [1, 0]}).json()

    [shard] = body["shards"]
    assert (shard["strategy"], shard["candidates"]) == ("index", 101)


@pytest.mark.parametrize(
    ("strategies", "said"),
    [(["index", "index"], "index"), (["exact", "exact"], "exact"), (["index", "exact"], "index+exact")],
)
def test_an_explanation_of_a_batch_says_it_of_all_its_searches(api, engine, strategies, said):
    engine.strategies = strategies
    body = api.post("/search/batch?explain=1", {"searches": [{"query": [1, 0]}, {"query": [0, 1]}]}).json()

    [shard] = body["shards"]
    assert (shard["strategy"], shard["candidates"]) == (said, 101 + 102)


class TestNamespaces:
    @pytest.fixture
    def measured(self, api, monkeypatch) -> Callable[..., None]:
        """A namespace that is said to have an index over four of its rows, and measures of it."""
        rows = [{"id": number, "values": [1, number]} for number in range(5)]
        assert api.put("/vectors/batch", {"vectors": rows}).status_code == 200
        monkeypatch.setattr("vectors.query_processor.describing.indexed_rows", lambda view: 4)
        monkeypatch.setattr("vectors.query_processor.describing.tuned_recall", lambda view: 0.9931)
        common = {"queries": 50, "is_real": True, "indexed_rows": 4, "rows": 5, "took_s": 0.1}

        def add(recall: float, **more: object) -> None:
            RecallMeasure.objects.create(
                namespace=Namespace.objects.get(), recall=recall, **{"target": 0.99, "is_short": False} | common | more
            )

        return add

    def details(self, api) -> dict[str, object]:
        [namespace] = api.get("/namespaces?detail=1").json()["namespaces"]
        return namespace

    def test_without_an_index_nothing_is_measured(self, api):
        api.put("/vectors/batch", {"vectors": [{"id": 1, "values": [1, 2]}]})
        details = self.details(api)

        assert (details["measured_recall"], details["recall_measured_at"], details["indexed_rows"]) == (None, None, 0)

    def test_the_newest_measure_is_shown_with_its_time(self, api, measured):
        measured(0.97, is_short=True)
        measured(0.995)
        details = self.details(api)

        assert (details["measured_recall"], details["indexed_rows"]) == (0.995, 4)
        assert details["recall_measured_at"] == RecallMeasure.objects.latest("pk").measured_at.isoformat()

    def test_before_the_first_measure_it_is_what_the_indexes_were_tuned_to(self, api, measured):
        details = self.details(api)

        assert (details["measured_recall"], details["recall_measured_at"]) == (0.9931, None)

    def test_a_target_of_one_is_kept_by_exact_searches(self, api, measured):
        measured(0.995)
        assert api.put("/namespaces/default", {"recall_target": 1}).status_code == 200

        assert self.details(api)["measured_recall"] is None

    def test_a_change_answers_what_is_measured_as_well(self, api, measured):
        measured(0.995)
        body = api.put("/namespaces/default", {"recall_target": 0.9}).json()["namespace"]

        assert (body["recall_target"], body["measured_recall"]) == (0.9, 0.995)

    def test_metrics_have_what_was_measured_promised_and_missed(self, api, measured):
        measured(0.995)
        measured(0.96, is_short=True)
        text = api.get("/metrics").content.decode()

        labels = '{namespace="default",shard="shard_0"}'
        assert f"mlvdb_recall_measured{labels} 0.96" in text
        assert f"mlvdb_recall_target{labels} 0.99" in text
        assert f"mlvdb_recall_short{labels} 1.0" in text
        assert f"mlvdb_recall_queries{labels} 50.0" in text
        assert f"mlvdb_recall_measured_timestamp_seconds{labels}" in text

    def test_metrics_of_a_dropped_namespace_are_gone(self, api, measured):
        measured(0.995)
        api.delete("/namespaces/default")

        assert "mlvdb_recall_measured{" not in api.get("/metrics").content.decode()
