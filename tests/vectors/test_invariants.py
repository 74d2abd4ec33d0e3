"""Invariants of the design that are about how the code goes about its work."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from django.conf import settings as site_settings
from django.db import connection

from vectors import runtime
from vectors.engine import search
from vectors.engine.filters import parse_filter
from vectors.query_processor import LocalQueryProcessor, SearchRequest
from vectors.store import log

SOURCES = sorted(
    path
    for app in ("mlvdb_site", "vectors", "cluster")
    for path in (Path(site_settings.BASE_DIR) / app).rglob("*.py")
    if "migrations" not in path.parts
)


def test_invariant_5_numpy_work_holds_neither_the_engine_nor_the_database(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 200), namespace="a")
    seen = []
    engine = runtime.runtime().shard(shard.head.pk).opened.engine

    def watched(call):
        def run(*args, **kwargs):
            assert not connection.in_atomic_block
            assert not engine.lock._is_owned()
            seen.append(call.__name__)
            return call(*args, **kwargs)

        return run

    for name in ("search", "search_batch", "count", "scroll", "matching_keys"):
        monkeypatch.setattr(search, name, watched(getattr(search, name)))
    request = SearchRequest(query=batch(0, 1).values[0], filter=parse_filter({"n__lt": 50}))
    shard.queries.find_similar(request, namespace="a")
    shard.queries.search_batch([request, request], namespace="a")
    shard.queries.count(namespace="a", filter=request.filter)
    shard.queries.scroll(namespace="a", limit=5)
    shard.queries.delete(namespace="a", filter=request.filter)
    assert {"search", "search_batch", "count", "scroll", "matching_keys"} <= set(seen)


def test_invariant_5_a_knock_is_published_outside_the_transaction_and_the_request(shard, batch, settings, wait_for):
    settings.MLVDB_TAIL_SOFT_BYTES = 1024
    knocks = []

    def publish(shard_uid):
        knocks.append((shard_uid, connection.in_atomic_block, log.read_head(shard.head.pk).last_seq))
        connection.close()

    queries = LocalQueryProcessor(shard.head.pk, request_checkpoint=publish)
    queries.upsert_many(batch(0, 300), namespace="a")
    wait_for(lambda: knocks)
    assert knocks[0] == (shard.head.uid, False, 2)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(site_settings.BASE_DIR)))
def test_invariant_10_no_interval_is_taken_from_the_wall_clock(path):
    calls = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    assert not calls & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
