"""The slots of a shard copy: what may be written, and what a request that was planned over shards may see."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from django.db import connection

from vectors import runtime, services
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import (
    Conflict,
    DimensionMismatch,
    NamespaceNotFound,
    ShardDamaged,
    SlotsClosed,
    StaleScope,
    VectorNotFound,
)
from vectors.models import LogEntry, Namespace, ShardHead, ShardSlots
from vectors.namespace_uids import ordered_uid
from vectors.query_processor import RequestOptions, Scope, SearchRequest
from vectors.store import appender as appenders
from vectors.store import log, recovery
from vectors.store.slots import SlotsNow, slots_now, slots_set

SEARCH = SearchRequest(query=np.ones(4, "f4"), top_k=100)
KEYS = [ids.key_of(number) for number in range(10)]


def slots_of(*numbers: int) -> SlotSet:
    return SlotSet.of(ids.slots_of([ids.key_of(number) for number in numbers]))


def scoped(epoch: int, owned: SlotSet | None = None, spec: NamespaceSpec | None = None) -> RequestOptions:
    return RequestOptions(scope=Scope(epoch, owned, spec))


def uid_of(letter: str) -> str:
    """Return a uid of a registry: later letters were made later."""
    return ordered_uid(now_ms=ord(letter))[:13] + letter * 19


def spec_of(letter: str, *, name: str = "a", dimension: int = 4) -> NamespaceSpec:
    return NamespaceSpec(uid_of(letter), name, dimension, "cosine", 0.99)


# What is set.


def test_a_copy_that_was_never_told_of_slots_has_none(shard):
    assert slots_now(shard.head.pk) is None


def test_what_is_set_holds_and_the_same_again_adds_nothing(shard):
    first = slots_set(shard.head.pk, epoch=3, writable=slots_of(1))
    again = slots_set(shard.head.pk, epoch=3, writable=slots_of(1))
    other = slots_set(shard.head.pk, epoch=3, writable=slots_of(2))
    newer = slots_set(shard.head.pk, epoch=4, writable=slots_of(2))

    assert [first, again, other, newer] == [(1, 1), (1, 1), (1, 2), (1, 3)]
    assert slots_now(shard.head.pk) == SlotsNow(3, 4, slots_of(2))
    head = log.read_head(shard.head.pk)
    assert (head.slots_seq, head.last_seq) == (3, 3)


def test_the_same_again_is_answered_with_its_own_place_however_far_the_log_has_gone(shard, batch):
    position = slots_set(shard.head.pk, epoch=3, writable=ALL_SLOTS)
    shard.queries.upsert_many(batch(0, 3), namespace="a")

    assert slots_set(shard.head.pk, epoch=3, writable=ALL_SLOTS) == position


def test_whoever_was_overtaken_opens_nothing(shard):
    slots_set(shard.head.pk, epoch=5, writable=NO_SLOTS)

    with pytest.raises(StaleScope) as caught:
        slots_set(shard.head.pk, epoch=4, writable=ALL_SLOTS)

    assert (caught.value.detail, slots_now(shard.head.pk).writable) == ({"epoch": 5}, NO_SLOTS)


# The gate.


WRITES = [
    lambda queries, batch: queries.upsert_many(batch(0, 5, seed=1), namespace="a"),
    lambda queries, batch: queries.insert(batch(3, 1, seed=1), namespace="a"),
    lambda queries, batch: queries.patch(KEYS[3], metadata=b'{"x":1}', namespace="a"),
    lambda queries, batch: queries.delete(keys=KEYS[:5], namespace="a"),
    lambda queries, batch: queries.delete(filter=parse_filter({"n__lt": 5}), namespace="a"),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("is_known", [False, True])
def test_rows_of_a_closed_slot_are_refused_whole_and_leave_nothing(shard, batch, write, is_known):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS - slots_of(3))
    if is_known:
        # The process has seen the gate: it computes the slots before it waits for the log.
        shard.queries.upsert_many(batch(50, 1), namespace="a")
    before = (log.read_head(shard.head.pk), shard.served_digest("a"))

    with pytest.raises(SlotsClosed) as caught:
        write(shard.queries, batch)

    assert (caught.value.status, caught.value.code) == (409, "slots_closed")
    assert caught.value.detail == {"shard": "shard_0", "slots": [ids.slot_of(KEYS[3])], "count": 1}
    assert (log.read_head(shard.head.pk), shard.served_digest("a")) == before


@pytest.mark.parametrize("write", WRITES)
def test_rows_of_open_slots_are_written_beside_closed_ones(shard, batch, write):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=2, writable=slots_of(*range(5)))

    assert write(shard.queries, batch).count


def test_a_slot_that_is_opened_again_is_written_again(shard, batch):
    for epoch, writable in enumerate([NO_SLOTS, slots_of(1), NO_SLOTS, ALL_SLOTS], start=1):
        slots_set(shard.head.pk, epoch=epoch, writable=writable)
        if writable == NO_SLOTS:
            with pytest.raises(SlotsClosed):
                shard.queries.insert(batch(1, 1), namespace="a")
        else:
            shard.queries.insert(batch(1, 1), namespace="a")


def test_one_refused_write_of_a_group_takes_no_other_with_it(shard, batch, wait_for):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS - slots_of(3))
    appender = runtime.runtime().shard(shard.head.pk).appender
    outcomes: dict[int, object] = {}

    def write(number: int) -> None:
        try:
            outcomes[number] = shard.queries.insert(batch(number, 1, seed=2), namespace="a").count
        except SlotsClosed as error:
            outcomes[number] = error.code
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    with appender._commit_lock:
        for thread in threads:
            thread.start()
        wait_for(lambda: len(appender._queue) == 6)
    for thread in threads:
        thread.join(timeout=30)

    assert outcomes == {0: 1, 1: 1, 2: 1, 3: "slots_closed", 4: 1, 5: 1}


def test_nothing_is_added_behind_the_entry_that_closes_its_slot(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    start, refused = threading.Event(), threading.Event()

    def write(number: int) -> None:
        start.wait(timeout=30)
        try:
            while not refused.is_set():
                shard.queries.insert(batch(number, 1, seed=3), namespace="a")
        except SlotsClosed:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in (3, 3, 4)]
    for thread in threads:
        thread.start()
    start.set()
    closed_at = slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS - slots_of(3))
    for thread in threads[:2]:
        thread.join(timeout=10)
    are_refused = not any(thread.is_alive() for thread in threads[:2])
    refused.set()
    for thread in threads:
        thread.join(timeout=10)
    assert are_refused

    behind = log.read_after(shard.head.pk, closed_at.seq, through=10**9)
    assert {key for entry in behind for key in entry.operation().keys} <= {KEYS[4]}


def test_another_process_s_change_is_seen_by_the_next_write(shard, batch):
    shard.queries.insert(batch(3, 1), namespace="a")
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS)
    shard.queries.insert(batch(3, 1), namespace="a")
    # As another process does it: nothing in this one is told.
    with log.append_transaction(shard.head.pk) as open_log:
        open_log.set_slots(3, NO_SLOTS)

    with pytest.raises(SlotsClosed):
        shard.queries.insert(batch(3, 1), namespace="a")


def test_a_change_that_is_rolled_back_never_was(shard, batch):
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS)
    shard.queries.insert(batch(3, 1), namespace="a")

    def close_in_vain() -> None:
        with log.append_transaction(shard.head.pk) as open_log:
            open_log.set_slots(3, NO_SLOTS)
            assert open_log.new_head.slots_seq == open_log.new_head.last_seq
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        close_in_vain()

    shard.queries.insert(batch(3, 1), namespace="a")
    slots_set(shard.head.pk, epoch=3, writable=slots_of(4))
    with pytest.raises(SlotsClosed):
        shard.queries.insert(batch(3, 1), namespace="a")


def test_a_head_whose_slots_are_gone_takes_no_rows(shard, batch):
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS)
    ShardSlots.objects.all().delete()

    with pytest.raises(ShardDamaged):
        shard.queries.insert(batch(3, 1), namespace="a")


def test_without_a_gate_a_write_computes_no_slots_and_asks_nothing_more(shard, batch, monkeypatch):
    shard.queries.insert(batch(1, 1), namespace="a")
    asked: list[object] = []
    monkeypatch.setattr(appenders, "slots_of", lambda keys: asked.append(keys) or ids.slots_of(keys))
    monkeypatch.setattr(appenders, "check_open", lambda *_: asked.append("gate"))

    shard.queries.insert(batch(2, 1), namespace="a")
    assert asked == []

    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS)
    shard.queries.insert(batch(2, 1), namespace="a")
    assert asked[-1] == "gate"


def test_the_gate_survives_a_restart_a_checkpoint_and_the_end_of_its_entry(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=7, writable=ALL_SLOTS - slots_of(3))
    shard.queries.insert(batch(4, 1), namespace="a")
    shard.restart()
    assert recovery.open_shard(shard.head.pk).engine.slots_epoch == 7
    assert shard.checkpoint() is not None
    LogEntry.objects.filter(shard=shard.head, seq__lte=ShardHead.objects.get().manifest_seq).delete()
    shard.restart()

    opened = recovery.open_shard(shard.head.pk)
    assert (opened.engine.slots_epoch, opened.engine.seq) == (7, ShardHead.objects.get().last_seq)
    with pytest.raises(SlotsClosed):
        shard.queries.insert(batch(3, 1), namespace="a")
    with pytest.raises(StaleScope):
        shard.queries.count(namespace="a", options=scoped(6))


def test_an_engine_of_an_older_manifest_learns_of_newer_changes_from_the_log(shard, batch):
    slots_set(shard.head.pk, epoch=2, writable=ALL_SLOTS)
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    shard.checkpoint()
    slots_set(shard.head.pk, epoch=5, writable=ALL_SLOTS)

    assert recovery.open_shard(shard.head.pk, replay=False).engine.slots_epoch == 2
    assert recovery.open_shard(shard.head.pk).engine.slots_epoch == 5


# Scopes.


READS = {
    "get": lambda queries, options: queries.get(KEYS[2], namespace="a", options=options),
    "get of a row that is not there": lambda queries, options: queries.get(
        ids.key_of("x"), namespace="a", options=options
    ),
    "get of no namespace": lambda queries, options: queries.get(KEYS[2], namespace="b", options=options),
    "fetch": lambda queries, options: queries.fetch(KEYS, namespace="a", options=options),
    "search": lambda queries, options: queries.find_similar(SEARCH, namespace="a", options=options),
    "search by id": lambda queries, options: queries.find_similar(
        SearchRequest(key=ids.key_of("x")), namespace="a", options=options
    ),
    "batch": lambda queries, options: queries.search_batch([SEARCH] * 2, namespace="a", options=options),
    "count": lambda queries, options: queries.count(namespace="a", options=options),
    "count of no namespace": lambda queries, options: queries.count(namespace="b", options=options),
    "scroll": lambda queries, options: queries.scroll(namespace="a", limit=100, options=options),
    "namespace_details": lambda queries, options: queries.namespace_details(options=options),
    "storage_info": lambda queries, options: queries.storage_info(options=options),
    "patch": lambda queries, options: queries.patch(ids.key_of("x"), metadata=b"{}", namespace="a", options=options),
    "delete": lambda queries, options: queries.delete(keys=KEYS, namespace="b", options=options),
    "delete by filter": lambda queries, options: queries.delete(
        filter=parse_filter({"n": 1}), namespace="a", options=options
    ),
}


@pytest.mark.parametrize("ask", READS.values(), ids=READS.keys())
def test_a_request_that_was_planned_before_the_slots_changed_is_refused_before_anything_else(shard, batch, ask):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=5, writable=ALL_SLOTS)
    last_seq = log.read_head(shard.head.pk).last_seq

    with pytest.raises(StaleScope) as caught:
        ask(shard.queries, scoped(4))

    assert (caught.value.status, caught.value.code, caught.value.detail) == (409, "stale_scope", {"epoch": 5})
    assert log.read_head(shard.head.pk).last_seq == last_seq


@pytest.mark.parametrize("epoch", [5, 6])
def test_a_request_of_the_same_or_a_newer_epoch_is_answered(shard, batch, epoch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    slots_set(shard.head.pk, epoch=5, writable=ALL_SLOTS)

    assert shard.queries.count(namespace="a", options=scoped(epoch)).value == 10


def test_the_epoch_is_looked_at_after_the_rows(shard, batch, monkeypatch):
    """A change between the two looks is noticed; the other way round its rows would be answered as of before it."""
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    engine = runtime.runtime().shard(shard.head.pk).opened.engine
    view_and_places = type(engine).view_and_places

    def changed_after(self, *args, **kwargs):
        found = view_and_places(self, *args, **kwargs)
        self.slots_epoch = 5
        return found

    monkeypatch.setattr(type(engine), "view_and_places", changed_after)

    with pytest.raises(StaleScope):
        shard.queries.count(namespace="a", options=scoped(4))


def test_rows_of_other_slots_are_in_no_answer(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    owned, options = [1, 4, 6], scoped(1, slots_of(1, 4, 6))
    keys = [KEYS[number] for number in owned]
    queries = shard.queries

    assert queries.count(namespace="a", options=options).value == 3
    assert queries.count(namespace="a", filter=parse_filter({"n__gt": 3}), options=options).value == 2
    assert sorted(hit.key for hit in queries.find_similar(SEARCH, namespace="a", options=options).value) == keys
    by_id = SearchRequest(key=KEYS[4], top_k=100)
    assert sorted(hit.key for hit in queries.find_similar(by_id, namespace="a", options=options).value) == keys
    found = queries.search_batch([SEARCH, by_id], namespace="a", options=options).value
    assert [sorted(hit.key for hit in hits) for hits in found] == [keys, keys]
    page = queries.scroll(namespace="a", limit=100, options=options).value
    assert [record.key for record in page.records] == keys
    fetched = queries.fetch(KEYS, namespace="a", options=options).value
    assert [record.key for record in fetched.records] == keys
    assert fetched.missing == [key for key in KEYS if key not in keys]
    [details] = queries.namespace_details(options=options).value
    assert details.count == 3
    info = queries.storage_info(options=options).value
    assert (info.total_vectors, info.vectors_per_namespace) == (3, {"a": 3})
    for ask in (
        lambda: queries.get(KEYS[2], namespace="a", options=options),
        lambda: queries.find_similar(SearchRequest(key=KEYS[2]), namespace="a", options=options),
        lambda: queries.patch(KEYS[2], metadata=b"{}", namespace="a", options=options),
    ):
        with pytest.raises(VectorNotFound):
            ask()
    assert queries.count(namespace="a").value == 10


def test_a_delete_by_filter_takes_only_rows_of_the_slots_it_is_about(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")

    deleted = shard.queries.delete(filter=parse_filter({"n__gte": 0}), namespace="a", options=scoped(1, slots_of(1, 4)))

    assert deleted.count == 2
    left = shard.queries.scroll(namespace="a", limit=100).value.records
    assert [record.key for record in left] == [key for number, key in enumerate(KEYS) if number not in (1, 4)]


# Namespaces of a registry.


def test_a_write_takes_in_the_namespace_that_its_registry_means(shard, batch):
    result = shard.queries.upsert_many(batch(0, 3), namespace="a", options=scoped(1, spec=spec_of("e")))

    assert result.count == 3
    assert list(Namespace.objects.values_list("uid", "name", "dimension")) == [(uid_of("e"), "a", 4)]
    assert shard.queries.count(namespace="a", options=scoped(1, spec=spec_of("e"))).value == 3


def test_a_write_ends_what_a_drop_left_behind_under_its_name(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    old = Namespace.objects.get()

    shard.queries.upsert_many(
        batch(0, 2, dimension=6), namespace="a", options=scoped(1, spec=spec_of("e", dimension=6))
    )

    old.refresh_from_db()
    assert old.dropped_at is not None
    assert shard.queries.count(namespace="a").value == 2
    assert shard.digest("a") == shard.served_digest("a")


def test_a_write_to_a_namespace_that_ended_here_is_refused_and_ends_nothing(shard, batch):
    meant = spec_of("e")
    shard.queries.upsert_many(batch(0, 3), namespace="a", options=scoped(1, spec=meant))
    shard.queries.upsert_many(batch(0, 2), namespace="a", options=scoped(1, spec=spec_of("f")))

    with pytest.raises(NamespaceNotFound):
        shard.queries.upsert_many(batch(5, 1), namespace="a", options=scoped(1, spec=meant))

    assert shard.queries.count(namespace="a", options=scoped(1, spec=spec_of("f"))).value == 2


def test_a_late_write_to_a_namespace_that_was_dropped_ends_nothing_of_the_one_made_since(shard, batch):
    newer = scoped(1, spec=spec_of("e", dimension=6))
    shard.queries.upsert_many(batch(0, 3, dimension=6), namespace="a", options=newer)

    # This copy has never heard of the one that was dropped, nor of its end.
    with pytest.raises(NamespaceNotFound):
        shard.queries.upsert_many(batch(5, 1), namespace="a", options=scoped(1, spec=spec_of("d")))

    assert shard.queries.count(namespace="a", options=newer).value == 3
    assert list(Namespace.objects.values_list("uid", "dropped_at")) == [(uid_of("e"), None)]


def test_where_nothing_says_which_of_two_namespaces_was_made_later_none_ends(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    meant = NamespaceSpec("e" * 32, "a", 4, "cosine", 0.99)

    with pytest.raises(Conflict):
        shard.queries.upsert_many(batch(0, 2), namespace="a", options=scoped(1, spec=meant))

    assert shard.queries.count(namespace="a").value == 10


def test_a_namespace_that_is_dropped_between_the_look_and_the_append_is_the_registry_s_to_make_anew(shard, batch):
    meant = spec_of("e")
    shard.queries.upsert_many(batch(0, 3), namespace="a", options=scoped(1, spec=meant))
    # As another process does it: this one's engine does not know yet.
    services.namespace_drop(shard.head.pk, "a")

    with pytest.raises(NamespaceNotFound):
        shard.queries.upsert_many(batch(0, 3), namespace="a", options=scoped(1, spec=meant))

    assert not Namespace.objects.filter(dropped_at__isnull=True).exists()


def test_rows_of_another_dimension_than_the_registry_says_make_no_namespace(shard, batch):
    with pytest.raises(DimensionMismatch):
        shard.queries.upsert_many(batch(0, 3), namespace="a", options=scoped(1, spec=spec_of("e", dimension=5)))

    assert not Namespace.objects.exists()


def test_another_namespace_of_that_name_is_not_there_for_a_request(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    options, queries = scoped(1, spec=spec_of("e")), shard.queries

    assert queries.count(namespace="a", options=options).value == 0
    assert queries.find_similar(SEARCH, namespace="a", options=options).value == []
    assert queries.search_batch([SEARCH] * 2, namespace="a", options=options).value == [[], []]
    assert queries.scroll(namespace="a", limit=5, options=options).value.records == []
    assert queries.fetch(KEYS, namespace="a", options=options).value.missing == KEYS
    assert queries.namespace_details(options=options).value == []
    assert queries.storage_info(options=options).value.total_vectors == 0
    for ask in (
        lambda: queries.get(KEYS[1], namespace="a", options=options),
        lambda: queries.patch(KEYS[1], metadata=b"{}", namespace="a", options=options),
        lambda: queries.delete(keys=KEYS, namespace="a", options=options),
        lambda: queries.delete(filter=parse_filter({"n": 1}), namespace="a", options=options),
    ):
        with pytest.raises(NamespaceNotFound):
            ask()
    own = replace(options, scope=replace(options.scope, namespace=None))
    assert queries.count(namespace="a", options=own).value == 10
