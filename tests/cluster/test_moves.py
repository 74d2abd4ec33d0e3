"""Moves of slots between shards of this node: interrupted anywhere, beside writers, until everything is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.models import Move, MoveStep, Shard
from cluster.moves import control, row
from cluster.moves.ends import LocalEnd
from cluster.moves.planning import move_plan
from cluster.query_processor import ClusterQueryProcessor
from cluster.services.changes import registry_change
from cluster.services.sharding_gates import MOVES_LEASE
from cluster.states import MovePhase
from tests.cluster.moving import (
    NAMESPACE,
    ROWS,
    Crash,
    between_pages,
    closed_slots,
    contents,
    delete,
    held,
    owned,
    phase,
    phases_seen,
    redistribute,
    run,
    settled,
    shards_with_rows,
    write,
)
from vectors.engine import ids
from vectors.engine.slots import NO_SLOTS, SlotSet
from vectors.errors import Conflict, InvalidInput, LogGap, MLVectorDBError, NotReady
from vectors.models import ShardHead
from vectors.query_processor.moving import MovingCopy
from vectors.store import leases, terms

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def processor(head: ShardHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterQueryProcessor]:
    """Two shards of this node with rows; the task is run by the tests."""
    with shards_with_rows(monkeypatch) as processor:
        yield processor


def test_a_move_brings_all_rows_and_leaves_none(processor: ClusterQueryProcessor) -> None:
    before = contents(processor)
    move = redistribute()

    run()

    move.refresh_from_db()
    assert (move.phase, move.ended_at is not None) == (MovePhase.DONE, True)
    assert move.rows_done == move.rows_total > 50
    assert contents(processor) == before
    assert (held("shard_0"), owned("shard_0")) == (set(), NO_SLOTS)
    settled()


def test_there_and_back_again_nothing_has_changed(processor: ClusterQueryProcessor) -> None:
    before, slots = contents(processor), owned("shard_1")

    redistribute("shard_0", "shard_1")
    redistribute("shard_1", "shard_0")
    run()

    assert contents(processor) == before
    assert owned("shard_0") | slots == owned("shard_0")
    settled()


EFFECTS = [
    "position",
    "pin",
    "rows",
    "entries",
    "take",
    "cursor",
    "set_slots",
    "clean",
    "forget",
    "unpin",
    "wait_quorum",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_crash_at_any_effect_is_gone_on_from(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, effect: str, when: str, nth: int, settings
) -> None:
    """The process ends; another one goes on after writes, deletes and searches that came in between."""
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    calls = 0
    real = getattr(LocalEnd, effect)

    def crashing(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise Crash
        answer = real(self, *args, **kwargs)
        if calls == nth and when == "after":
            raise Crash
        return answer

    monkeypatch.setattr(LocalEnd, effect, crashing)

    _crash_and_go_on(processor)
    assert calls, "there is no such effect"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_crash_at_any_change_of_the_registry_is_gone_on_from(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, when: str, nth: int
) -> None:
    calls = 0

    @contextmanager
    def crashing(**kwargs: Any) -> Iterator[Any]:
        nonlocal calls
        calls += 1
        with registry_change(**kwargs) as change:
            yield change
            if calls == nth and when == "before":
                raise Crash
        if calls == nth and when == "after":
            raise Crash

    monkeypatch.setattr(row, "registry_change", crashing)

    _crash_and_go_on(processor)
    assert calls, "the registry is changed elsewhere"


def step_slots(step: MoveStep, *, without: int) -> SlotSet:
    """Return the slots of a step but for that of a row."""
    return SlotSet(bytes(step.slots)) - SlotSet.of([ids.slot_of(ids.key_of(without))])


def _crash_and_go_on(processor: ClusterQueryProcessor) -> None:
    before = contents(processor)
    move = redistribute()
    try:
        run()
    except Crash:
        is_over = False
    else:
        # There are not that many.
        is_over = phase(move) == MovePhase.DONE
        assert is_over
    assert contents(processor) == before
    if not closed_slots() or is_over:
        # What is closed would wait for the move, which is this very thread.
        write(processor, range(0, ROWS, 3), value=1.0)
        delete(processor, range(1, ROWS, 3))
        before = {n: 1.0 if n % 3 == 0 else v for n, v in before.items() if n % 3 != 1}
        assert contents(processor) == before

    run()

    assert phase(move) == MovePhase.DONE
    assert contents(processor) == before
    assert held("shard_0") == set()
    settled()


def test_what_is_written_and_deleted_meanwhile_arrives(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 2048
    expected = contents(processor)

    def disturb(page: int) -> None:
        # A write to closed slots waits for the move, which is this very thread.
        if page > 12 or closed_slots():
            return
        numbers = range(page, ROWS, 17)
        write(processor, numbers, value=float(page))
        delete(processor, range(page + 3, ROWS, 23))
        expected.update(dict.fromkeys(numbers, float(page)))
        for number in range(page + 3, ROWS, 23):
            expected.pop(number, None)
        assert contents(processor) == expected

    between_pages(monkeypatch, disturb)
    redistribute()
    run()

    assert contents(processor) == expected
    settled()


def test_a_cancelled_move_leaves_everything_where_it_was(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    before, slots = contents(processor), owned("shard_0")
    move = redistribute()
    between_pages(monkeypatch, lambda page: page == 2 and control.move_cancel(move.pk, actor="test"))

    run()

    assert phase(move) == MovePhase.CANCELLED
    assert (contents(processor), owned("shard_0")) == (before, slots)
    settled()


def test_a_paused_move_waits_and_goes_on(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    before = contents(processor)
    move = redistribute()
    between_pages(monkeypatch, lambda page: page == 2 and control.move_pause(move.pk, actor="test"))

    run()
    assert phase(move) == MovePhase.COPYING
    assert contents(processor) == before

    control.move_resume(move.pk, actor="test")
    run()
    assert phase(move) == MovePhase.DONE
    assert contents(processor) == before
    settled()


def test_a_target_that_fails_while_slots_are_closed_does_not_get_them(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, slots = contents(processor), owned("shard_0")
    move = redistribute()
    fails = True
    monkeypatch.setattr(LocalEnd, "wait_quorum", lambda *_args, **_kwargs: not (fails and closed_slots()))
    seen = phases_seen(monkeypatch)

    run()

    assert (phase(move), owned("shard_0")) == (MovePhase.FOLLOWING, slots)
    assert seen[-4:] == ["closing", "switching", "reopening", "following"]
    step = MoveStep.objects.get()
    assert "not enough copies" in step.error
    assert step.attempts == 1
    write(processor, range(ROWS), value=2.0)
    assert contents(processor) == dict.fromkeys(before, 2.0)

    fails = False
    run()
    assert phase(move) == MovePhase.DONE
    assert contents(processor) == dict.fromkeys(before, 2.0)
    settled()


def test_a_close_that_takes_too_long_is_taken_back(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    """The source's last page does not come while its slots are closed; its clients do not wait for that."""
    before = contents(processor)
    move = redistribute()
    fails = True
    real = LocalEnd.take

    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        if fails and closed_slots():
            raise NotReady("it is away")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalEnd, "take", take)
    run()
    assert (phase(move), closed_slots()) == (MovePhase.FOLLOWING, False)
    write(processor, range(ROWS), value=2.0)

    fails = False
    run()
    assert phase(move) == MovePhase.DONE
    assert contents(processor) == dict.fromkeys(before, 2.0)
    settled()


