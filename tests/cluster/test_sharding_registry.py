"""The registry of shards: switched on, added to, weighed; what goes out to their nodes and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.models import ClusterEvent, Move, Replica, ReplicaCopy, Shard, ShardedNamespace, Topology
from cluster.moves import control
from cluster.services import sharding_assignments, sharding_sweep
from cluster.services.candidates import AlreadyReplica, Cycle, Incompatible, NodeHoldsRows, OwnUrl, WrongCluster
from cluster.services.registry import replica_add, replication_enable
from cluster.services.sharding import (
    CannotCoordinate,
    ShardExists,
    ShardingNotEnabled,
    ShardNotFound,
    StrategyFixed,
    shard_add,
    shard_change,
    shard_check,
    shard_of,
    sharding_enable,
)
from cluster.services.sharding_assignments import assignments_push, assignments_push_pending
from cluster.services.sharding_candidates import AlreadyShard
from cluster.states import ShardState
from cluster.topology import topology
from mlvdb_site.markers import topology_marker
from tests.cluster.standin_node import StandInNode
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import InvalidInput
from vectors.models import ShardHead, ShardSlots
from vectors.services import namespace_put

Nodes = Callable[..., StandInNode]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The moves that were asked for, by kind; they are rows only."""
    kinds: list[str] = []

    def request(kind: str, *, source: Shard | None, target: Shard | None, actor: str) -> Move:
        kinds.append(kind)
        return Move.objects.create(kind=kind, shard="" if source is None else source.uid, actor=actor)

    monkeypatch.setattr(control, "move_request", request)
    monkeypatch.setattr(sharding_assignments, "publish", lambda *_task: True)
    monkeypatch.setattr(sharding_assignments, "_has_said_url", True)
    return kinds


@pytest.fixture
def one_shard(head: ShardHead, asked: list[str]) -> ShardHead:
    """This node as the coordinator of one local shard."""
    assert sharding_enable(strategy="hash", shards=1, actor="test")
    return head


def gate_of(label: str) -> SlotSet:
    newest = ShardSlots.objects.filter(shard__label=label).last()
    return ALL_SLOTS if newest is None else SlotSet(bytes(newest.writable))


def test_an_empty_node_divides_the_slots_evenly_at_once(head: ShardHead, asked: list[str]) -> None:
    assert sharding_enable(strategy="round_robin", shards=3, actor="settings")

    view = topology().sharding
    assert view is not None
    assert [member.label for member in view.members] == ["shard_0", "shard_1", "shard_2"]
    assert all(member.is_local and member.shard_id is not None for member in view.members)
    assert {len(member.slots) for member in view.members} <= {5461, 5462}
    assert np.bincount(view.owners).sum() == 16384
    assert view.strategy == "round_robin"
    assert view.by_label["shard_0"].uid == head.uid
    assert asked == []


def test_the_copies_of_new_shards_can_be_written_in_their_own_slots_only(head: ShardHead, asked: list[str]) -> None:
    sharding_enable(strategy="hash", shards=2, actor="settings")

    view = topology().sharding
    assert view is not None
    for member in view.members:
        assert gate_of(member.label) == member.slots
        assert ShardHead.objects.get(uid=member.uid).slots_seq == 1


def test_a_single_shard_has_no_gate(one_shard: ShardHead) -> None:
    assert ShardHead.objects.get().slots_seq == 0
    assert topology().sharding is not None


def test_a_node_with_rows_keeps_them_and_fills_the_others_by_a_move(head: ShardHead, asked: list[str]) -> None:
    namespace, _ = namespace_put(head.pk, "books", dimension=3, metric="l2", recall_target=0.9)

    sharding_enable(strategy="hash", shards=2, actor="settings")

    view = topology().sharding
    assert view is not None
    assert view.by_label["shard_0"].slots == ALL_SLOTS
    assert view.by_label["shard_1"].slots == NO_SLOTS
    assert (gate_of("shard_0"), gate_of("shard_1")) == (ALL_SLOTS, NO_SLOTS)
    assert asked == ["rebalance"]
    assert not Shard.objects.filter(fill_due=True).exists()
    imported = ShardedNamespace.objects.get()
    assert (imported.uid, imported.name, imported.dimension, imported.metric) == (namespace.uid, "books", 3, "l2")
    assert imported.recall_target == 0.9


