"""Moves of slots as they are asked for, and as people pause, resume and cancel them.

A move is what somebody asked for; its steps, one for each pair of shards, are planned anew when its turn comes, for the
slots may have moved in the meantime. Moves run one after the other, in the order in which they were asked for.
"""

from __future__ import annotations

import logging
import uuid

from cluster.models import SLOT_KINDS, Move, MoveStep, Shard
from cluster.moves.planning import move_plan, plan_counted
from cluster.services.changes import TASK, Unchanged, registry_change
from cluster.services.sharding_rows import check_coordinator
from cluster.states import MovePhase, ShardState
from mlvdb_site.celery import publish
from vectors.errors import Conflict, MLVectorDBError, NotFound

logger = logging.getLogger(__name__)

MOVES_TASK = "cluster.tasks.moves_run"


class MoveNotFound(NotFound):
    """Raised when there is no move of that number."""

    code = "move_not_found"


class MoveOver(Conflict):
    """Raised when a move is to be changed that has ended, or is no move of slots."""

    code = "move_over"


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
    plan = plan_counted(move.kind, source=source, target=target)
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


def fill_now(*, actor: str = TASK) -> Move | None:
    """Ask for a rebalancing when a shard waits for its share and can be given it; return the move.

    The mark is cleared after the move is there: a crash in between makes two moves, and the second finds nothing to do.
    """
    waiting = [shard.pk for shard in Shard.objects.filter(fill_due=True) if ShardState(shard.state).is_target]
    if not waiting:
        return None
    try:
        move = move_request(Move.Kind.REBALANCE, source=None, target=None, actor=actor)
    except MLVectorDBError as error:
        # The shard is there, and beat asks again.
        logger.warning("shards_not_filled error=%s", error.message)
        return None
    Shard.objects.filter(pk__in=waiting).update(fill_due=False)
    logger.info("shards_filled shards=%d move=%d", len(waiting), move.pk)
    return move


def drain_now(shard: Shard, *, actor: str = TASK) -> Move:
    """Ask for the move that takes all slots from a shard; the one that is under way when there is one."""
    under_way = Move.objects.filter(kind=Move.Kind.DRAIN, shard=shard.uid, ended_at__isnull=True).first()
    return under_way or move_request(Move.Kind.DRAIN, source=shard, target=None, actor=actor)


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
