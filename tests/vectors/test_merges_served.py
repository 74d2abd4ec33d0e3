"""A served engine and what merges made: it goes over to it while it answers."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from django.db import connection

from tests.vectors.merges import DIMENSION, directory_of, exact_answer, load
from vectors import runtime
from vectors.engine import ids, search
from vectors.engine.distances import Query
from vectors.engine.filters import parse_filter
from vectors.engine.slots import SlotSet
from vectors.models import IndexRequest, Manifest, Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.recall import requests
from vectors.store import recovery, segment_writing
from vectors.store.manifests import document_crc32

pytestmark = pytest.mark.usefixtures("small_indexes")

OPEN_SHARD = recovery.open_shard


def test_a_served_engine_swaps_to_the_merged_segment_and_reuses_the_others(shard, batch, wait_for):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    before = shard.served_digest("a")
    engine = runtime.runtime().shard(shard.head.pk)
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    shard.merge()
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert shard.served_digest("a") == before
    matrix = next(iter(engine.opened.parts.values())).matrix
    load(shard, batch, 5, start=1000, dimension=4)
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert any(part.matrix is matrix for part in engine.opened.parts.values())
    assert shard.served_digest("a")[0] == 245


def test_a_served_engine_takes_merged_segments_without_replaying_its_tail(shard, batch, monkeypatch, wait_for):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    engine = runtime.runtime().shard(shard.head.pk)
    shard.queries.count(namespace="a")
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    # Of rows in segments some are deleted, some written again, and one is merged with a patch, in the tail alone.
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(50, 70)])
    shard.queries.upsert_many(batch(100, 30, dimension=4, seed=7), namespace="a")
    expected = shard.served_digest("a")
    served = engine.opened
    monkeypatch.setattr(recovery, "open_shard", lambda *args, **names: pytest.fail("it was opened anew"))
    with monkeypatch.context() as plain:
        plain.setattr(recovery, "open_shard", OPEN_SHARD)
        shard.merge()
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert engine.opened is served
    assert len(engine.opened.parts) == 1
    assert shard.served_digest("a") == expected
    monkeypatch.undo()
    assert shard.digest("a") == expected


def test_segments_of_other_rows_are_not_taken(shard, batch):
    """Whatever made them: a process that cannot account for each row builds its engine anew."""
    load(shard, batch, 60, 60, dimension=4)
    engine = runtime.ShardRuntime(shard.head.pk, budget=None)
    engine.fresh(timeout_s=10)
    shard.merge()
    manifest = Manifest.objects.get(number=ShardHead.objects.get().manifest)
    (space,) = manifest.document["namespaces"].values()
    uid = space["segments"][0]["uid"]
    name, stamp = segment_writing.write_deleted(
        directory_of(shard) / uid, seq=manifest.seq, deleted=np.arange(120) == 3, token=1
    )
    space["segments"][0]["deleted"] = [name, stamp.size, stamp.crc32, 1]
    manifest.crc32 = document_crc32(manifest.document)
    manifest.save()
    before = engine.opened
    assert engine.swap()
    assert engine.opened is not before
    assert engine.opened.engine.view("a").count == 119


def test_a_served_engine_takes_a_new_index_over_the_rows_it_has(shard, batch):
    load(shard, batch, 700)
    engine = runtime.ShardRuntime(shard.head.pk, budget=None)
    served = engine.fresh(timeout_s=10)
    (part,) = served.parts.values()
    assert part.index is None
    shard.merge()
    assert engine.swap()
    assert not engine.swap()
    assert engine.opened is served
    assert list(served.parts.values()) == [part]
    assert part.index is not None


def test_an_index_that_goes_while_a_search_asks_it_fails_no_search(shard, batch, monkeypatch):
    """A new manifest may list the segment without: no setting reaches a raised target, say."""
    load(shard, batch, 700)
    shard.merge()
    shard.restart()
    shard.queries.count(namespace="a")
    engine = runtime.runtime().shard(shard.head.pk)
    (part,) = engine.opened.parts.values()
    assert part.index is not None
    is_safe = search.is_safe_in_float32

    def goes_now(*arguments):
        part.index = None
        return is_safe(*arguments)

    monkeypatch.setattr(search, "is_safe_in_float32", goes_now)
    request = SearchRequest(query=batch(5, 1, dimension=DIMENSION, seed=99).values[0], top_k=20)
    assert len(shard.queries.find_similar(request, namespace="a").value) == 20
    assert part.index is None


def test_searches_during_swaps_answer_the_truth(shard, batch, settings):
    """Merges and checkpoints follow each other while searches ask for exact answers."""
    settings.MLVDB_SEGMENT_TIER = 2
    load(shard, batch, 300, 200)
    expected = exact_answer(shard, batch)
    stop, right, wrong = threading.Event(), [], []

    def search():
        try:
            while not stop.is_set():
                answer = exact_answer(shard, batch)
                (right if answer == expected else wrong).append(answer)
        except Exception as error:
            wrong.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        far = np.full((1, DIMENSION), -1.0, dtype=np.float32)
        for number in range(6):
            rows = batch(5000 + number, 1, dimension=DIMENSION)
            rows.values[:] = far * np.sign(batch(5, 1, dimension=DIMENSION, seed=99).values)
            shard.queries.upsert_many(rows, namespace="a")
            shard.checkpoint()
            shard.merge()
            runtime.runtime().shard(shard.head.pk).swap()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert right


def test_what_merges_have_replaced_is_let_go_at_once(shard, batch):
    """Its files are mapped, and gone from the directory: their space comes back with the last reference."""
    load(shard, batch, 700, 100)
    engine = runtime.ShardRuntime(shard.head.pk, budget=None)
    engine.fresh(timeout_s=10)
    gc.collect()
    gc.disable()
    try:
        shard.merge()
        assert engine.swap()
        load(shard, batch, 20, start=2000)
        assert engine.swap()
        ask(engine, batch)
        (indexed,) = (part for part in engine.opened.parts.values() if part.index is not None)
        index = weakref.ref(indexed.index)
        del indexed
        requests.ask(Namespace.objects.get(), IndexRequest.Reason.ASKED)
        shard.merge()
        assert engine.swap()
        assert index() is None, "an index that was made anew"
        ask(engine, batch)
        parts = [weakref.ref(part) for part in engine.opened.parts.values()]
        load(shard, batch, 400, 400, start=4000)
        shard.merge()
        assert engine.swap()
        assert {part() for part in parts} == {None}
    finally:
        gc.enable()


def ask(engine, batch):
    """Search with a filter and without, and within slots, so that views and selections are kept."""
    query = Query.of(batch(5, 1, dimension=DIMENSION, seed=99).values[0], "cosine")
    view = engine.fresh(timeout_s=10).engine.view("a")
    for filter in (None, parse_filter({"n__gt": 5}), parse_filter({"n__gt": 5})):
        search.search(view, search.Wanted(query, 10, filter=filter))
    search.search(view.only(SlotSet.of(range(8000))), search.Wanted(query, 10))
