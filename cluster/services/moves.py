"""Moves of slots as they are asked for: planned, queued, paused, resumed, cancelled; and how far each is.

A move is what somebody asked for; its steps, one for each pair of shards, are planned anew when its turn comes, for the
slots may have moved in the meantime. Moves run one after the other, in the order in which they were asked for.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db.models import Sum
from django.utils import timezone

from cluster.models import Move, MoveStep, Shard, Topology
from cluster.services.changes import Unchanged, registry_change
from cluster.services.shard_ends import end_of
from cluster.services.sharding_rows import check_coordinator
from cluster.sharding import plan as planning
from cluster.sharding.table import SlotTable
from cluster.states import MovePhase, ShardState
from mlvdb_site.celery import publish
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.slots import SlotSet
from vectors.errors import Conflict, InvalidInput, MLVectorDBError, NotFound
from vectors.models import ShardHead
from vectors.runtime import runtime

logger = logging.getLogger(__name__)

MOVES_TASK = "cluster.tasks.moves_run"
SLOT_KINDS = (Move.Kind.REBALANCE, Move.Kind.DRAIN, Move.Kind.REDISTRIBUTE)
OPEN_PHASES = tuple(phase for phase in MovePhase if not phase.is_over)

_FIRST_RATE = 30 * 1024 * 1024
"""Bytes a second that a plan reckons with before any move has run on this node."""

_OPENING_S = 30.0
"""How long a move whose turn it is waits for its process to open a shard of this node."""

_Count = Callable[[Shard, np.ndarray], tuple[np.ndarray, np.ndarray]]


class MoveNotFound(NotFound):
    """Raised when there is no move of that number."""

    code = "move_not_found"


class MoveOver(Conflict):
    """Raised when a move is to be changed that has ended, or is no move of slots."""

    code = "move_over"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Slots that would go from one shard to another, with what is in them now."""

    source: str
    target: str
    slots: SlotSet
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MovePlan:
    """A plan as of now, and about how long it would take at the rate of the last move."""

    kind: Move.Kind
    steps: Sequence[PlannedStep]
    eta_s: float | None

    @property
    def rows(self) -> int:
        """Rows that would be copied."""
        return sum(step.rows for step in self.steps)

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return sum(step.bytes for step in self.steps)

    @property
    def slots(self) -> int:
        """Slots that would change their owner."""
        return sum(len(step.slots) for step in self.steps)

    def to_document(self) -> dict[str, Any]:
        """Return it as it is shown and stored."""
        return {
            "slots": self.slots,
            "rows": self.rows,
            "bytes": self.bytes,
            "eta_s": self.eta_s,
            "steps": [
                {"source": step.source, "target": step.target, "slots": len(step.slots), "rows": step.rows,
                 "bytes": step.bytes}
                for step in self.steps
            ],
        }  # fmt: skip


def move_plan(kind: Move.Kind | str, *, source: Shard | None = None, target: Shard | None = None) -> MovePlan:
    """Return what a move would do now; nothing is changed.

    Of a shard that does not answer the rows of each slot are reckoned from its last probe. Raise ShardingNotEnabled,
    InvalidInput for a kind that cannot be asked for so, Conflict when no shard could take the slots.
    """
    return _plan(kind, source, target, _counted_or_reckoned)


def _plan(kind: Move.Kind | str, source: Shard | None, target: Shard | None, count: _Count) -> MovePlan:
    topology = check_coordinator()
    kind = _kind(kind, source, target)
    shards = {shard.pk: shard for shard in Shard.objects.all() if ShardState(shard.state).is_shard}
    table = _table(topology)
    rows, sizes = _counts(table, shards, count)
    ways = _ways(kind, table, shards, rows, source, target)
    steps = [
        PlannedStep(
            shards[way.source].label,
            shards[way.target].label,
            way.slots,
            int(rows[way.slots.mask].sum()),
            int(sizes[way.slots.mask].sum()),
        )
        for way in ways
    ]
    size_bytes = sum(step.bytes for step in steps)
    return MovePlan(kind, steps, round(size_bytes / _rate(), 1))


def move_request(
    kind: Move.Kind | str, *, source: Shard | None = None, target: Shard | None = None, actor: str
) -> Move:
    """Ask for a move; it begins when those before it are over. Raise as `move_plan`."""
    plan = move_plan(kind, source=source, target=target)
    subject = " to ".join(shard.label for shard in (source, target) if shard is not None) or "all shards"
    with registry_change(actor=actor, action=f"{plan.kind}_asked", subject=subject) as change:
        move = Move.objects.create(
            kind=plan.kind,
            shard="" if source is None else source.uid,
            actor=actor[:150],
            plan={**plan.to_document(), "target": None if target is None else target.uid},
            rows_total=plan.rows,
            bytes_total=plan.bytes,
        )
        change.subject = f"move {move.pk}"
        change.after = {"kind": plan.kind, "of": subject, "slots": plan.slots, "rows": plan.rows}
    publish(MOVES_TASK)
    logger.info("move_asked move=%d kind=%s of=%s slots=%d rows=%d", move.pk, plan.kind, subject, plan.slots, plan.rows)
    return move


