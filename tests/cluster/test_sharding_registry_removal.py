"""Removing shards from the registry: empty ones at once, others by a move, lost ones by force."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.models import ClusterEvent, Move, MoveStep, NamespaceErrand, ReplicaCopy, Shard, ShardedNamespace, Topology
from cluster.moves import control
from cluster.moves.planning import move_plan
from cluster.services import sharding_assignments, sharding_gates, sharding_removal, sharding_sweep
from cluster.services.registry import replica_add, replication_enable
from cluster.services.sharding import (
    LastShard,
    ShardExists,
    ShardNotFound,
    ShardUnreachable,
    shard_add,
    shard_of,
    shard_remove,
    sharding_enable,
)
from cluster.services.sharding_removal import drained_settle, shard_stay
from cluster.sharding.table import SlotTable
from cluster.states import MovePhase, ShardState
from cluster.topology import topology
from mlvdb_site.markers import topology_changed
from tests.cluster.standin_node import StandInNode
from vectors.engine.slots import SlotSet
from vectors.models import ShardHead

Nodes = Callable[..., StandInNode]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The moves that were asked for, as (kind, label of the source); they are rows only."""
    moves: list[tuple[str, str]] = []

    def request(kind: str, *, source: Shard | None, target: Shard | None, actor: str) -> Move:
        moves.append((str(kind), "" if source is None else source.label))
        return Move.objects.create(kind=kind, shard="" if source is None else source.uid, actor=actor)

    monkeypatch.setattr(control, "move_request", request)
    monkeypatch.setattr(sharding_assignments, "publish", lambda *_task: True)
    monkeypatch.setattr(sharding_assignments, "_has_said_url", True)
    return moves


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, SlotSet]]:
    """The gates that were set, as (label, epoch, writable)."""
    gates: list[tuple[str, int, SlotSet]] = []

    class End:
        def __init__(self, shard: Shard) -> None:
            self.label = shard.label

        def set_slots(self, epoch: int, writable: SlotSet) -> None:
            gates.append((self.label, epoch, writable))

    monkeypatch.setattr(sharding_gates, "end_of", End)
    return gates


@pytest.fixture
def remote(head: ShardHead, nodes: Nodes, asked: object) -> StandInNode:
    """A node that is the shard `shard_r` of this one, without slots; `shard_0` and `shard_1` are here."""
    sharding_enable(strategy="hash", shards=2, actor="test")
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    return node


def give(slots: SlotSet, source: str, target: str) -> None:
    """Have slots change owner in the registry, without any move."""
    row = Topology.objects.get()
    table = SlotTable.of_bytes(bytes(row.slots or b""))
    moved = table.moved(slots, source=shard_of(source).pk, target=shard_of(target).pk)
    Topology.objects.update(slots=moved.to_bytes())
    topology_changed()


def owned_by(label: str) -> SlotSet:
    view = topology().sharding
    assert view is not None
    return view.by_label[label].slots


SOME = SlotSet.of(range(100))


def test_an_empty_remote_shard_is_removed_at_once_and_its_node_is_told(
    remote: StandInNode, asked: list[tuple[str, str]]
) -> None:
    assert shard_remove(label="shard_r", actor="user ann") is None

    with pytest.raises(ShardNotFound):
        shard_of("shard_r")
    assert "shard_r" not in topology().sharding.by_label  # type: ignore[union-attr]
    told = remote.assignments[-1]
    assert told["released"]
    assert told["epoch"] > remote.assignments[-2]["epoch"]
    row = Shard.objects.get(label="shard_r")
    assert (row.state, row.released) == (ShardState.REMOVED, True)
    assert asked == []
    assert ClusterEvent.objects.get(action="shard_removed").actor == "user ann"


def test_a_removed_node_that_was_away_is_told_when_it_is_back(remote: StandInNode) -> None:
    remote.silent = True
    shard_remove(label="shard_r", actor="test")
    assert not Shard.objects.get(label="shard_r").released

    remote.silent = False
    sharding_sweep.sharding_look_after()
    told = len(remote.assignments)
    sharding_sweep.sharding_look_after()

    assert remote.assignments[-1]["released"]
    assert len(remote.assignments) == told
    assert Shard.objects.get(label="shard_r").released


def test_a_removed_node_can_be_added_again_although_it_had_not_been_told(remote: StandInNode) -> None:
    remote.silent = True
    first = Shard.objects.get(label="shard_r")
    shard_remove(label="shard_r", actor="test")
    remote.silent = False
    # A transport that has just found it silent asks it again by itself; the sweep does so at once.
    sharding_sweep.sharding_look_after()

    again, is_new, _ = shard_add(label="shard_r", url=remote.url, rebalance=False, actor="test")

    assert is_new
    assert again.uid != first.uid
    assert again.pk != first.pk
    assert remote.assignments[-1]["shard"]["uid"] == again.uid