def test_nothing_is_closed_before_the_target_s_copies_have_what_was_moved(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEnd, "wait_quorum", lambda *_args, **_kwargs: False)
    seen = phases_seen(monkeypatch)
    move = redistribute()

    run()

    assert (phase(move), MoveStep.objects.get().attempts) == (MovePhase.FOLLOWING, 1)
    assert "closing" not in seen


def test_nothing_is_closed_while_much_of_the_log_is_yet_to_be_read(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    """What the log has is nearly all of other slots: pages without a row are read, and still it is far to the head."""
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    lags: list[int] = []
    real = LocalEnd.set_slots

    def set_slots(self: Any, *args: Any, **kwargs: Any) -> Any:
        if MoveStep.objects.filter(phase=MovePhase.CLOSING).exists():
            cursor = MovingCopy(ShardHead.objects.get(label="shard_1").pk).cursor(MoveStep.objects.get().uid + ".1")
            lags.append(ShardHead.objects.get(label="shard_0").last_seq - int(cursor.rpartition(".")[2]))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalEnd, "set_slots", set_slots)
    keep = next(n for n in range(ROWS) if n in held("shard_0"))
    move = control.move_request(
        Move.Kind.REDISTRIBUTE, source=Shard.objects.get(label="shard_0"), target=Shard.objects.get(label="shard_1"),
        actor="test",
    )  # fmt: skip
    control.move_begin(move)
    step = MoveStep.objects.get()
    few = step_slots(step, without=keep)
    MoveStep.objects.update(slots=few.packed)
    between_pages(monkeypatch, lambda page: page == 1 and [write(processor, [keep], value=float(n)) for n in range(60)])

    run()

    assert phase(move) == MovePhase.DONE
    assert len(lags) == 1
    assert lags[0] <= 2