def move_begin(move: Move) -> None:
    """Plan the steps of a move whose turn it is, from the slots as they are now.

    Raise as `move_plan`, and NotReady while this process is still opening a shard: what is in it is known in a moment.
    """
    source = Shard.objects.filter(uid=move.shard).first() if move.shard else None
    target_uid = move.plan.get("target")
    target = Shard.objects.filter(uid=target_uid).first() if target_uid else None
    plan = _plan(move.kind, source, target, _counted)
    labels = {shard.label: shard for shard in Shard.objects.all() if ShardState(shard.state).is_shard}
    with registry_change(actor=move.actor or "task", action="move_begun", subject=f"move {move.pk}") as change:
        if move.steps.exists() or move.plan.get("begun"):
            raise Unchanged
        for step in plan.steps:
            MoveStep.objects.create(
                move=move,
                uid=uuid.uuid4().hex,
                source=labels[step.source],
                target=labels[step.target],
                slots=step.slots.packed,
                rows_total=step.rows,
                bytes_total=step.bytes,
            )
        begun = {**plan.to_document(), "target": target_uid, "begun": True}
        Move.objects.filter(pk=move.pk).update(plan=begun, rows_total=plan.rows, bytes_total=plan.bytes)
        change.after = {"slots": plan.slots, "rows": plan.rows, "steps": len(plan.steps)}
    move.refresh_from_db()


def move_of(number: int) -> Move:
    """Return a move by its number; raise MoveNotFound."""
    move = Move.objects.filter(pk=number).first()
    if move is None:
        raise MoveNotFound(f"there is no move {number}", field="move_id")
    return move


def move_pause(number: int, *, actor: str) -> Move:
    """Stop a move where it is, until it is resumed; what has been closed is switched first. Raise MoveOver."""
    return _set(number, actor, "move_paused", paused=True)


def move_resume(number: int, *, actor: str) -> Move:
    """Let a move go on. Raise MoveOver."""
    return _set(number, actor, "move_resumed", paused=False)


def move_cancel(number: int, *, actor: str) -> Move:
    """End a move: steps that are not begun are not, those whose slots are with their source are undone.

    What has been closed already is brought to its end. Raise MoveNotFound, and MoveOver.
    """
    return _set(number, actor, "move_cancelled", cancelled=True, paused=False)


def move_progress(move_id: int) -> None:
    """Bring a move's own phase and numbers up to those of its steps."""
    move = Move.objects.get(pk=move_id)
    if MovePhase(move.phase).is_over:
        return
    steps = list(move.steps.all())
    running = [MovePhase(step.phase) for step in steps if not MovePhase(step.phase).is_over]
    begun = [phase for phase in running if phase is not MovePhase.PLANNED]
    totals = move.steps.aggregate(
        rows=Sum("rows_done"), all_rows=Sum("rows_total"), size=Sum("bytes_done"), all_size=Sum("bytes_total")
    )
    some_begun = any(MovePhase(step.phase) is not MovePhase.PLANNED for step in steps)
    phase = begun[0] if begun else MovePhase.COPYING if some_begun and running else MovePhase.PLANNED
    errors = [step.error for step in steps if step.error and not MovePhase(step.phase).is_over]
    Move.objects.filter(pk=move_id, phase__in=OPEN_PHASES).update(
        phase=phase,
        rows_done=totals["rows"] or 0,
        rows_total=totals["all_rows"] or 0,
        bytes_done=totals["size"] or 0,
        bytes_total=totals["all_size"] or 0,
        error=errors[0] if errors else "",
    )


def move_end(move: Move) -> MovePhase:
    """End a move whose steps are all over; return how."""
    move_progress(move.pk)
    phases = {MovePhase(step.phase) for step in move.steps.all()}
    end = MovePhase.DONE
    if MovePhase.FAILED in phases:
        end = MovePhase.FAILED
    elif move.cancelled and (MovePhase.CANCELLED in phases or not phases):
        end = MovePhase.CANCELLED
    with registry_change(actor=move.actor or "task", action=f"move_{end.value}", subject=f"move {move.pk}") as change:
        failed = move.steps.filter(phase=MovePhase.FAILED).exclude(error="").values_list("error", flat=True).first()
        ended = Move.objects.filter(pk=move.pk, phase__in=OPEN_PHASES).update(
            phase=end, ended_at=timezone.now(), paused=False, error=failed or ""
        )
        if not ended:
            raise Unchanged
        change.after = {"rows": move.steps.aggregate(rows=Sum("rows_done"))["rows"] or 0}
    logger.info("move_ended move=%d phase=%s", move.pk, end)
    return end


