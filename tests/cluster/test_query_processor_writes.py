"""Writes at a level: committed here first, answered when enough members have them, else 503 with what was reached."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cluster.query_processor import ClusterQueryProcessor, means, writes
from cluster.replication.lanes import Acknowledged
from cluster.transport.errors import PeerError
from tests.cluster.copies import NAMESPACE, Cluster
from tests.cluster.registry import Registry
from vectors.engine import ids
from vectors.errors import Busy, NotEnoughCopies, NotPrimary
from vectors.query_processor import RequestOptions, VectorBatch
from vectors.store import log, terms
from vectors.store.log import Position
from vectors.tokens import token_of

ALL = RequestOptions(consistency="all", timeout_s=5)


class Lanes:
    """In the place of the lanes: what was waited for, and what came of it."""

    def __init__(self) -> None:
        self.outcome: Acknowledged | Exception = Acknowledged(True, 2, 2)
        self.waited: list[tuple[str, Position, str, float]] = []
        self.on_wait = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def wait_for(self, shard_uid: str, position: Position, level: str, *, deadline: float) -> Acknowledged:
        self.waited.append((shard_uid, position, level, deadline))
        self.on_wait.set()
        self.go_on.wait(10)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def lanes(monkeypatch) -> Lanes:
    lanes = Lanes()
    monkeypatch.setattr(writes, "lanes", lanes)
    return lanes


@pytest.fixture
def queries(owner: Registry, lanes, monkeypatch) -> ClusterQueryProcessor:
    Cluster().install(monkeypatch)
    queries = ClusterQueryProcessor()
    queries.namespace_put(NAMESPACE, dimension=3)
    owner.replica("r1")
    lanes.waited.clear()
    return queries


def rows(*keys: object) -> VectorBatch:
    made = [None if key is None else ids.key_of(key) for key in keys]
    return VectorBatch(made, np.ones((len(keys), 3), dtype=np.float32), [b"{}"] * len(keys))


def head(owner: Registry) -> log.Head:
    found = log.read_head(owner.head.pk)
    assert found is not None
    return found


WRITES = [
    lambda queries, options: queries.insert(rows(1), namespace=NAMESPACE, options=options),
    lambda queries, options: queries.upsert_many(rows(1, 2), namespace=NAMESPACE, options=options),
    lambda queries, options: queries.patch(ids.key_of(0), metadata=b'{"a":1}', namespace=NAMESPACE, options=options),
    lambda queries, options: queries.delete(keys=[ids.key_of(0)], namespace=NAMESPACE, options=options),
    lambda queries, options: queries.namespace_put("new", dimension=3, options=options),
    lambda queries, options: queries.namespace_put(NAMESPACE, dimension=3, options=options),
    lambda queries, options: queries.namespace_drop(NAMESPACE, options=options),
]


@pytest.mark.parametrize("write", WRITES)
def test_every_write_waits_for_its_level_at_its_place_in_the_log(queries, owner, lanes, write):
    queries.insert(rows(0), namespace=NAMESPACE)

    write(queries, ALL)

    [(uid, position, level, _deadline)] = lanes.waited
    assert (uid, position, level) == (owner.head.uid, head(owner).position, "all")


@pytest.mark.parametrize("write", WRITES)
def test_at_one_no_write_waits(queries, lanes, write):
    queries.insert(rows(0), namespace=NAMESPACE)

    write(queries, RequestOptions())

    assert lanes.waited == []


def test_what_was_not_reached_is_answered_with_ids_and_token_and_the_write_is_there(queries, owner, lanes):
    lanes.outcome = Acknowledged(False, 1, 2, {"r1": "it is silent"})

    with pytest.raises(NotEnoughCopies) as failed:
        queries.upsert_many(rows("a", None), namespace=NAMESPACE, options=ALL)

    detail = failed.value.detail
    assert (detail["acknowledged"], detail["required"], detail["copies"]) == (1, 2, {"r1": "it is silent"})
    made = detail["ids"]
    assert made[0] == "a"
    term, seq = head(owner).position
    assert detail["seq"] == {"shard_0": token_of(owner.head.uid, term=term, seq=seq)}
    # A retry sends the ids of the answer, the one that was made included, and changes nothing.
    lanes.outcome = Acknowledged(True, 2, 2)
    assert queries.count(namespace=NAMESPACE).value == 2
    queries.upsert_many(rows(*made), namespace=NAMESPACE, options=ALL)
    assert queries.count(namespace=NAMESPACE).value == 2


def test_a_repeated_request_with_an_idempotency_key_has_the_ids_of_the_first(queries, lanes):
    lanes.outcome = Acknowledged(False, 1, 2)
    options = RequestOptions(consistency="all", idempotency_key="once")
    made = []
    for _ in range(2):
        with pytest.raises(NotEnoughCopies) as failed:
            queries.insert(rows(None), namespace=NAMESPACE, options=options)
        made.append(failed.value.detail["ids"])

    assert made[0] == made[1]
    assert queries.count(namespace=NAMESPACE).value == 1


def test_an_error_of_the_wait_does_not_say_that_nothing_was_written(queries, lanes):
    lanes.outcome = PeerError("cannot be asked", url="http://r1")

    with pytest.raises(NotEnoughCopies) as failed:
        queries.insert(rows(None), namespace=NAMESPACE, options=ALL)

    assert len(failed.value.detail["ids"]) == 1
    assert failed.value.detail["acknowledged"] < failed.value.detail["required"]


def test_a_wait_has_what_the_write_itself_left_of_the_time(queries, lanes, settings):
    import time

    settings.MLVDB_WRITE_TIMEOUT_S = 3
    began = time.monotonic()

    queries.insert(rows(1), namespace=NAMESPACE, options=RequestOptions(consistency="quorum"))
    queries.insert(rows(1), namespace=NAMESPACE, options=RequestOptions(consistency="quorum", timeout_s=40))

    default, given = [deadline - began for _uid, _position, _level, deadline in lanes.waited]
    assert 3 <= default < 13
    assert 40 <= given < 50


def test_when_too_many_wait_a_write_is_refused_before_anything_is_written(queries, owner, lanes, settings):
    from django.db import connection

    settings.MLVDB_THREADS = 3
    means.means_forget()
    lanes.go_on.clear()

    def waits() -> None:
        try:
            queries.insert(rows(1), namespace=NAMESPACE, options=ALL)
        finally:
            connection.close()

    waiting = threading.Thread(target=waits)
    waiting.start()
    assert lanes.on_wait.wait(10)
    before = head(owner).position

    with pytest.raises(Busy) as refused:
        queries.insert(rows(2), namespace=NAMESPACE, options=ALL)

    assert refused.value.retry_after_s == 1
    assert head(owner).position == before
    # Whoever need not wait is served.
    queries.insert(rows(2), namespace=NAMESPACE)
    lanes.go_on.set()
    waiting.join()
    queries.insert(rows(3), namespace=NAMESPACE, options=ALL)


@pytest.mark.parametrize("options", [RequestOptions(), ALL])
def test_a_primary_that_has_promised_a_higher_term_says_that_it_is_none(queries, owner, options):
    terms.term_heard(owner.head.pk, 5)

    with pytest.raises(NotPrimary) as refused:
        queries.insert(rows(1), namespace=NAMESPACE, options=options)

    assert refused.value.detail["primary_url"] is None


def test_a_single_node_reaches_every_level_alone(head: Any):
    queries = ClusterQueryProcessor()

    queries.insert(rows(1), namespace=NAMESPACE, options=ALL)

    assert queries.count(namespace=NAMESPACE, options=ALL).value == 1


def test_a_member_that_joins_during_a_write_is_waited_for(owner: Registry, monkeypatch):
    queries = ClusterQueryProcessor()
    queries.namespace_put(NAMESPACE, dimension=3)
    commit = queries._single.upsert_many

    def joined_meanwhile(*args: Any, **more: Any) -> Any:
        result = commit(*args, **more)
        owner.replica("r1")
        return result

    monkeypatch.setattr(queries._single, "upsert_many", joined_meanwhile)

    with pytest.raises(NotEnoughCopies) as failed:
        queries.upsert_many(rows(1), namespace=NAMESPACE, options=RequestOptions(consistency="quorum", timeout_s=2))
    assert failed.value.detail["required"] == 2