def test_a_log_that_is_pruned_too_far_is_copied_anew(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    real, gaps = LocalEnd.entries, 1

    def entries(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal gaps
        if gaps:
            gaps -= 1
            raise LogGap("the entries are pruned")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalEnd, "entries", entries)
    move = redistribute()

    run()

    assert (phase(move), MoveStep.objects.get().state["round"]) == (MovePhase.DONE, 2)
    assert contents(processor) == before
    settled()


def test_a_copy_that_must_begin_again_and_again_is_left_alone_for_a_while(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(*_args: Any, **_kwargs: Any) -> Any:
        raise LogGap("the entries are pruned")

    monkeypatch.setattr(LocalEnd, "entries", entries)
    move = redistribute()

    run()

    step = MoveStep.objects.get()
    assert (phase(move), step.attempts, step.error) == (MovePhase.COPYING, 1, "the entries are pruned")


@pytest.mark.parametrize("is_open", [False, True])
def test_a_target_with_another_primary_while_slots_are_closed_does_not_get_them(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    """It is one by a new term, just before its gate is opened, or just after that."""
    before = contents(processor)
    head = ShardHead.objects.get(label="shard_1")
    real, is_due = LocalEnd.set_slots, True

    def set_slots(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal is_due
        changes = is_due and MoveStep.objects.filter(phase=MovePhase.SWITCHING).exists()
        is_due = is_due and not changes
        if changes and not is_open:
            terms.term_start(head.pk, 2)
        answer = real(self, *args, **kwargs)
        if changes and is_open:
            terms.term_start(head.pk, 2)
        return answer

    monkeypatch.setattr(LocalEnd, "set_slots", set_slots)
    seen = phases_seen(monkeypatch)
    move = redistribute()

    run()

    assert phase(move) == MovePhase.DONE
    assert MoveStep.objects.get().state["round"] == 2
    assert "reopening" in seen
    assert contents(processor) == before
    settled()


def test_a_shard_that_is_elsewhere_by_now_is_not_closed_where_it_was(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes go where the registry says: what is closed elsewhere keeps none of them out."""
    seen = phases_seen(monkeypatch)
    Shard.objects.filter(label="shard_0").update(node="a" * 32)
    between_pages(monkeypatch, lambda page: page == 1 and Shard.objects.filter(label="shard_0").update(node="b" * 32))
    move = redistribute()

    run()
    assert phase(move) == MovePhase.FOLLOWING
    assert "closing" not in seen

    run()
    assert phase(move) == MovePhase.DONE


@pytest.mark.parametrize("label", ["shard_0", "shard_1"])
def test_rows_are_copied_anew_when_their_source_or_their_target_begins_a_new_term(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings, label: str
) -> None:
    """A copy in the source's place may lack entries; one in the target's has its log, and knows of no move."""
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    before = contents(processor)
    head = ShardHead.objects.get(label=label)
    between_pages(monkeypatch, lambda page: page == 2 and terms.term_start(head.pk, 2))
    move = redistribute()

    run()

    assert (phase(move), MoveStep.objects.get().state["round"]) == (MovePhase.DONE, 2)
    assert contents(processor) == before
    settled()


def test_another_process_s_lease_is_left_alone(processor: ClusterQueryProcessor) -> None:
    move = redistribute()
    lease = leases.take_lease(MOVES_LEASE, "another")
    assert lease is not None

    with lease:
        run()
        assert phase(move) == MovePhase.PLANNED

    run()
    assert phase(move) == MovePhase.DONE


def test_a_run_whose_lease_is_lost_has_no_effect_any_more(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    move = redistribute()
    between_pages(monkeypatch, lambda page: page == 2 and leases.seize_lease(MOVES_LEASE, "another"))

    run()

    assert phase(move) == MovePhase.COPYING
    assert MoveStep.objects.get().phase == MovePhase.COPYING


def test_a_dropped_namespace_stays_away(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, settings
) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 1024
    write(processor, range(ROWS), namespace="other")
    between_pages(monkeypatch, lambda page: page == 2 and processor.namespace_drop("other"))
    redistribute()

    run()

    assert processor.list_namespaces().value == [NAMESPACE]
    write(processor, range(5), namespace="other")
    assert sorted(contents(processor, "other")) == [0, 1, 2, 3, 4]


def test_moves_run_one_after_the_other_and_are_planned_when_it_is_their_turn(
    processor: ClusterQueryProcessor,
) -> None:
    before = contents(processor)
    redistribute()
    second = control.move_request(Move.Kind.REBALANCE, actor="test")
    assert second.plan["slots"] == 0

    run()

    assert phase(second) == MovePhase.DONE
    assert abs(len(owned("shard_0")) - len(owned("shard_1"))) <= 1
    assert contents(processor) == before
    settled()


def test_a_plan_changes_nothing(processor: ClusterQueryProcessor) -> None:
    plan = move_plan(
        Move.Kind.REDISTRIBUTE,
        source=Shard.objects.get(label="shard_0"),
        target=Shard.objects.get(label="shard_1"),
    )

    assert (plan.slots, plan.rows) == (len(owned("shard_0")), len(held("shard_0")))
    assert plan.bytes > 8 * plan.rows
    assert not Move.objects.exists()


def test_what_cannot_be_asked_for_is_refused(processor: ClusterQueryProcessor) -> None:
    one = Shard.objects.get(label="shard_0")

    with pytest.raises(InvalidInput, match="same shard"):
        control.move_request(Move.Kind.REDISTRIBUTE, source=one, target=one, actor="test")
    with pytest.raises(InvalidInput, match="source"):
        control.move_request(Move.Kind.DRAIN, actor="test")
    with pytest.raises(control.MoveNotFound):
        control.move_pause(77, actor="test")
    move = redistribute()
    run()
    with pytest.raises(control.MoveOver):
        control.move_cancel(move.pk, actor="test")
    assert issubclass(control.MoveOver, Conflict)


def test_a_shard_that_cannot_be_reached_only_delays(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(processor)
    move = redistribute()
    away = True
    real = MovingCopy.take

    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        if away:
            raise NotReady("it is away")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MovingCopy, "take", take)
    run()
    run()
    assert MoveStep.objects.get().attempts == 2
    assert Move.objects.get(pk=move.pk).error == "it is away"
    assert contents(processor) == before

    away = False
    run()
    assert phase(move) == MovePhase.DONE
    assert (Move.objects.get(pk=move.pk).error, MoveStep.objects.get().attempts) == ("", 0)
    assert contents(processor) == before
    assert issubclass(NotReady, MLVectorDBError)
