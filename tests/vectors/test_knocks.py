"""Knocks: the first write since the senders looked tells them, once, whatever process it is in."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from vectors.engine import ids
from vectors.errors import NamespaceNotFound
from vectors.models import Namespace
from vectors.query_processor import LocalQueryProcessor
from vectors.store import log


@pytest.fixture
def told(shard):
    """Return the uids of the shards that the senders were told of, in order; the shard's own processor tells them."""
    heard = []
    shard.queries.on_knock = heard.append
    return heard


def test_the_first_write_after_a_look_knocks_and_the_next_ones_do_not(shard, batch, told):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    assert told
    told.clear()
    for number in range(3):
        shard.queries.upsert_many(batch(number, 1), namespace="a")
    assert told == []
    assert log.read_head(shard.head.pk).knocked
    for number in range(2):
        log.knock_clear(shard.head.pk)
        log.knock_clear(shard.head.pk)
        assert not log.read_head(shard.head.pk).knocked
        shard.queries.upsert_many(batch(number, 1), namespace="a")
        shard.queries.patch(ids.key_of(0), metadata=b"{}", namespace="a")
        shard.queries.delete(namespace="a", keys=[ids.key_of(number)])
        assert told == [shard.head.uid] * (number + 1)
        shard.queries.upsert_many(batch(0, 1), namespace="a")


def test_of_two_processes_only_the_one_whose_write_came_first_knocks(shard, batch, told):
    elsewhere = []
    other = LocalQueryProcessor(shard.head.pk, on_knock=elsewhere.append)
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    log.knock_clear(shard.head.pk)
    told.clear()
    other.upsert_many(batch(1, 1), namespace="a")
    shard.queries.upsert_many(batch(2, 1), namespace="a")
    assert (told, elsewhere) == ([], [shard.head.uid])


def test_many_writers_at_once_knock_once(shard, batch, told):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    told.clear()
    log.knock_clear(shard.head.pk)

    def write(start):
        try:
            for number in range(start, start + 10):
                shard.queries.upsert_many(batch(number, 1), namespace="a")
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert told == [shard.head.uid]


def test_changes_of_namespaces_knock(shard, told):
    shard.queries.namespace_put("a", dimension=3)
    assert told == [shard.head.uid]
    shard.queries.namespace_drop("a")
    assert told == [shard.head.uid] * 2
    with pytest.raises(NamespaceNotFound):
        shard.queries.namespace_drop("a")
    assert told == [shard.head.uid] * 2


def test_a_refused_write_does_not_knock(shard, batch, told, settings):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    log.knock_clear(shard.head.pk)
    told.clear()
    settings.MLVDB_TAIL_HARD_BYTES = 1
    with pytest.raises(Exception, match="MLVDB_TAIL_HARD_BYTES"):
        shard.queries.upsert_many(batch(1, 1), namespace="a")
    assert told == []
    assert not log.read_head(shard.head.pk).knocked


def test_a_knock_that_fails_is_no_failed_write(shard, batch):
    def fail(uid):
        raise RuntimeError(uid)

    shard.queries.on_knock = fail
    assert shard.queries.upsert_many(batch(0, 1), namespace="a").count == 1
    assert shard.queries.count(namespace="a").value == 1


def test_the_knock_comes_when_the_write_is_committed_and_no_lock_is_held(shard, batch):
    seen = []

    def look(uid):
        def append():
            try:
                seen.append(log.read_head(shard.head.pk).last_seq)
                with log.append_transaction(shard.head.pk):
                    seen.append(Namespace.objects.count())
            finally:
                connection.close()

        looker = threading.Thread(target=append)
        looker.start()
        looker.join(timeout=30)

    shard.queries.namespace_put("a", dimension=4)
    log.knock_clear(shard.head.pk)
    shard.queries.on_knock = look
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    assert seen == [2, 1]


def test_a_write_answers_its_position_in_words_and_in_numbers(shard, batch):
    result = shard.queries.upsert_many(batch(0, 1), namespace="a")
    assert result.positions == {"shard_0": (shard.head.uid, 1, 2)}
    assert result.seq["shard_0"].endswith(".1.2")
