"""A coordinator and its replicas of all shards: with whom they are registered, and what their copies know."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.models import PlacementPush, Replica, ReplicaCopy, Shard, ShardCopy, Topology
from cluster.services import full_replicas, shard_replicas
from cluster.services.full_replicas import full_replica_remove, full_replicas_settle
from cluster.services.namespaces import namespace_create, namespace_drop
from cluster.services.registry import replica_sync
from cluster.services.shard_replicas import copies_of_one_shard
from cluster.services.sharding_removal import shard_remove
from cluster.services.sharding_rows import LastShard
from tests.cluster.shards import Coordinator
from vectors.errors import Unavailable
from vectors.models import Namespace, ShardHead

URL = "http://127.0.0.1:9"


class Nodes:
    """The nodes of remote shards, as the coordinator asks them to add and remove copies."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.failing: set[str] = set()

    def add(self, shard: Shard, *, name: str, url: str, actor: str) -> None:
        self._ask("add", shard, name)
        ShardCopy.objects.create(shard=shard, name=name, url=url)

    def remove(self, shard: Shard, *, name: str, force: bool, actor: str) -> None:
        self._ask("remove", shard, name)
        ShardCopy.objects.filter(shard=shard, name=name).delete()

    def sync(self, shard: Shard, *, name: str, namespace: str | None, actor: str) -> None:
        self._ask("sync", shard, name)

    def _ask(self, what: str, shard: Shard, name: str) -> None:
        self.asked.append((what, shard.label, name))
        if shard.label in self.failing:
            raise Unavailable(f"{shard.label} cannot be reached")


@pytest.fixture
def nodes_of_shards(monkeypatch) -> Nodes:
    nodes = Nodes()
    monkeypatch.setattr(shard_replicas, "copy_add", nodes.add)
    monkeypatch.setattr(shard_replicas, "copy_remove", nodes.remove)
    monkeypatch.setattr(shard_replicas, "copy_sync", nodes.sync)
    return nodes


@pytest.fixture
def with_replica(coordinator, nodes_of_shards) -> Coordinator:
    """A coordinator of two shards here and two elsewhere, with a replica that was told of its placements."""
    made: Coordinator = coordinator(local=2, remote=2)
    replica = Replica.objects.create(name="full", url=URL, node="f" * 32)
    for shard in Shard.objects.filter(url=""):
        ReplicaCopy.objects.create(replica=replica, shard=shard.uid)
        PlacementPush.objects.create(url=URL, shard=shard.uid, epoch=1, acknowledged_epoch=1, document={})
    return made


def known(label: str) -> dict[str, bool]:
    """The uids of namespaces that the copy of a shard here knows, and whether they live."""
    head = ShardHead.objects.get(uid=Shard.objects.get(label=label).uid)
    rows = Namespace.objects.filter(shard=head).values_list("uid", "dropped_at")
    return {uid: dropped_at is None for uid, dropped_at in rows}


def test_every_shard_elsewhere_gets_the_replica_once(with_replica: Coordinator, nodes_of_shards: Nodes) -> None:
    full_replicas_settle()
    full_replicas_settle()

    assert nodes_of_shards.asked == [("add", "remote_0", "full"), ("add", "remote_1", "full")]
    assert copies_of_one_shard() == []


def test_a_replica_that_has_not_heard_of_the_shards_yet_waits(
    with_replica: Coordinator, nodes_of_shards: Nodes
) -> None:
    PlacementPush.objects.update(epoch=2)

    full_replicas_settle()

    assert nodes_of_shards.asked == []


def test_a_shard_that_cannot_be_asked_does_not_keep_others_from_it_and_is_asked_again(
    with_replica: Coordinator, nodes_of_shards: Nodes
) -> None:
    nodes_of_shards.failing = {"remote_0"}
    full_replicas_settle()
    assert Replica.objects.get().last_error == "not_added: shard remote_0: remote_0 cannot be reached"
    nodes_of_shards.failing = set()
    full_replicas_settle()

    assert Replica.objects.get().last_error == ""
    assert [label for _, label, _ in nodes_of_shards.asked] == ["remote_0", "remote_1", "remote_0"]


def test_a_replica_of_one_shard_gets_no_others(with_replica: Coordinator, nodes_of_shards: Nodes) -> None:
    Replica.objects.update(shard=Shard.objects.get(label="shard_0").uid)

    full_replicas_settle()

    assert nodes_of_shards.asked == []


def test_a_replica_that_has_another_name_at_a_shard_s_node_is_the_same(
    with_replica: Coordinator, nodes_of_shards: Nodes
) -> None:
    for shard in Shard.objects.exclude(url=""):
        ShardCopy.objects.create(shard=shard, name="as_it_was_called", url=URL)

    full_replicas_settle()
    assert (nodes_of_shards.asked, copies_of_one_shard()) == ([], [])
    full_replica_remove(URL, force=False, actor="test")

    assert nodes_of_shards.asked == [(("remove"), label, "as_it_was_called") for label in ("remote_0", "remote_1")]


def test_a_sync_of_the_replica_is_one_of_all_its_copies(
    with_replica: Coordinator, nodes_of_shards: Nodes, sent: list[Any]
) -> None:
    full_replicas_settle()
    nodes_of_shards.asked.clear()
    nodes_of_shards.failing = {"remote_0"}
    Topology.objects.update(replication_enabled=True)

    replica_sync(name="full", actor="test")

    assert nodes_of_shards.asked == [("sync", "remote_0", "full"), ("sync", "remote_1", "full")]


def test_by_force_a_removal_passes_a_silent_shard_over(with_replica: Coordinator, nodes_of_shards: Nodes) -> None:
    full_replicas_settle()
    nodes_of_shards.failing = {"remote_0"}

    with pytest.raises(Unavailable):
        full_replica_remove(URL, force=False, actor="test")
    full_replica_remove(URL, force=True, actor="test")

    assert list(ShardCopy.objects.values_list("shard__label", flat=True)) == ["remote_0"]


def test_the_last_shard_here_stays_while_a_replica_learns_of_all_shards_by_it(with_replica: Coordinator) -> None:
    Shard.objects.filter(label="shard_1").delete()

    with pytest.raises(LastShard):
        shard_remove(label="shard_0", force=True, actor="test")
    with pytest.raises(LastShard):
        shard_remove(label="shard_0", force=False, actor="test")


def test_a_namespace_is_in_the_log_of_every_shard_here_before_its_first_row(with_replica: Coordinator) -> None:
    spec, _ = namespace_create("books", dimension=3, actor="test")

    assert known("shard_0") == known("shard_1") == {spec.uid: True}


def test_namespaces_of_before_the_replica_get_there_by_themselves(with_replica: Coordinator, monkeypatch: Any) -> None:
    monkeypatch.setattr(full_replicas, "_full", list)
    spec, _ = namespace_create("books", dimension=3, actor="test")
    assert known("shard_0") == {}
    monkeypatch.undo()

    full_replicas.namespaces_spread()

    assert known("shard_0") == {spec.uid: True}


def test_the_end_of_a_namespace_that_a_shard_has_not_heard_of_is_told_to_replicas(with_replica: Coordinator) -> None:
    spec, _ = namespace_create("books", dimension=3, actor="test")
    for remote in with_replica.remote:
        remote.close()

    namespace_drop("books", actor="test")

    assert known("shard_0") == {spec.uid: False}
    told = PlacementPush.objects.first()
    assert told is not None
    assert told.document["sharding"]["ended"] == [spec.uid]
