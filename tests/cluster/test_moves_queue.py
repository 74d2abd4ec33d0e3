"""Moves of slots that wait for one another, for a lease, or for a shard that is away or gone for good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.models import Move, MoveStep, Shard
from cluster.moves import control, running
from cluster.moves.ends import LocalEnd
from cluster.query_processor import ClusterQueryProcessor
from cluster.services import sharding_removal
from cluster.services.sharding_gates import MOVES_LEASE, gates_settle
from cluster.states import MovePhase, ShardState
from tests.cluster.moving import (
    ROWS,
    Crash,
    between_pages,
    contents,
    held,
    owned,
    phase,
    redistribute,
    run,
    settled,
    shard,
    shards_with_rows,
    write,
)
from vectors.engine import ids
from vectors.engine.slots import NO_SLOTS
from vectors.errors import NotReady
from vectors.models import Lease, ShardHead
from vectors.store import leases

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def processor(head: ShardHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterQueryProcessor]:
    """Three shards of this node with rows."""
    with shards_with_rows(monkeypatch, shards=3) as processor:
        yield processor


class Away:
    """Operations that fail at some shards, as if their nodes were away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.labels: set[str] = set()
        for name in names:
            monkeypatch.setattr(LocalEnd, name, self._failing(getattr(LocalEnd, name)))

    def _failing(self, real: Any) -> Any:
        def ask(end: LocalEnd, *args: Any, **kwargs: Any) -> Any:
            if ShardHead.objects.get(pk=end._shard().shard_id).label in self.labels:
                raise NotReady("it is away")
            return real(end, *args, **kwargs)

        return ask


