"""Copies with rows of others' slots, as during a move: no row is seen twice or missed, and none is written there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.query_processor import ClusterQueryProcessor
from cluster.query_processor.errors import ShardUnavailable
from cluster.query_processor.sharded import picture as pictures
from cluster.query_processor.sharded import writes
from cluster.topology import reading, topology
from tests.cluster.pauses import on_first_pause
from tests.cluster.shards import Coordinator, rows
from tests.cluster.test_sharded_equality import CHANGES, READS, Pair
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.engine.slots import ALL_SLOTS, SlotSet
from vectors.models import ShardHead
from vectors.query_processor import RequestOptions, SearchRequest
from vectors.store.slots import slots_set

NAMESPACE = "books"
ROWS = 60
SEARCH = SearchRequest(query=np.ones(3, "f4"), top_k=500)


@pytest.fixture
def queries() -> ClusterQueryProcessor:
    return ClusterQueryProcessor()


@pytest.fixture
def moving(coordinator, queries) -> Coordinator:
    """Each of two local and one remote shard has all rows, of which only a third is its own."""
    shards = coordinator(local=2, remote=1)
    for owner in range(3):
        shards.spread(np.full(ids.SLOT_COUNT, owner))
        queries.upsert_many(rows(*range(ROWS), value=float(owner)), namespace=NAMESPACE)
    shards.spread(np.arange(ids.SLOT_COUNT) % 3)
    for shard in shards.shards:
        shards.shard(shard.label, has_foreign=True)
    return shards


def owned(shards: Coordinator, label: str) -> list[int]:
    return [number for number in range(ROWS) if shards.owner_of(number) == label]


def test_rows_of_others_slots_are_in_no_answer(moving, queries):
    everything = [ids.key_of(number) for number in range(ROWS)]

    assert sorted(hit.key for hit in queries.find_similar(SEARCH, namespace=NAMESPACE).value) == everything
    assert [len(hits) for hits in queries.search_batch([SEARCH] * 2, namespace=NAMESPACE).value] == [ROWS] * 2
    assert queries.count(namespace=NAMESPACE).value == ROWS
    assert queries.count(namespace=NAMESPACE, filter=parse_filter({"id__lt": 30})).value == 30
    page = queries.scroll(namespace=NAMESPACE, limit=500).value
    assert [record.key for record in page.records] == everything
    [details] = queries.namespace_details().value
    assert details.count == ROWS
    assert queries.storage_info().value.total_vectors == ROWS


def test_each_row_is_its_owner_s(moving, queries):
    values = {"remote_0": 0.0, "shard_0": 1.0, "shard_1": 2.0}

    fetched = queries.fetch([ids.key_of(number) for number in range(ROWS)], namespace=NAMESPACE).value

    assert len(fetched.records) == ROWS
    for number, record in enumerate(fetched.records):
        assert record.values is not None
        assert record.values[0] == values[moving.owner_of(number)]


def test_without_the_mark_the_same_copies_would_answer_twice(moving, queries):
    for shard in moving.shards:
        moving.shard(shard.label, has_foreign=False)

    assert queries.count(namespace=NAMESPACE).value == 3 * ROWS


def test_only_copies_that_may_hold_others_rows_are_masked(moving, queries):
    [remote] = moving.remote
    queries.count(namespace=NAMESPACE)
    assert remote.asked[-1].options.scope.owned == SlotSet.of_mask(np.arange(ids.SLOT_COUNT) % 3 == 0)

    moving.shard("remote_0", has_foreign=False)
    queries.count(namespace=NAMESPACE)
    assert remote.asked[-1].options.scope.owned is None


def test_a_delete_by_filter_spares_rows_of_others_slots(moving, queries):
    assert queries.delete(filter=parse_filter({"id__lt": 30}), namespace=NAMESPACE).count == 30

    left = {label: owned(moving, label) for label in ("remote_0", "shard_0", "shard_1")}
    for shard in moving.shards:
        moving.shard(shard.label, has_foreign=False)
    # Each copy still has the rows that were not its own to delete.
    gone = sum(number < 30 for numbers in left.values() for number in numbers)
    assert queries.count(namespace=NAMESPACE).value == 3 * ROWS - gone


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), changes=CHANGES, reads=st.lists(READS, min_size=1, max_size=8))
def test_with_others_rows_everywhere_every_answer_is_that_of_one_node(pair_of_foreign, seed, changes, reads):
    pair, litter = pair_of_foreign
    namespace = pair.namespace()
    litter(namespace)
    pair.coordinator.spread(np.random.default_rng(seed).integers(0, 3, ids.SLOT_COUNT))
    # What was there before counts for nobody, until it is written over.
    pair.queries.delete(filter=parse_filter({"old": 1}), namespace=namespace)
    pair.oracle.delete(filter=parse_filter({"old": 1}), namespace=namespace)

    for step in changes:
        pair.same(step, namespace)
    for read in reads:
        pair.same(read, namespace)


@pytest.fixture
def pair_of_foreign(coordinator) -> tuple[Pair, Callable[[str], None]]:
    shards = coordinator(local=2, remote=1)
    for shard in shards.shards:
        shards.shard(shard.label, has_foreign=True)
    pair = Pair(shards)

    def litter(namespace: str) -> None:
        """Leave old versions of rows in every shard."""
        batch = rows(*range(-3, 12), "a", "b", value=0.5)
        old = type(batch)(batch.keys, batch.values, [b'{"old":1,"color":"red"}'] * len(batch.keys))
        for owner in range(3):
            shards.spread(np.full(ids.SLOT_COUNT, owner))
            pair.queries.upsert_many(old, namespace=namespace)
        pair.oracle.upsert_many(old, namespace=namespace)

    return pair, litter


# Slots of this node's own copies that change while a request is on its way.


def head_of(label: str) -> ShardHead:
    return ShardHead.objects.get(label=label)


def test_a_copy_that_has_changed_its_slots_makes_older_requests_begin_again(coordinator, queries, monkeypatch):
    shards = coordinator(local=2)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    slots_set(head_of("shard_1").pk, epoch=shards.epoch + 1, writable=ALL_SLOTS)

    for read in (
        lambda: queries.count(namespace=NAMESPACE).value,
        lambda: len(queries.find_similar(SEARCH, namespace=NAMESPACE).value),
        lambda: len(queries.scroll(namespace=NAMESPACE, limit=500).value.records),
        lambda: len(queries.fetch([ids.key_of(number) for number in range(ROWS)], namespace=NAMESPACE).value.records),
    ):
        slots_set(head_of("shard_1").pk, epoch=shards.epoch + 1, writable=ALL_SLOTS)
        with monkeypatch.context() as patch:
            pauses = on_first_pause(patch, pictures, shards.change)
            assert read() == ROWS
            assert len(pauses) == 1


def test_a_copy_whose_change_the_registry_does_not_know_is_503_at_the_deadline(coordinator, queries):
    shards = coordinator(local=2)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    slots_set(head_of("shard_1").pk, epoch=shards.epoch + 1, writable=ALL_SLOTS)

    with pytest.raises(ShardUnavailable):
        queries.count(namespace=NAMESPACE, options=RequestOptions(timeout_s=0.1))


@pytest.mark.parametrize(
    "write",
    [
        lambda queries, keys: queries.upsert_many(rows(*keys, value=7.0), namespace=NAMESPACE).count,
        lambda queries, keys: queries.delete(keys=[ids.key_of(key) for key in keys], namespace=NAMESPACE).count,
        lambda queries, keys: len(
            [queries.patch(ids.key_of(key), metadata=b'{"a":1}', namespace=NAMESPACE) for key in keys]
        ),
    ],
)
def test_a_write_to_slots_that_a_copy_gave_up_finds_their_new_owner(coordinator, queries, monkeypatch, write):
    shards = coordinator(local=2)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    moved = owned(shards, "shard_0")[:3]
    slots = SlotSet.of(ids.slots_of([ids.key_of(number) for number in moved]))
    slots_set(head_of("shard_0").pk, epoch=shards.epoch + 1, writable=ALL_SLOTS - slots)

    def switch() -> None:
        owners = np.arange(ids.SLOT_COUNT) % 2
        owners[slots.numbers] = 1
        shards.spread(owners)
        shards.shard("shard_0", has_foreign=True)
        queries.upsert_many(rows(*moved), namespace=NAMESPACE)

    pauses = on_first_pause(monkeypatch, writes, switch)

    assert write(queries, moved) == 3
    assert pauses
    assert {shards.owner_of(number) for number in moved} == {"shard_1"}


def test_a_patch_of_a_row_that_has_moved_and_is_gone_from_its_old_shard_is_no_404(coordinator, queries, monkeypatch):
    shards = coordinator(local=2)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    [moved, *_] = owned(shards, "shard_0")
    queries.delete(keys=[ids.key_of(moved)], namespace=NAMESPACE)
    slots = SlotSet.of([ids.slot_of(ids.key_of(moved))])
    slots_set(head_of("shard_0").pk, epoch=shards.epoch + 1, writable=ALL_SLOTS - slots)

    def switch() -> None:
        owners = np.arange(ids.SLOT_COUNT) % 2
        owners[slots.numbers] = 1
        shards.spread(owners)
        queries.upsert_many(rows(moved), namespace=NAMESPACE)

    on_first_pause(monkeypatch, writes, switch)

    queries.patch(ids.key_of(moved), metadata=b'{"a":1}', namespace=NAMESPACE)
    assert queries.get(ids.key_of(moved), namespace=NAMESPACE).value.metadata == b'{"a":1}'


def test_a_picture_is_never_half_of_a_change(coordinator, monkeypatch):
    shards = coordinator(local=2)
    changes = iter([True, False])
    real = reading._sharding

    def interrupted(row, heads):
        """The topology's row is read; before the shards' are, a move ends."""
        if next(changes, False):
            shards.spread(np.zeros(ids.SLOT_COUNT, dtype=int))
            shards.shard("shard_0", has_foreign=True)
        return real(row, heads)

    monkeypatch.setattr(reading, "_sharding", interrupted)
    shards.change()

    sharding = topology().sharding

    assert sharding is not None
    assert sharding.epoch == shards.epoch
    assert (len(sharding.by_label["shard_0"].slots), sharding.by_label["shard_0"].has_foreign) == (16384, True)