def test_sharding_is_enabled_once_and_with_one_strategy(one_shard: ShardHead) -> None:
    cluster = topology().cluster

    assert not sharding_enable(strategy="hash", shards=5, actor="test")
    with pytest.raises(StrategyFixed):
        sharding_enable(strategy="round_robin", shards=1, actor="test")

    assert (topology().cluster, Shard.objects.count()) == (cluster, 1)
    assert ClusterEvent.objects.filter(action="sharding_enabled").count() == 1


@pytest.mark.parametrize(("strategy", "shards"), [("modulo", 1), ("hash", 0), ("hash", 2000)])
def test_what_cannot_be_enabled_is_refused(head: ShardHead, asked: list[str], strategy: str, shards: int) -> None:
    with pytest.raises(InvalidInput):
        sharding_enable(strategy=strategy, shards=shards, actor="test")

    assert not Topology.objects.exists()


def test_sharding_can_be_enabled_beside_replication_and_the_other_way_round(
    head: ShardHead, asked: list[str], sent: list[object]
) -> None:
    assert sharding_enable(strategy="hash", shards=1, actor="test")
    cluster = topology().cluster

    assert replication_enable(actor="test")

    assert topology().cluster == cluster
    assert topology().sharding is not None
    assert topology().replication_enabled


def test_a_replica_of_all_shards_keeps_new_ones_too(
    head: ShardHead, asked: list[str], sent: list[object], nodes: Nodes
) -> None:
    replication_enable(actor="test")
    whole, one = nodes(), nodes()
    replica_add(name="whole", url=whole.url, actor="test")
    replica_add(name="one", url=one.url, shard="shard_0", actor="test")

    sharding_enable(strategy="hash", shards=2, actor="test")
    shard_add(label="shard_2", actor="test")

    uids = set(ShardHead.objects.values_list("uid", flat=True))
    assert len(uids) == 3
    assert set(ReplicaCopy.objects.filter(replica__name="whole").values_list("shard", flat=True)) == uids
    assert list(ReplicaCopy.objects.filter(replica__name="one").values_list("shard", flat=True)) == [head.uid]
    assert {placement["shard"]["uid"] for placement in whole.placements} == uids
    assert Replica.objects.count() == 2


def test_a_node_without_shards_takes_none(head: ShardHead) -> None:
    with pytest.raises(ShardingNotEnabled):
        shard_add(label="shard_1", actor="test")

    assert not Topology.objects.exists()


def test_a_local_shard_is_added_without_slots_and_filled_by_a_move(one_shard: ShardHead, asked: list[str]) -> None:
    marker, epoch = topology_marker(), topology().epoch

    shard, is_new, move = shard_add(label="shard_1", weight=2.5, actor="user ann")

    assert is_new
    assert move is not None
    assert (shard.is_local, shard.state, shard.weight) == (True, ShardState.ACTIVE, 2.5)
    assert gate_of("shard_1") == NO_SLOTS
    view = topology().sharding
    assert view is not None
    assert view.by_label["shard_1"].slots == NO_SLOTS
    assert topology().epoch == epoch + 1
    assert topology_marker() != marker
    assert asked == ["rebalance"]
    event = ClusterEvent.objects.get(action="shard_added")
    assert (event.actor, event.subject, event.epoch) == ("user ann", "shard_1", epoch + 1)


def test_a_shard_added_without_rebalancing_stays_empty(one_shard: ShardHead, asked: list[str]) -> None:
    _, is_new, move = shard_add(label="shard_1", rebalance=False, actor="test")

    sharding_sweep.sharding_look_after()

    assert (is_new, move, asked) == (True, None, [])