def test_a_shard_that_has_only_to_be_cleaned_holds_no_other_move_up(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    away = Away(monkeypatch, "clean")
    away.labels = {"shard_0"}
    first, second = redistribute("shard_0", "shard_1"), redistribute("shard_1", "shard_2")

    run()

    assert (phase(first), phase(second)) == (MovePhase.CLEANING, MovePhase.DONE)
    assert contents(processor) == before
    away.labels = set()
    run()
    assert phase(first) == MovePhase.DONE
    assert held("shard_0") == held("shard_1") == set()
    settled()


def test_slots_do_not_come_back_before_what_was_left_of_them_is_gone(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    away = Away(monkeypatch, "clean")
    away.labels = {"shard_0"}
    first, second = redistribute("shard_0", "shard_1"), redistribute("shard_1", "shard_0")

    run()

    assert (phase(first), phase(second)) == (MovePhase.CLEANING, MovePhase.PLANNED)
    assert f"move {first.pk} has yet to clean" in Move.objects.get(pk=second.pk).error
    assert contents(processor) == before
    away.labels = set()
    run()
    run()
    assert [phase(first), phase(second)] == [MovePhase.DONE, MovePhase.DONE]
    assert contents(processor) == before
    assert owned("shard_1") == NO_SLOTS
    settled()


def test_a_move_waits_until_the_one_before_it_has_given_everything_away(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, "rows")
    away.labels = {"shard_0"}
    first, second = redistribute("shard_0", "shard_1"), redistribute("shard_1", "shard_2")

    run()

    assert [phase(first), phase(second)] == [MovePhase.COPYING, MovePhase.PLANNED]
    away.labels = set()
    run()
    assert [phase(first), phase(second)] == [MovePhase.DONE, MovePhase.DONE]
    assert owned("shard_0") == owned("shard_1") == NO_SLOTS
    settled()


def test_a_waiting_move_that_is_cancelled_ends_at_once(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, "rows")
    away.labels = {"shard_0"}
    first, second = redistribute("shard_0", "shard_1"), redistribute("shard_1", "shard_2")
    run()

    control.move_cancel(second.pk, actor="test")
    run()

    assert [phase(first), phase(second)] == [MovePhase.COPYING, MovePhase.CANCELLED]


def test_what_one_step_waits_for_does_not_keep_the_others_of_a_move_from_going_on(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    away = Away(monkeypatch, "take")
    away.labels = {"shard_1"}
    move = control.move_request(Move.Kind.DRAIN, source=shard("shard_0"), actor="test")

    run()

    ends = {step.target.label: step.phase for step in MoveStep.objects.select_related("target")}
    assert ends == {"shard_1": MovePhase.COPYING, "shard_2": MovePhase.DONE}
    assert contents(processor) == before
    away.labels = set()
    run()
    assert phase(move) == MovePhase.DONE
    settled()


def test_a_cancelled_move_s_target_that_is_away_is_cleaned_when_it_is_back(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    before = contents(processor)
    away = Away(monkeypatch, "clean", "take", "set_slots")
    first = redistribute("shard_0", "shard_1")

    def cancel(page: int) -> None:
        if page == 2:
            away.labels = {"shard_1"}
            control.move_cancel(first.pk, actor="test")

    between_pages(monkeypatch, cancel)
    run()
    assert phase(first) == MovePhase.UNDOING
    assert contents(processor) == before
    second = redistribute("shard_0", "shard_2")
    run()
    assert phase(second) == MovePhase.DONE

    away.labels = set()
    run()

    assert phase(first) == MovePhase.CANCELLED
    assert contents(processor) == before
    settled()


def test_an_error_that_nobody_foresaw_is_shown_and_tried_again(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = True
    real = LocalEnd.rows

    def rows(self: Any, *args: Any, **kwargs: Any) -> Any:
        if fails:
            raise ZeroDivisionError("a bug")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalEnd, "rows", rows)
    move = redistribute()
    run()
    assert Move.objects.get(pk=move.pk).error == "internal error, see the log"

    fails = False
    run()

    assert phase(move) == MovePhase.DONE
    settled()


def test_a_run_whose_time_is_up_leaves_the_rest_to_another(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 512
    before = contents(processor)
    sent: list[str] = []
    monkeypatch.setattr(running, "publish", sent.append)
    monkeypatch.setattr(running, "_AT_MOST_S", -1.0)
    move = redistribute()

    run()
    assert (phase(move), sent) == (MovePhase.PLANNED, [control.MOVES_TASK])

    monkeypatch.setattr(running, "_AT_MOST_S", 60.0)
    between_pages(monkeypatch, lambda page: page == 2 and monkeypatch.setattr(Stop, "now", True))
    monkeypatch.setattr("cluster.moves.row.StepRow.timer", staticmethod(Stop.timer))
    monkeypatch.setattr(running, "_timer", Stop.timer)
    run()
    assert (phase(move), sent) == (MovePhase.COPYING, [control.MOVES_TASK] * 2)
    assert contents(processor) == before

    monkeypatch.setattr(Stop, "now", False)
    run()
    assert phase(move) == MovePhase.DONE
    settled()


class Stop:
    """A clock that jumps ahead when it is told to."""

    now = False

    @classmethod
    def timer(cls) -> float:
        """Return the moment."""
        return 10_000.0 if cls.now else 1.0


def dead_process() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lease_of_a_process_that_was_killed_is_taken_at_once(
    processor: ClusterQueryProcessor, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MLVDB_LEASE_S = 3600
    lease = leases.take_lease(MOVES_LEASE, f"{running._own_host()}:{dead_process()}:1")
    assert lease is not None
    move = redistribute()

    run()

    assert phase(move) == MovePhase.DONE


@pytest.mark.parametrize("owner", ["another.host:1:1", "another node@host:99999999:1", "nobody knows"])
def test_the_lease_of_a_process_that_cannot_be_looked_for_is_left_alone(
    processor: ClusterQueryProcessor, settings, owner: str
) -> None:
    settings.MLVDB_LEASE_S = 3600
    assert leases.take_lease(MOVES_LEASE, owner) is not None
    move = redistribute()

    run()

    assert phase(move) == MovePhase.PLANNED
    assert Lease.objects.get(name=MOVES_LEASE).owner == owner


def test_the_lease_of_a_living_process_of_this_node_is_left_alone(processor: ClusterQueryProcessor, settings) -> None:
    settings.MLVDB_LEASE_S = 3600
    assert leases.take_lease(MOVES_LEASE, running.own_name()) is not None
    move = redistribute()

    run()

    assert phase(move) == MovePhase.PLANNED


# -- shards that are gone for good ---------------------------------------------------------------------------------


def lose(label: str) -> None:
    """Remove a shard by force, as when its node does not come back."""
    lost = shard(label)
    sharding_removal._remove_by_force(lost, "test", "it is gone")
    ShardHead.objects.filter(uid=lost.uid).delete()
    gates_settle()


def crash_in(monkeypatch: pytest.MonkeyPatch, effect: str, at: str) -> None:
    """Have the process end before an effect in a phase."""
    real = getattr(LocalEnd, effect)

    def crashing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if MoveStep.objects.filter(phase=at).exists():
            monkeypatch.setattr(LocalEnd, effect, real)
            raise Crash
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalEnd, effect, crashing)


PLACES = [
    ("rows", "copying"),
    ("entries", "following"),
    ("set_slots", "closing"),
    ("set_slots", "switching"),
    ("clean", "cleaning"),
]


@pytest.mark.parametrize("who", ["source", "target"])
@pytest.mark.parametrize(("effect", "at"), PLACES)
def test_a_step_whose_shard_is_lost_for_good_ends_and_leaves_nothing_behind(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, who: str, effect: str, at: str
) -> None:
    before = contents(processor)
    others = held("shard_2") | held("shard_1" if who == "source" else "shard_0")
    move = redistribute("shard_0", "shard_1")
    crash_in(monkeypatch, effect, at)
    with pytest.raises(Crash):
        run()

    lose("shard_0" if who == "source" else "shard_1")
    run()
    gates_settle()

    assert phase(move) in (MovePhase.FAILED, MovePhase.DONE)
    assert not Shard.objects.filter(gate_due=True).exists()
    settled()
    left = contents(processor)
    if at != "cleaning":
        # What was not on its way to or from the lost shard is all there.
        assert others & before.keys() <= left.keys()
    write(processor, range(ROWS), value=5.0)
    assert contents(processor) == dict.fromkeys(range(ROWS), 5.0)


def test_a_drained_shard_that_is_lost_on_the_way_is_gone_and_its_move_has_failed(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = sharding_removal.shard_remove(label="shard_0", actor="test")
    assert move is not None
    crash_in(monkeypatch, "entries", "following")
    with pytest.raises(Crash):
        run()

    lose("shard_0")
    run()

    assert phase(move) == MovePhase.FAILED
    assert shard("shard_0").state == ShardState.REMOVED
    settled()


def test_a_drained_shard_goes_when_its_last_slot_has_gone(processor: ClusterQueryProcessor) -> None:
    before = contents(processor)
    move = sharding_removal.shard_remove(label="shard_0", actor="test")
    assert move is not None

    run()

    assert phase(move) == MovePhase.DONE
    assert shard("shard_0").state == ShardState.REMOVED
    assert not ShardHead.objects.filter(label="shard_0").exists()
    assert contents(processor) == before
    assert len(owned("shard_1")) + len(owned("shard_2")) == ids.SLOT_COUNT
    settled()


def test_a_shard_stays_when_its_draining_is_cancelled(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    move = sharding_removal.shard_remove(label="shard_0", actor="test")
    assert move is not None
    between_pages(monkeypatch, lambda page: page == 1 and control.move_cancel(move.pk, actor="test"))

    run()

    assert phase(move) == MovePhase.CANCELLED
    assert shard("shard_0").state == ShardState.ACTIVE
    assert contents(processor) == before
    settled()
