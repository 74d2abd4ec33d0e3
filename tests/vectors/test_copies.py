"""Making a copy of another node's shard: on an empty node only, and as a replica."""

from __future__ import annotations

import threading

import pytest
from django.conf import settings as site_settings
from django.db import connection

from vectors.errors import NotEmpty, NotPrimary
from vectors.models import LogEntry, Namespace, ShardHead
from vectors.services import ensure_local_shard, namespace_put
from vectors.store import recovery
from vectors.store.copies import copy_contents, copy_create, copy_is_empty
from vectors.store.manifests import segment_directory

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