def _set(number: int, actor: str, action: str, **values: bool) -> Move:
    check_coordinator()
    move = move_of(number)
    if move.kind not in SLOT_KINDS:
        raise MoveOver(f"move {number} copies to a replica: pause or remove the replica instead", field="move_id")
    with registry_change(actor=actor, action=action, subject=f"move {number}") as change:
        move = Move.objects.get(pk=number)
        if MovePhase(move.phase).is_over:
            raise MoveOver(f"move {number} has ended: {move.phase}", field="move_id", detail={"phase": move.phase})
        if all(getattr(move, name) == value for name, value in values.items()):
            raise Unchanged
        Move.objects.filter(pk=number).update(**values)
        if values.get("cancelled"):
            move.steps.filter(phase=MovePhase.PLANNED).update(phase=MovePhase.CANCELLED)
        change.after = values
    publish(MOVES_TASK)
    move.refresh_from_db()
    return move


def _kind(kind: Move.Kind | str, source: Shard | None, target: Shard | None) -> Move.Kind:
    kind = Move.Kind(kind)
    if kind not in SLOT_KINDS:
        raise InvalidInput(f"kind is one of {', '.join(SLOT_KINDS)}", field="kind")
    if (source is None) != (kind is Move.Kind.REBALANCE) or (target is None) != (kind is not Move.Kind.REDISTRIBUTE):
        raise InvalidInput(
            "a rebalancing has no shards of its own, a drain has a source, a redistribution source and target",
            field="kind",
        )
    if source is not None and target is not None and source.pk == target.pk:
        raise InvalidInput("source and target are the same shard", field="target")
    if target is not None and not ShardState(target.state).is_target:
        raise Conflict(f"the shard {target.label} takes no slots: it is {target.state}", field="target")
    return kind


def _ways(
    kind: Move.Kind,
    table: SlotTable,
    shards: Mapping[int, Shard],
    rows: np.ndarray,
    source: Shard | None,
    target: Shard | None,
) -> list[planning.Way]:
    if source is not None and target is not None:
        return planning.redistribute(table, source.pk, target.pk)
    weights = {number: shard.weight for number, shard in shards.items() if ShardState(shard.state).is_target}
    try:
        if source is not None:
            return planning.drain(table, source.pk, weights, rows)
        return planning.rebalance(table, weights, rows)
    except ValueError as error:
        raise Conflict(f"nothing can be planned: {error}") from None


def _table(topology: Topology) -> SlotTable:
    if topology.slots is None:
        raise Conflict("no shard owns slots yet")
    return SlotTable.of_bytes(bytes(topology.slots))


def _counts(table: SlotTable, shards: Mapping[int, Shard], count: _Count) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and bytes of each slot at its owner."""
    rows, sizes = np.zeros(SLOT_COUNT, dtype=np.int64), np.zeros(SLOT_COUNT, dtype=np.int64)
    for number in np.unique(table.owners).tolist():
        owned = table.owners == number
        shard = shards.get(number)
        if shard is not None:
            there, there_bytes = count(shard, owned)
            rows[owned], sizes[owned] = there[owned], there_bytes[owned]
    return rows, sizes


def _counted_or_reckoned(shard: Shard, owned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        return end_of(shard).slot_counts()
    except MLVectorDBError as error:
        logger.info("slots_not_counted shard=%s error=%s", shard.label, error.message)
        even = owned / max(1, int(owned.sum()))
        return (even * shard.rows).astype(np.int64), (even * shard.size_bytes).astype(np.int64)


def _counted(shard: Shard, owned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return as `_counted_or_reckoned` does; raise NotReady for a shard of this node whose rows are being read in."""
    head = ShardHead.objects.filter(uid=shard.uid).first() if shard.is_local else None
    if head is not None:
        runtime().shard(head.pk).fresh(timeout_s=_OPENING_S)
    return _counted_or_reckoned(shard, owned)


def _rate() -> float:
    """Return the bytes a second of the last moves of slots that copied anything."""
    last = Move.objects.filter(kind__in=SLOT_KINDS, work_s__gt=0.5, bytes_done__gt=0).first()
    return _FIRST_RATE if last is None else max(1.0, last.bytes_done / last.work_s)
