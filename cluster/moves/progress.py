"""How far a move of slots is, as its steps say, and how it ends."""

from __future__ import annotations

import logging

from django.db.models import Sum
from django.utils import timezone

from cluster.models import Move
from cluster.services.changes import Unchanged, registry_change
from cluster.states import OPEN_PHASES, MovePhase

logger = logging.getLogger(__name__)


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