def test_an_added_node_is_told_at_once_what_it_is(one_shard: ShardHead, nodes: Nodes, asked: list[str]) -> None:
    node = nodes()

    shard, is_new, move = shard_add(label="shard_r", url=f"{node.url}/", actor="test")

    assert is_new
    assert move is not None
    assert (shard.state, shard.node, shard.version) == (ShardState.ACTIVE, node.node, "0.1.0")
    told = node.assignments[0]
    assert told["shard"] == {"uid": shard.uid, "label": "shard_r"}
    assert (told["cluster"], told["node"], told["released"]) == (topology().cluster, node.node, False)
    assert SlotSet(bytes.fromhex(told["slots"])) == NO_SLOTS
    member = topology().sharding.by_label["shard_r"]  # type: ignore[union-attr]
    assert (member.is_local, member.url, member.shard_id) == (False, node.url, None)


def test_the_same_shard_again_changes_nothing(one_shard: ShardHead, nodes: Nodes, asked: list[str]) -> None:
    node = nodes()
    first, _, _ = shard_add(label="shard_r", url=node.url, actor="test")
    epoch = topology().epoch

    again, is_new, move = shard_add(label="shard_r", url=node.url, weight=7, actor="test")

    assert (again.pk, is_new, move) == (first.pk, False, None)
    assert topology().epoch == epoch


def test_a_label_or_url_of_another_shard_is_refused(one_shard: ShardHead, nodes: Nodes) -> None:
    node, other = nodes(), nodes()
    shard_add(label="shard_r", url=node.url, actor="test")

    with pytest.raises(ShardExists):
        shard_add(label="shard_r", url=other.url, actor="test")
    with pytest.raises(ShardExists):
        shard_add(label="shard_s", url=node.url, actor="test")
    with pytest.raises(ShardExists):
        shard_add(label="shard_r", actor="test")

    assert Shard.objects.count() == 2


@pytest.mark.parametrize("label", ["local", "health", "", "a b", "x" * 200])
def test_a_label_that_cannot_be_one_is_refused(one_shard: ShardHead, label: str) -> None:
    with pytest.raises(InvalidInput):
        shard_add(label=label, actor="test")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_weight_that_cannot_be_one_is_refused(one_shard: ShardHead, weight: float) -> None:
    with pytest.raises(InvalidInput):
        shard_add(label="shard_1", weight=weight, actor="test")
    with pytest.raises(InvalidInput):
        shard_change(label="shard_0", weight=weight, actor="test")


def test_a_node_that_cannot_be_a_shard_is_refused_and_nothing_is_written(one_shard: ShardHead, nodes: Nodes) -> None:
    told = {"shard": "9" * 32, "label": "theirs", "cluster": "8" * 32, "coordinator_url": "http://elsewhere:1"}
    cases = [
        (nodes(rows=7, empty=False), NodeHoldsRows),
        (nodes(protocol=99), Incompatible),
        (nodes(replicas=2), Cycle),
        (nodes(is_coordinator=True), Cycle),
        (nodes(assignment=told), WrongCluster),
        (nodes(cluster="7" * 32, shards=[{"uid": "6" * 32, "role": "replica"}]), WrongCluster),
    ]

    for node, error in cases:
        with pytest.raises(error):
            shard_add(label="shard_r", url=node.url, actor="test")
        assert node.assignments == []

    assert Shard.objects.count() == 1


def test_this_very_node_and_its_replicas_and_shards_are_no_new_shards(
    one_shard: ShardHead, nodes: Nodes, settings: Any, sent: list[object]
) -> None:
    replication_enable(actor="test")
    replica, shard = nodes(), nodes()
    replica_add(name="replica_1", url=replica.url, actor="test")
    shard_add(label="shard_r", url=shard.url, actor="test")
    itself = nodes(node=settings.MLVDB_NODE_ID)
    again = nodes(node=shard.node)

    for node, error in ((itself, OwnUrl), (replica, AlreadyReplica), (again, AlreadyShard)):
        with pytest.raises(error):
            shard_add(label="shard_s", url=node.url, actor="test")
    with pytest.raises(OwnUrl):
        shard_add(label="shard_s", url="http://127.0.0.1:8000", actor="test")

    assert set(Shard.objects.values_list("label", flat=True)) == {"shard_0", "shard_r"}


