"""Recall over shards: what a search asks for reaches every shard, and what the shards find becomes one number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.query_processor import ClusterQueryProcessor
from cluster.query_processor.sharded.merge import merged_infos
from tests.cluster.shards import rows
from vectors.engine import search
from vectors.models import Namespace
from vectors.query_processor import NamespaceInfo, SearchRequest
from vectors.recall import requests

NAMESPACE = "books"
EMPTY = NamespaceInfo(NAMESPACE, "u" * 32, 3, "cosine", 0.99, "", 0, 0, 0, 0, None)


@pytest.fixture
def queries() -> ClusterQueryProcessor:
    return ClusterQueryProcessor()


@pytest.fixture
def wanted(monkeypatch) -> list[tuple[float | None, bool]]:
    """What the engines of all shards are asked for."""
    noted: list[tuple[float | None, bool]] = []
    one, many = search.search, search.search_batch

    def single(view, asked):
        noted.append((asked.recall, asked.exact))
        return one(view, asked)

    def batch(view, asked):
        noted.extend((item.recall, item.exact) for item in asked)
        return many(view, asked)

    monkeypatch.setattr(search, "search", single)
    monkeypatch.setattr(search, "search_batch", batch)
    return noted


@pytest.mark.parametrize(("recall", "exact"), [(None, False), (0.9, False), (None, True), (1.0, False)])
def test_recall_and_exact_reach_local_and_remote_shards(coordinator, queries, wanted, recall, exact):
    shards = coordinator(local=1, remote=1)
    queries.upsert_many(rows(*range(20)), namespace=NAMESPACE)
    request = SearchRequest(query=np.ones(3, "f4"), recall=recall, exact=exact)

    queries.find_similar(request, namespace=NAMESPACE)
    queries.find_similar(replace(request, query=None, key=rows(3).keys[0]), namespace=NAMESPACE)
    queries.search_batch([request, request], namespace=NAMESPACE)

    assert wanted == [(recall, exact)] * 8
    remote = [asked.arguments["request"] for asked in shards.remote[0].asked if asked.operation == "find_similar"]
    assert [(asked.recall, asked.exact) for asked in remote] == [(recall, exact)] * 2


def test_a_raised_target_is_a_wish_at_every_shard(coordinator, queries):
    coordinator(local=2)
    queries.upsert_many(rows(*range(20)), namespace=NAMESPACE)
    queries.namespace_put(NAMESPACE, recall_target=0.999)

    for namespace in Namespace.objects.filter(name=NAMESPACE):
        assert namespace.recall_target == 0.999
        assert list(requests.pending(namespace.shard_id)) == [namespace.uid]
    assert Namespace.objects.filter(name=NAMESPACE).count() == 2


class TestMerged:
    def test_the_recall_of_all_is_the_mean_over_their_rows(self):
        large = replace(EMPTY, count=300, indexed_rows=300, measured_recall=0.98, recall_measured_at="2026-02-02")
        small = replace(EMPTY, count=100, indexed_rows=90, measured_recall=1.0, recall_measured_at="2026-01-01")
        merged = merged_infos([large, small], EMPTY)

        assert merged.measured_recall == pytest.approx(0.985)
        assert (merged.indexed_rows, merged.recall_measured_at) == (390, "2026-01-01")

    def test_a_shard_without_an_index_finds_everything(self):
        indexed = replace(EMPTY, count=100, indexed_rows=100, measured_recall=0.9, recall_measured_at="2026-01-01")
        merged = merged_infos([indexed, replace(EMPTY, count=100)], EMPTY)

        assert merged.measured_recall == pytest.approx(0.95)
        assert merged.recall_measured_at == "2026-01-01"

    def test_without_any_index_nothing_is_measured(self):
        merged = merged_infos([replace(EMPTY, count=100), replace(EMPTY, count=50)], EMPTY)

        assert (merged.count, merged.measured_recall, merged.recall_measured_at) == (150, None, None)

    def test_what_one_shard_has_never_measured_has_no_time(self):
        measured = replace(EMPTY, count=100, indexed_rows=100, measured_recall=0.9, recall_measured_at="2026-01-01")
        tuned = replace(EMPTY, count=100, indexed_rows=100, measured_recall=0.99)

        assert merged_infos([measured, tuned], EMPTY).recall_measured_at is None
