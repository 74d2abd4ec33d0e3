"""Making a copy of another node's shard, on an empty node only and as a replica; making and dropping shards."""

from __future__ import annotations

import threading

import pytest
from django.conf import settings as site_settings
from django.db import connection

from vectors.engine import ids
from vectors.engine.slots import NO_SLOTS, SlotSet
from vectors.errors import NotEmpty, NotPrimary, NotReady, SlotsClosed
from vectors.models import Lease, LogEntry, MoveCursor, Namespace, ShardHead, ShardSlots
from vectors.query_processor import LocalQueryProcessor
from vectors.services import ensure_local_shard, namespace_put
from vectors.store import recovery
from vectors.store.checkpoint import checkpoint_run
from vectors.store.copies import copy_contents, copy_create, copy_is_empty, shard_create, shard_drop
from vectors.store.manifests import segment_directory
from vectors.store.slots import slots_now
from vectors.store.verify import verify_shard

UID = "c" * 32


def test_the_nodes_own_empty_shard_makes_room_for_the_copy(shard):
    copy = copy_create(UID, "shard_0")
    assert (copy.uid, copy.label, copy.is_primary) == (UID, "shard_0", False)
    assert list(ShardHead.objects.values_list("uid", flat=True)) == [UID]
    assert ensure_local_shard().pk == copy.pk
    assert recovery.open_shard(copy.pk).engine.names() == []


def test_a_shard_whose_namespaces_are_dropped_is_empty(shard, batch):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    shard.checkpoint()
    shard.queries.namespace_drop("a")
    files = segment_directory(shard.head.uid, "")
    assert list(files.iterdir())
    assert copy_is_empty(shard.head.pk)
    copy_create(UID, "shard_0")
    assert not files.exists()
    assert LogEntry.objects.count() == Namespace.objects.count() == 0


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_node_with_data_of_its_own_takes_no_copy(shard, batch, checkpointed):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    if checkpointed:
        shard.checkpoint()
    with pytest.raises(NotEmpty) as caught:
        copy_create(UID, "shard_0")
    assert caught.value.detail == {"shard": "shard_0", "rows": 5, "namespaces": ["a"]}
    assert copy_contents(shard.head.pk) == (["a"], 5)
    assert list(ShardHead.objects.values_list("uid", flat=True)) == [shard.head.uid]
    assert shard.queries.count(namespace="a").value == 5


def test_making_a_copy_again_changes_nothing(shard):
    first = copy_create(UID, "shard_0")
    ShardHead.objects.filter(uid=UID).update(last_seq=7)
    assert copy_create(UID, "another").pk == first.pk
    assert ShardHead.objects.get().last_seq == 7


def test_copies_of_other_shards_stay_and_keep_their_labels(shard):
    first = copy_create(UID, "shard_0")
    Namespace.objects.create(shard=first, name="a", dimension=3)
    second = copy_create("d" * 32, "shard_0")
    assert second.label == "shard_0-dddddddd"
    assert set(ShardHead.objects.values_list("uid", flat=True)) == {UID, "d" * 32}


def test_a_copy_takes_no_writes(shard):
    copy = copy_create(UID, "shard_0")
    with pytest.raises(NotPrimary):
        namespace_put(copy.pk, "a", dimension=3)


def test_files_that_a_crash_left_of_copies_that_are_gone_go_with_the_next_call(shard):
    left = segment_directory("e" * 32, "x")
    staged = site_settings.NODE_FILES.staging / ("e" * 32)
    for path in (left, staged):
        path.mkdir(parents=True)
    copy_create(UID, "shard_0")
    assert not left.parent.exists()
    assert not staged.exists()


def test_of_two_calls_at_once_both_get_the_one_copy(shard):
    found = []

    def run():
        found.append(copy_create(UID, "shard_0").pk)
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 4
    assert set(found) == {ShardHead.objects.get().pk}


def test_a_new_shard_is_empty_and_takes_rows_beside_the_others(shard, batch):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    copy = shard_create(UID, "shard_1")
    assert (copy.uid, copy.label, copy.is_primary, copy.slots_seq) == (UID, "shard_1", True, 0)
    LocalQueryProcessor(copy.pk).upsert_many(batch(5, 3), namespace="a")
    assert shard.queries.count(namespace="a").value == 5
    assert LocalQueryProcessor(copy.pk).count(namespace="a").value == 3


def test_a_new_shard_may_be_written_in_the_slots_it_was_made_with_from_its_first_row_on(shard, batch):
    slots = SlotSet.of([ids.slot_of(ids.key_of(1))])
    copy = shard_create(UID, "shard_1", writable=slots, epoch=7)
    assert slots_now(copy.pk) == (1, 7, slots)
    assert copy.slots_seq == copy.last_seq == 1
    queries = LocalQueryProcessor(copy.pk)
    queries.upsert_many(batch(1, 1), namespace="a")
    with pytest.raises(SlotsClosed):
        queries.upsert_many(batch(0, 2), namespace="a")
    assert queries.count(namespace="a").value == 1
    assert verify_shard(copy).findings == []


def test_making_a_shard_again_changes_nothing(shard):
    first = shard_create(UID, "shard_1", writable=NO_SLOTS, epoch=7)
    assert shard_create(UID, "another", epoch=9, drop_own=True) == first
    assert slots_now(first.pk) == (1, 7, NO_SLOTS)


def test_a_node_that_becomes_a_shard_drops_its_own_empty_one(shard):
    copy = shard_create(UID, "shard_0", writable=NO_SLOTS, epoch=7, drop_own=True)
    assert list(ShardHead.objects.values_list("uid", "label")) == [(UID, "shard_0")]
    assert ensure_local_shard().pk == copy.pk


def test_a_node_with_data_becomes_no_shard(shard, batch):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    with pytest.raises(NotEmpty):
        shard_create(UID, "shard_0", drop_own=True)
    assert list(ShardHead.objects.values_list("uid", flat=True)) == [shard.head.uid]


def test_a_shard_that_is_dropped_leaves_neither_rows_nor_files(shard, batch):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    shard.checkpoint()
    copy = shard_create(UID, "shard_1", writable=NO_SLOTS, epoch=7)
    shard_create("d" * 32, "shard_2", writable=NO_SLOTS, epoch=8)
    slots = SlotSet.of(range(ids.SLOT_COUNT))
    ShardSlots.objects.filter(shard=copy).update(writable=slots.packed)
    LocalQueryProcessor(copy.pk).upsert_many(batch(0, 9), namespace="a")
    checkpoint_run(UID, owner="test")
    MoveCursor.objects.create(shard=copy, move="m", cursor="x")
    assert segment_directory(UID, "").exists()
    others = LogEntry.objects.exclude(shard=copy).count()
    for _ in range(2):
        shard_drop(UID)
        assert not segment_directory(UID, "").exists()
        assert not ShardHead.objects.filter(uid=UID).exists()
        assert not MoveCursor.objects.exists()
        assert not Lease.objects.filter(name=f"checkpoint:{copy.pk}").exists()
        assert LogEntry.objects.count() == others
        assert ShardSlots.objects.count() == 1
    assert segment_directory(shard.head.uid, "").exists()
    shard.restart()
    assert shard.queries.count(namespace="a").value == 5


def test_requests_to_a_copy_that_is_dropped_are_told_to_come_again(shard, batch):
    copy = shard_create(UID, "shard_1")
    queries = LocalQueryProcessor(copy.pk)
    queries.upsert_many(batch(0, 5), namespace="a")
    shard_drop(UID)
    with pytest.raises(NotReady):
        queries.count(namespace="a")