def test_a_shard_of_another_coordinator_or_a_coordinator_cannot_become_a_replica(
    one_shard: ShardHead, nodes: Nodes, sent: list[object]
) -> None:
    replication_enable(actor="test")
    told = {"shard": "9" * 32, "label": "theirs", "cluster": "8" * 32, "coordinator_url": "http://elsewhere:1"}

    with pytest.raises(WrongCluster):
        replica_add(name="replica_1", url=nodes(assignment=told).url, actor="test")
    with pytest.raises(Cycle):
        replica_add(name="replica_1", url=nodes(is_coordinator=True).url, actor="test")


def test_a_node_that_is_not_up_yet_becomes_a_shard_and_is_filled_later_by_beat(
    one_shard: ShardHead, nodes: Nodes, asked: list[str]
) -> None:
    node = nodes()
    node.silent = True

    shard, is_new, move = shard_add(label="shard_r", url=node.url, actor="test")
    assert (is_new, move, shard.state) == (True, None, ShardState.NEW)
    assert shard.last_error.startswith("peer_silent")
    assert "shard_r" not in topology().sharding.by_label  # type: ignore[union-attr]

    node.silent = False
    sharding_sweep.sharding_look_after()

    shard.refresh_from_db()
    assert (shard.state, shard.node, shard.last_error) == (ShardState.ACTIVE, node.node, "")
    assert asked == ["rebalance"]


def test_a_node_that_turns_out_to_hold_rows_is_refused_and_taken_once_it_is_empty(
    one_shard: ShardHead, nodes: Nodes, asked: list[str]
) -> None:
    node = nodes()
    node.silent = True
    shard, _, _ = shard_add(label="shard_r", url=node.url, actor="test")
    node.silent, node.status["empty"] = False, False

    assignments_push_pending()
    shard.refresh_from_db()
    assert shard.state == ShardState.REFUSED
    assert shard.last_error.startswith("not_empty")
    assert node.assignments == []

    node.status["empty"] = True
    assignments_push()
    shard.refresh_from_db()
    assert shard.state == ShardState.ACTIVE


