"""Running moves of slots: one after the other, under one lease, by a Celery task and the sweep behind its knocks.

A run ends after a while, with another one behind it: a worker that is told to stop must not wait for ever. A move waits
until the one before it has given away all it will give; what is left to be cleaned up after that one may wait for a
shard that is away, and holds nobody up.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from django.conf import settings
from django.db.models import F

from cluster.models import SLOT_KINDS, Move, MoveStep, Shard
from cluster.moves.control import MOVES_TASK, move_begin
from cluster.moves.progress import move_end, move_progress
from cluster.moves.row import StepInterrupted
from cluster.moves.step import StepRun
from cluster.services.sharding_gates import MOVES_LEASE
from cluster.services.sharding_removal import drained_settle, shard_stay
from cluster.services.sweeps import Sweeps
from cluster.states import OPEN_PHASES, SETTLED_PHASES, MovePhase
from mlvdb_site.celery import publish
from vectors.errors import LeaseLost, MLVectorDBError
from vectors.models import Lease as LeaseRow
from vectors.store.leases import Lease, seize_lease, take_lease

logger = logging.getLogger(__name__)

_AT_MOST_S = 60.0

_timer: Callable[[], float] = time.monotonic


def moves_run(*, owner: str | None = None) -> None:
    """Run what is queued until nothing can go on, or for a minute; nothing when another process is at it."""
    _sweeps.next()
    if Shard.objects.filter(recheck_due=True).exists():
        # Who owns which slots is not known yet, for this node has just become the coordinator.
        return
    until = _timer() + _AT_MOST_S
    while open_moves():
        lease = _lease(owner or own_name())
        if lease is None:
            return
        with lease:
            # Let go of between steps: gates that a forced removal has to open wait for it.
            if not _go_on(lease, until):
                return
        if _timer() > until:
            publish(MOVES_TASK)
            return


def open_moves() -> bool:
    """Whether any move of slots is asked for or under way."""
    return Move.objects.filter(kind__in=SLOT_KINDS, phase__in=OPEN_PHASES).exists()


def own_name() -> str:
    """Return the owner that this thread is of the lease."""
    return f"{_own_host()}:{os.getpid()}:{threading.get_ident()}"


_sweeps = Sweeps()


def _lease(owner: str) -> Lease | None:
    lease = take_lease(MOVES_LEASE, owner)
    if lease is None and _is_gone(LeaseRow.objects.filter(name=MOVES_LEASE).values_list("owner", flat=True).first()):
        # Slots may be closed to writes: nobody waits for the silence of a process that is known to be no more.
        return seize_lease(MOVES_LEASE, owner)
    return lease


def _own_host() -> str:
    return f"{settings.MLVDB_NODE_ID[:12]}@{socket.gethostname()}"


def _is_gone(owner: str | None) -> bool:
    """Whether the lease's owner is a process of this node that has ended; False where that cannot be told."""
    host, _, rest = (owner or "").partition(":")
    process = rest.partition(":")[0]
    if host != _own_host() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _go_on(lease: Lease, until: float) -> bool:
    """Bring the first move that can go on one step further; False when none can for now."""
    for move in Move.objects.filter(kind__in=SLOT_KINDS, phase__in=OPEN_PHASES, cancelled=True):
        if not move.steps.filter(phase__in=OPEN_PHASES).exists():
            # Whoever cancels what is still waiting need not wait for what is before it.
            _ended(move)
    for move in Move.objects.filter(kind__in=SLOT_KINDS, phase__in=OPEN_PHASES).order_by("id"):
        try:
            steps = _steps_of(move)
        except LeaseLost:
            return False
        except MLVectorDBError as error:
            logger.warning("move_not_begun move=%d error=%s", move.pk, error.message)
            Move.objects.filter(pk=move.pk).update(error=error.message[:500])
            return False
        if steps is None:
            continue
        if not steps:
            _ended(move)
            return True
        # What has begun goes first. One that fails is left alone for a while, and those after it go on.
        steps.sort(key=lambda step: step.phase == MovePhase.PLANNED)
        came_on = [_run(step, lease, until) for step in steps if _sweeps.is_due(step.attempts)]
        if any(came_on):
            return True
        if not _only_cleans(move):
            return False
    return False


def _steps_of(move: Move) -> list[MoveStep] | None:
    """Return the steps that are left of a move, planned if that is yet to be done; None for one that is to wait."""
    if not (move.plan.get("begun") or move.cancelled):
        if move.paused:
            return None
        move_begin(move)
    steps = list(move.steps.filter(phase__in=OPEN_PHASES).select_related("source", "target").order_by("id"))
    if move.paused and steps and all(step.phase == MovePhase.PLANNED for step in steps):
        return None
    return steps


def _only_cleans(move: Move) -> bool:
    phases: Sequence[str] = list(move.steps.filter(phase__in=OPEN_PHASES).values_list("phase", flat=True))
    return all(phase in SETTLED_PHASES for phase in phases)


def _run(step: MoveStep, lease: Lease, until: float) -> bool:
    """Run a step; return whether it came to its end, or was told to go another way."""
    try:
        StepRun(step, lease, until=until).run()
        return True
    except StepInterrupted:
        move_progress(step.move_id)
        return not Move.objects.filter(pk=step.move_id, paused=True).exists()
    except LeaseLost:
        logger.warning("moves_lease_lost step=%s", step.uid)
        return False
    except MLVectorDBError as error:
        logger.warning("move_step_failed step=%s phase=%s error=%s", step.uid, step.phase, error.message)
        _note_failure(step, error.message)
    except Exception:
        # Not one step's fault is to hold up the others, and whoever looks at the move is to see that there is one.
        logger.exception("move_step_failed step=%s phase=%s", step.uid, step.phase)
        _note_failure(step, "internal error, see the log")
    return False


def _note_failure(step: MoveStep, error: str) -> None:
    MoveStep.objects.filter(pk=step.pk).update(attempts=F("attempts") + 1, error=error[:500])
    move_progress(step.move_id)


def _ended(move: Move) -> None:
    end = move_end(move)
    if move.kind != Move.Kind.DRAIN:
        return
    shard = Shard.objects.filter(uid=move.shard).first()
    if end is MovePhase.CANCELLED and shard is not None:
        shard_stay(shard, actor=move.actor)
    else:
        drained_settle()
