"""Moves: rows that say what is being copied, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.utils import timezone

from cluster.models import Move, Replica, ReplicaCopy
from cluster.states import MOVE_TRANSITIONS, OPEN_PHASES, MovePhase, allowed


def move_begin(
    *,
    kind: str,
    replica: Replica,
    shard: str,
    plan: Mapping[str, Any],
    rows_total: int = 0,
    bytes_total: int = 0,
) -> Move:
    """Return the move of that kind that is under way for a copy, with the new plan; made when there is none."""
    with transaction.atomic():
        move = Move.objects.filter(kind=kind, replica=replica, shard=shard, phase__in=OPEN_PHASES).first()
        if move is None:
            return Move.objects.create(
                kind=kind,
                replica=replica,
                replica_name=replica.name,
                shard=shard,
                plan=dict(plan),
                rows_total=rows_total,
                bytes_total=bytes_total,
            )
        move.plan = {**move.plan, **plan}
        move.rows_total, move.bytes_total = rows_total, bytes_total
        move.save(update_fields=["plan", "rows_total", "bytes_total"])
        return move


def move_end(move: Move, phase: MovePhase, *, error: str = "") -> bool:
    """End a move; return whether it was this call that ended it."""
    assert phase.is_over
    legal = [old for old in OPEN_PHASES if allowed(MOVE_TRANSITIONS, old, phase)]
    fields: dict[str, Any] = {"phase": phase, "error": error[:500], "ended_at": timezone.now()}
    if phase is MovePhase.DONE:
        fields |= {"rows_done": move.rows_total, "bytes_done": move.bytes_total}
    ended = Move.objects.filter(pk=move.pk, phase__in=legal).update(**fields)
    if ended:
        for name, value in fields.items():
            setattr(move, name, value)
    return bool(ended)


def catch_ups_settle() -> None:
    """Note the progress of catch-ups, and end those whose copy has got where it was to get. By beat."""
    for move in Move.objects.filter(kind=Move.Kind.CATCH_UP, phase__in=OPEN_PHASES):
        copy = ReplicaCopy.objects.filter(replica=move.replica_id, shard=move.shard).first()
        if copy is None:
            move_end(move, MovePhase.CANCELLED, error="the replica was removed")
            continue
        goal = int(move.plan.get("to_seq", 0))
        if copy.seq >= goal:
            move_end(move, MovePhase.DONE)
        else:
            done = max(0, copy.seq - int(move.plan.get("from_seq", 0)))
            Move.objects.filter(pk=move.pk, phase__in=OPEN_PHASES).update(phase=MovePhase.FOLLOWING, rows_done=done)
