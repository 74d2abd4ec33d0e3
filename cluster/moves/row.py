"""The row of a step of a move, as the run that works on it changes it: under the lease, and by compare-and-set.

A run that has lost the lease, or whose step was paused, cancelled or ended by others, finds out here, before its next
effect; nothing it says of the row afterwards is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from django.db.models import F

from cluster.models import Move, MoveStep
from cluster.moves.progress import move_progress
from cluster.services.changes import TASK, Change, registry_change
from cluster.states import CLOSED_PHASES, OPEN_PHASES, STEP_TRANSITIONS, MovePhase, allowed
from vectors.engine.slots import SlotSet
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults
from vectors.store.leases import Lease

_WRITE_EVERY_S = 0.5


class StepInterrupted(Exception):
    """Raised when a run is to leave its step where it is: it was paused, told to go another way, or its time is up."""


class StepRow:
    """One step's row. `until` is the moment (of `timer`) at which a run gives way to another, None for never."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, step: MoveStep, lease: Lease, *, until: float | None = None) -> None:
        self.step = step
        self.slots = SlotSet(bytes(step.slots))
        self._lease = lease
        self._until = until
        self._written_at = self.timer()
        self._done: list[tuple[int, int, float, bool]] = []

    @property
    def phase(self) -> MovePhase:
        """The phase as this run knows it."""
        return MovePhase(self.step.phase)

    @property
    def state(self) -> Mapping[str, Any]:
        """Where it is within its phase."""
        return self.step.state

    @property
    def round(self) -> int:
        """Which time it is that rows are copied, from 1 on; 0 before the first."""
        return int(self.step.state.get("round", 0))

    def check(self) -> None:
        """See that the next effect is this run's. Raise LeaseLost, and StepInterrupted when others set the phase."""
        self._lease.check()
        if not MoveStep.objects.filter(pk=self.step.pk, phase=self.step.phase).exists():
            raise StepInterrupted

    def heed(self) -> None:
        """Heed what people want of the move, and the time. Raise as `check`, and StepInterrupted when it is to stop."""
        self._lease.check()
        found = MoveStep.objects.filter(pk=self.step.pk).values_list("phase", "move__cancelled", "move__paused").first()
        if found is None or found[0] != self.step.phase:
            raise StepInterrupted
        if not self.phase.may_be_cancelled:
            return
        _, is_cancelled, is_paused = found
        if is_cancelled:
            self.set(MovePhase.CANCELLED if self.phase is MovePhase.PLANNED else MovePhase.UNDOING)
            raise StepInterrupted
        if is_paused or (self._until is not None and self.timer() > self._until):
            raise StepInterrupted

    @contextmanager
    def change(self, phase: MovePhase, *, tells: bool = True, **fields: Any) -> Iterator[Change]:
        """Open a change of the registry that brings the step into a phase. `tells` as in `registry_change`."""
        step = self.step
        assert allowed(STEP_TRANSITIONS, self.phase, phase), (self.phase, phase)
        action, subject = f"move_step_{phase.value}", f"move {step.move_id}"
        with registry_change(actor=TASK, action=action, subject=subject, tells=tells) as change:
            self._lease.check()
            if not MoveStep.objects.filter(pk=step.pk, phase=step.phase).update(phase=phase, **fields):
                raise StepInterrupted
            if not phase.is_over:
                # In the same transaction: what happens next is in this phase for everybody.
                Move.objects.filter(pk=step.move_id, phase__in=OPEN_PHASES).update(phase=phase)
            change.before = {"phase": step.phase}
            change.after = {
                "phase": phase.value,
                "source": step.source.label,
                "target": step.target.label,
                "slots": len(self.slots),
            }
            yield change
        step.phase = phase
        self._keep(fields)

    def set(self, phase: MovePhase, **fields: Any) -> None:
        """Bring the step into a phase, with nothing else in the same transaction."""
        with self.change(phase, **fields):
            pass

    def note(self, **fields: Any) -> None:
        """Write down where it is within its phase. Raise StepInterrupted when that is over."""
        self._lease.check()
        if not MoveStep.objects.filter(pk=self.step.pk, phase=self.step.phase).update(**fields):
            raise StepInterrupted
        self._keep(fields)

    def count(self, rows: int, size_bytes: int, took_s: float, *, is_extra: bool = False) -> None:
        """Note what was taken over; `is_extra` was in no plan. Written down every now and then."""
        self._done.append((rows, size_bytes, took_s, is_extra))
        now = self.timer()
        if now - self._written_at >= _WRITE_EVERY_S:
            self._written_at = now
            self.write_counts()

    def write_counts(self) -> None:
        """Write down what was counted; not while slots are closed, for that is done in a moment, and somebody waits."""
        if self.phase in CLOSED_PHASES or not self._done:
            return
        done, self._done = self._done, []
        rows, size_bytes = sum(part[0] for part in done), sum(part[1] for part in done)
        extra_rows, extra_bytes = (sum(part[place] for part in done if part[3]) for place in (0, 1))
        # To follow is easy: whether it comes to its end is settled by the close, whose failures are counted on.
        well = {"attempts": 0, "error": ""} if self.phase is MovePhase.COPYING else {}
        with storage_faults(), writers_in_line(), transaction.atomic():
            MoveStep.objects.filter(pk=self.step.pk).update(
                rows_done=F("rows_done") + rows,
                bytes_done=F("bytes_done") + size_bytes,
                rows_total=F("rows_total") + extra_rows,
                bytes_total=F("bytes_total") + extra_bytes,
                **well,
            )
            Move.objects.filter(pk=self.step.move_id).update(work_s=F("work_s") + sum(part[2] for part in done))
            move_progress(self.step.move_id)

    def _keep(self, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            setattr(self.step, name, value)