def test_every_change_of_the_epoch_is_told_and_acknowledged_once(one_shard: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    shard, _, _ = shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    assignments_push()

    shard_add(label="shard_2", rebalance=False, actor="test")
    assignments_push()
    assignments_push()

    epochs = [told["epoch"] for told in node.assignments]
    assert epochs == sorted(set(epochs))
    # Only the first one makes the copy: without it later, the node has lost its rows.
    assert [told["joins"] for told in node.assignments] == [True] + [False] * (len(epochs) - 1)
    assert epochs[-1] == topology().epoch
    shard.refresh_from_db()
    assert shard.acknowledged_epoch == topology().epoch


def test_an_assignment_that_was_not_taken_is_sent_again_by_beat(one_shard: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    shard, _, _ = shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    node.silent = True
    shard_add(label="shard_2", rebalance=False, actor="test")
    assignments_push()
    shard.refresh_from_db()
    assert shard.attempts == 1
    assert shard.state == ShardState.ACTIVE

    node.silent = False
    assignments_push_pending()

    shard.refresh_from_db()
    assert (shard.attempts, shard.acknowledged_epoch) == (0, topology().epoch)


def test_a_registry_that_was_set_back_goes_on_behind_the_epoch_that_a_shard_knows(
    one_shard: ShardHead, nodes: Nodes
) -> None:
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    node.refusal = (409, "stale_epoch", {"epoch": 500})

    assignments_push()

    assert topology().epoch == 501
    assert ClusterEvent.objects.get(action="epoch_outrun").alarm


def test_an_assignment_that_comes_after_a_newer_one_was_only_late(one_shard: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    epoch = topology().epoch
    node.refusal = (409, "stale_epoch", {"epoch": epoch})

    assignments_push()

    assert topology().epoch == epoch
    assert not ClusterEvent.objects.filter(action="epoch_outrun").exists()


def test_an_assignment_that_a_newer_one_overtook_is_no_failure(
    one_shard: ShardHead, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = nodes()
    shard, _, _ = shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    epoch = topology().epoch
    node.refusal = (409, "stale_epoch", {"epoch": epoch + 1})
    note = sharding_assignments._note_failure

    def after_a_newer_one(errand: Any, error: Any) -> None:
        monkeypatch.setattr(sharding_assignments, "_note_failure", note)
        shard_add(label="shard_2", rebalance=False, actor="test")
        assert topology().epoch == epoch + 1
        note(errand, error)

    monkeypatch.setattr(sharding_assignments, "_note_failure", after_a_newer_one)

    assignments_push()

    shard.refresh_from_db()
    assert (shard.attempts, shard.last_error) == (0, "")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("code", ["wrong_cluster", "shard_lost"])
def test_a_shard_that_refuses_although_it_has_rows_is_an_alarm(one_shard: ShardHead, nodes: Nodes, code: str) -> None:
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    node.refusal = (409, code, {})

    assignments_push()

    shard = shard_of("shard_r")
    assert (shard.state, shard.last_error.partition(":")[0]) == (ShardState.ACTIVE, code)
    assert ClusterEvent.objects.get(action="shard_refused").alarm


def test_all_shards_are_told_the_url_of_this_node_when_it_starts(
    one_shard: ShardHead, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    assignments_push()
    settings.MLVDB_ADVERTISE_URL = "http://moved.test:9000"
    monkeypatch.setattr(sharding_assignments, "_has_said_url", False)

    assignments_push_pending()

    assert node.assignments[-1]["coordinator"]["url"] == "http://moved.test:9000"


def test_a_weight_changes_no_slots(one_shard: ShardHead) -> None:
    epoch = topology().epoch

    shard = shard_change(label="shard_0", weight=4, actor="user ann")

    assert (shard.weight, topology().epoch) == (4, epoch)
    event = ClusterEvent.objects.get(action="shard_changed")
    assert (event.before, event.after) == ({"weight": 1.0}, {"weight": 4})
    with pytest.raises(ShardNotFound):
        shard_change(label="shard_9", weight=4, actor="user ann")


def test_a_check_says_whether_a_shard_is_what_it_should_be(one_shard: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    assert shard_check(label="shard_0")
    assert shard_check(label="shard_r")

    node.status["node"] = "f" * 32
    assert not shard_check(label="shard_r")
    assert shard_of("shard_r").last_error.startswith("other_node")
    node.close()
    assert not shard_check(label="shard_r")
    with pytest.raises(ShardNotFound):
        shard_check(label="shard_9")


def test_there_are_not_more_shards_than_the_setting_says(one_shard: ShardHead, settings: Any) -> None:
    settings.MLVDB_MAX_SHARDS = 2
    shard_add(label="shard_1", rebalance=False, actor="test")

    with pytest.raises(Exception, match="MLVDB_MAX_SHARDS"):
        shard_add(label="shard_2", rebalance=False, actor="test")

    assert not ShardHead.objects.filter(label="shard_2").exists()


def test_settings_switch_sharding_on_and_never_change_it(head: ShardHead, asked: list[str], settings: Any) -> None:
    settings.MLVDB_ENABLE_SHARDING, settings.MLVDB_SHARDS = True, 3
    settings.MLVDB_SHARDING_STRATEGY = "round_robin"
    sharding_sweep.check_settings()
    assert sharding_sweep.sharding_switch_on()

    settings.MLVDB_SHARDS, settings.MLVDB_SHARDING_STRATEGY = 5, ""
    sharding_sweep.check_settings()
    assert not sharding_sweep.sharding_switch_on()
    assert Shard.objects.count() == 3
    settings.MLVDB_SHARDING_STRATEGY = "hash"
    with pytest.raises(StrategyFixed):
        sharding_sweep.check_settings()


def test_a_node_that_obeys_another_has_no_shards_of_its_own(head: ShardHead, asked: list[str], settings: Any) -> None:
    Topology.objects.create(cluster="c" * 32, is_owner=False)
    settings.MLVDB_ENABLE_SHARDING = True

    assert not sharding_sweep.sharding_switch_on()
    with pytest.raises(CannotCoordinate):
        sharding_enable(strategy="hash", shards=1, actor="test")
