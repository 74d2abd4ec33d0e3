"""Search, batch search and count over HTTP."""

from __future__ import annotations

import numpy as np
import orjson
import pytest


@pytest.fixture
def shoes(api):
    """Six rows of dimension 3 with metadata."""
    rows = [
        {
            "id": number,
            "values": [np.cos(number / 4), np.sin(number / 4), 0.1],
            "metadata": {"n": number, "even": number % 2 == 0},
        }
        for number in range(6)
    ]
    assert api.put("/vectors/batch", {"vectors": rows}).status_code == 200
    return api


def test_a_search_answers_a_list_best_first(shoes):
    body = shoes.post("/search", {"query": [1, 0, 0.1], "top_k": 3}).json()

    assert [hit["id"] for hit in body] == [0, 1, 2]
    assert set(body[0]) == {"id", "values", "metadata", "score"}
    assert body[0]["score"] == pytest.approx(1.0)
    assert body[0]["metadata"] == {"n": 0, "even": True}
    assert body[0]["score"] > body[1]["score"] > body[2]["score"]


def test_top_k_is_ten_unless_said(api):
    api.put("/vectors/batch", {"vectors": [{"id": number, "values": [1, number]} for number in range(20)]})

    assert len(api.post("/search", {"query": [1, 0]}).json()) == 10
    assert len(api.post("/search", {"query": [1, 0], "top_k": 1000}).json()) == 20


def test_a_search_by_id_is_a_search_by_its_values(shoes):
    values = shoes.get("/vectors/3").json()["values"]

    by_id = shoes.post("/search", {"id": 3, "top_k": 4}).json()
    by_values = shoes.post("/search", {"query": values, "top_k": 4}).json()

    assert by_id == by_values
    assert by_id[0]["id"] == 3


@pytest.mark.parametrize(("metric", "score"), [("cosine", 0.9997500937), ("ip", 10.01), ("l2", 81.0)])
def test_the_metric_is_chosen_at_query_time(api, metric, score):
    api.post("/vectors", {"id": 1, "values": [10, 0, 0.1]})

    body = api.post("/search", {"query": [1, 0, 0.1], "metric": metric}).json()

    expected = {"cosine": (10 + 0.01) / (np.hypot(10, 0.1) * np.hypot(1, 0.1)), "ip": 10.01, "l2": 81.0}[metric]
    assert body[0]["score"] == pytest.approx(expected, rel=1e-5)


def test_values_and_metadata_are_left_out_when_not_wanted(shoes):
    body = shoes.post("/search", {"id": 1, "top_k": 2, "with_values": False, "with_metadata": False}).json()

    assert [set(hit) for hit in body] == [{"id", "score"}, {"id", "score"}]


def test_a_filter_limits_the_search(shoes):
    body = shoes.post("/search", {"query": [1, 0, 0], "filter": {"n__gte": 2, "even": True}}).json()

    assert [hit["id"] for hit in body] == [2, 4]


def test_offset_skips_and_score_threshold_cuts(shoes):
    everything = shoes.post("/search", {"query": [1, 0, 0]}).json()

    later = shoes.post("/search", {"query": [1, 0, 0], "offset": 2, "top_k": 2}).json()
    better = shoes.post("/search", {"query": [1, 0, 0], "score_threshold": everything[2]["score"]}).json()

    assert later == everything[2:4]
    assert better == everything[:3]


def test_null_options_are_as_if_left_out(shoes):
    options = dict.fromkeys(
        [
            "id",
            "top_k",
            "metric",
            "filter",
            "recall",
            "exact",
            "with_values",
            "with_metadata",
            "score_threshold",
            "offset",
        ]
    )

    assert (
        shoes.post("/search", {"query": [1, 0, 0], **options}).json()
        == shoes.post("/search", {"query": [1, 0, 0]}).json()
    )


def test_recall_and_exact_are_taken(shoes):
    expected = shoes.post("/search", {"query": [1, 0, 0]}).json()

    assert shoes.post("/search", {"query": [1, 0, 0], "recall": 0.9}).json() == expected
    assert shoes.post("/search", {"query": [1, 0, 0], "recall": 1}).json() == expected
    assert shoes.post("/search", {"query": [1, 0, 0], "exact": True}).json() == expected


def test_explain_answers_an_object_with_the_shards(shoes):
    plain = shoes.post("/search", {"id": 1, "top_k": 2}).json()

    body = shoes.post("/search?explain=1", {"id": 1, "top_k": 2}).json()

    assert list(body) == ["results", "complete", "shards", "took_ms"]
    assert body["results"] == plain
    assert body["complete"] is True
    assert set(body["shards"][0]) == {"shard", "copy", "lag", "took_ms", "strategy", "candidates"}
    assert body["shards"][0]["shard"] == "shard_0"
    assert body["took_ms"] > 0
    assert shoes.post("/search?explain=0", {"id": 1, "top_k": 2}).json() == plain


def test_a_batch_answers_a_list_for_each_search(shoes):
    searches = [{"id": 1, "top_k": 2}, {"query": [0, 1, 0], "metric": "l2", "top_k": 1}, {"id": 5, "filter": {"n": -1}}]

    body = shoes.post("/search/batch", {"searches": searches}).json()

    assert body == [shoes.post("/search", search).json() for search in searches]
    assert [len(hits) for hits in body] == [2, 1, 0]


def test_a_batch_can_be_explained(shoes):
    body = shoes.post("/search/batch?explain=1", {"searches": [{"id": 1}, {"id": 2}]}).json()

    assert len(body["results"]) == 2
    assert body["complete"] is True


def test_an_unknown_namespace_reads_empty(api):
    assert api.post("/search?namespace=none", {"query": [1, 2]}).json() == []
    assert api.post("/search/batch?namespace=none", {"searches": [{"query": [1]}]}).json() == [[]]
    assert api.post("/count?namespace=none").json() == {"count": 0}
    assert api.post("/vectors/fetch?namespace=none", {"ids": [1]}).json() == {"vectors": [], "missing": [1]}
    assert api.get("/namespaces/vectors?namespace=none").json() == []


def test_count_counts_all_or_what_matches(shoes):
    assert shoes.post("/count").json() == {"count": 6}
    assert shoes.post("/count", {}).json() == {"count": 6}
    assert shoes.post("/count", {"filter": None}).json() == {"count": 6}
    assert shoes.post("/count", {"filter": {}}).json() == {"count": 6}
    assert shoes.post("/count", {"filter": {"even": True}}).json() == {"count": 3}


def test_scores_of_the_largest_float32_values_are_numbers(api):
    largest = float(np.finfo(np.float32).max)
    api.put(
        "/vectors/batch", {"vectors": [{"id": 1, "values": [largest, largest]}, {"id": 2, "values": [-largest, 0]}]}
    )

    for metric in ("cosine", "ip", "l2"):
        body = orjson.loads(api.post("/search", {"query": [largest, -largest], "metric": metric}).content)
        assert all(isinstance(hit["score"], float) for hit in body), (metric, body)