def test_a_shard_with_slots_is_drained_first(
    remote: StandInNode, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(SOME, "shard_0", "shard_r")
    epoch = topology().epoch

    move = shard_remove(label="shard_r", actor="user ann")

    assert move is not None
    assert asked == [("drain", "shard_r")]
    assert shard_of("shard_r").state == ShardState.DRAINING
    assert topology().epoch == epoch + 1
    assert shard_remove(label="shard_r", actor="user ann") == move
    with pytest.raises(ShardExists):
        shard_add(label="shard_r", url=remote.url, actor="user ann")


def test_a_drained_shard_goes_once_it_has_nothing_left(remote: StandInNode) -> None:
    give(SOME, "shard_0", "shard_r")
    shard_remove(label="shard_r", actor="test")
    Shard.objects.filter(label="shard_r").update(has_foreign=True)
    give(SOME, "shard_r", "shard_0")
    assert drained_settle() == []

    Shard.objects.filter(label="shard_r").update(has_foreign=False)

    assert drained_settle() == ["shard_r"]
    assert remote.assignments[-1]["released"]


def test_a_drain_whose_move_was_never_asked_for_gets_it_by_beat(
    remote: StandInNode, asked: list[tuple[str, str]]
) -> None:
    give(SOME, "shard_0", "shard_r")
    Shard.objects.filter(label="shard_r").update(state=ShardState.DRAINING)

    sharding_sweep.sharding_look_after()
    sharding_sweep.sharding_look_after()

    assert asked == [("drain", "shard_r")]


def test_a_shard_whose_draining_was_cancelled_stays(remote: StandInNode) -> None:
    give(SOME, "shard_0", "shard_r")
    shard_remove(label="shard_r", actor="test")

    assert shard_stay(shard_of("shard_r"), actor="user ann")
    assert not shard_stay(shard_of("shard_r"), actor="user ann")

    assert shard_of("shard_r").state == ShardState.ACTIVE
    assert owned_by("shard_r") == SOME


def test_the_last_shard_cannot_go(head: ShardHead, nodes: Nodes, asked: object) -> None:
    sharding_enable(strategy="hash", shards=1, actor="test")
    for force in (False, True):
        with pytest.raises(LastShard):
            shard_remove(label="shard_0", force=force, actor="test")

    node = nodes()
    node.silent = True
    shard_add(label="shard_r", url=node.url, actor="test")
    with pytest.raises(LastShard):
        shard_remove(label="shard_0", actor="test")
    assert shard_of("shard_0").state == ShardState.ACTIVE


def test_of_two_shards_that_are_drained_one_stays(remote: StandInNode) -> None:
    shard_remove(label="shard_0", actor="test")
    shard_remove(label="shard_1", actor="test")

    with pytest.raises(LastShard):
        shard_remove(label="shard_r", actor="test")


def test_an_unknown_shard_is_not_found(remote: StandInNode) -> None:
    with pytest.raises(ShardNotFound):
        shard_remove(label="shard_9", actor="test")


def test_a_shard_with_slots_whose_node_does_not_answer_is_refused_with_its_rows(remote: StandInNode) -> None:
    give(SOME, "shard_0", "shard_r")
    Shard.objects.filter(label="shard_r").update(rows=1234)
    remote.close()

    with pytest.raises(ShardUnreachable) as refused:
        shard_remove(label="shard_r", actor="test")

    assert refused.value.detail["rows"] == 1234
    assert shard_of("shard_r").state == ShardState.ACTIVE


def test_a_plan_for_a_shard_whose_node_does_not_answer_has_the_rows_of_its_last_probe(remote: StandInNode) -> None:
    give(SOME, "shard_0", "shard_r")
    Shard.objects.filter(label="shard_r").update(rows=7, size_bytes=1234)
    remote.close()

    plan = move_plan(Move.Kind.REDISTRIBUTE, source=shard_of("shard_r"), target=shard_of("shard_1"))

    assert (plan.slots, plan.rows, plan.bytes) == (len(SOME), 7, 1234)


def test_a_node_that_has_lost_its_data_is_as_good_as_gone(remote: StandInNode) -> None:
    give(SOME, "shard_0", "shard_r")
    remote.status["shards"] = []

    with pytest.raises(ShardUnreachable):
        shard_remove(label="shard_r", actor="test")


def test_by_force_a_lost_shard_goes_with_its_rows_and_the_others_take_its_slots_by_weight(
    remote: StandInNode, opened: list[tuple[str, int, SlotSet]]
) -> None:
    before = {label: owned_by(label) for label in ("shard_0", "shard_1")}
    give(SOME, "shard_0", "shard_r")
    Shard.objects.filter(label="shard_1").update(weight=3.0)
    Shard.objects.filter(label="shard_r").update(rows=1234)
    remote.close()

    assert shard_remove(label="shard_r", force=True, actor="user ann") is None

    event = ClusterEvent.objects.get(action="shard_removed")
    assert event.alarm
    assert event.after["rows_lost"] == 1234
    assert event.after["slots"] == {"shard_0": 25, "shard_1": 75}
    assert len(owned_by("shard_0")) + len(owned_by("shard_1")) == 16384
    assert owned_by("shard_1") - before["shard_1"]
    assert {label: writable for label, _, writable in opened} == {
        "shard_0": owned_by("shard_0"),
        "shard_1": owned_by("shard_1"),
    }
    assert {epoch for _, epoch, _ in opened} == {topology().epoch}
    assert not Shard.objects.filter(gate_due=True).exists()


def test_a_gate_that_could_not_be_opened_after_a_loss_is_opened_by_beat(
    remote: StandInNode, opened: list[tuple[str, int, SlotSet]], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(SOME, "shard_0", "shard_r")
    remote.close()
    monkeypatch.setattr(sharding_removal, "gates_settle", lambda: 0)
    shard_remove(label="shard_r", force=True, actor="test")
    assert opened == []

    sharding_sweep.sharding_look_after()

    assert {label for label, _, _ in opened} == {"shard_0", "shard_1"}


def test_what_a_new_coordinator_has_not_heard_of_a_shard_opens_no_gate_and_is_over_when_the_shard_is_lost(
    remote: StandInNode, opened: list[tuple[str, int, SlotSet]]
) -> None:
    give(SOME, "shard_0", "shard_r")
    Shard.objects.filter(label__in=("shard_1", "shard_r")).update(recheck_due=True)
    remote.close()

    shard_remove(label="shard_r", force=True, actor="test")

    # What shard_1 was given it may write when it has said what it writes already.
    assert [label for label, _, _ in opened] == ["shard_0"]
    assert list(Shard.objects.filter(gate_due=True).values_list("label", flat=True)) == ["shard_1"]
    assert list(Shard.objects.filter(recheck_due=True).values_list("label", flat=True)) == ["shard_1"]


def test_by_force_a_shard_that_answers_is_drained_all_the_same(
    remote: StandInNode, asked: list[tuple[str, str]]
) -> None:
    give(SOME, "shard_0", "shard_r")

    assert shard_remove(label="shard_r", force=True, actor="test") is not None

    assert asked == [("drain", "shard_r")]


def test_what_a_move_had_brought_from_a_lost_shard_stays_where_it_is(
    remote: StandInNode, opened: list[tuple[str, int, SlotSet]]
) -> None:
    give(SOME, "shard_0", "shard_r")
    moving = SlotSet.of(range(40))
    move = Move.objects.create(kind=Move.Kind.REDISTRIBUTE)
    step = MoveStep.objects.create(
        move=move,
        uid="1" * 32,
        source=shard_of("shard_r"),
        target=shard_of("shard_1"),
        slots=moving.packed,
        phase=MovePhase.FOLLOWING,
    )
    remote.close()

    shard_remove(label="shard_r", force=True, actor="test")

    assert owned_by("shard_1") & moving == moving
    step.refresh_from_db()
    # The run of its move sees to what the target has of it, and ends it.
    assert step.phase == MovePhase.UNDOING


def test_a_shard_that_was_closing_slots_for_a_lost_one_opens_them_again(
    remote: StandInNode, opened: list[tuple[str, int, SlotSet]]
) -> None:
    give(SOME, "shard_0", "shard_r")
    leaving = SlotSet.of(range(200, 240))
    MoveStep.objects.create(
        move=Move.objects.create(kind=Move.Kind.REBALANCE),
        uid="1" * 32,
        source=shard_of("shard_0"),
        target=shard_of("shard_r"),
        slots=leaving.packed,
        phase=MovePhase.CLOSING,
    )
    remote.close()

    shard_remove(label="shard_r", force=True, actor="test")

    writable = {label: writable for label, _, writable in opened}
    assert writable["shard_0"] & leaving == leaving
    assert topology().sharding.closed is None  # type: ignore[union-attr]


def test_what_a_removed_shard_was_to_be_told_of_namespaces_is_void(remote: StandInNode) -> None:
    namespace = ShardedNamespace.objects.create(uid="2" * 32, name="books", dimension=3, metric="l2", recall_target=1)
    NamespaceErrand.objects.create(shard=shard_of("shard_r"), namespace=namespace)

    shard_remove(label="shard_r", actor="test")

    assert not NamespaceErrand.objects.exists()


def test_an_empty_local_shard_is_removed_at_once_and_its_copy_goes(remote: StandInNode) -> None:
    shard_add(label="shard_2", rebalance=False, actor="test")

    assert shard_remove(label="shard_2", actor="test") is None

    assert not ShardHead.objects.filter(label="shard_2").exists()
    assert Shard.objects.get(label="shard_2").released
    again, is_new, _ = shard_add(label="shard_2", rebalance=False, actor="test")
    assert is_new
    assert again.uid == ShardHead.objects.get(label="shard_2").uid


def test_the_replicas_of_a_removed_local_shard_are_told(remote: StandInNode, nodes: Nodes, sent: list[object]) -> None:
    replication_enable(actor="test")
    shard_add(label="shard_2", rebalance=False, actor="test")
    replica = nodes()
    replica_add(name="replica_1", url=replica.url, actor="test")
    uid = shard_of("shard_2").uid
    assert ReplicaCopy.objects.filter(shard=uid).exists()

    shard_remove(label="shard_2", actor="test")

    assert not ReplicaCopy.objects.filter(shard=uid).exists()
    assert ReplicaCopy.objects.count() == 2
    assert [told["role"] for told in replica.placements if told["shard"]["uid"] == uid][-1] == "detached"
