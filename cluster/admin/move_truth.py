"""What is known of moves, for their pages: how far each is, its steps, and who asked for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.safestring import SafeString

from cluster.admin.history import Line, events_about
from cluster.admin.progress import Progress
from cluster.admin.shard_truth import slots_in
from cluster.admin.wording import badge, counted, paused_badge, size
from cluster.models import SLOT_KINDS, Move, MoveStep
from cluster.states import MovePhase


@dataclass(frozen=True, slots=True)
class StepNow:
    """Slots on their way from one shard to another."""

    step: MoveStep

    @property
    def slots(self) -> int:
        """How many they are."""
        return slots_in(bytes(self.step.slots))

    @property
    def phase(self) -> SafeString:
        """The phase as a coloured word."""
        return badge(MovePhase(self.step.phase))

    @property
    def percent(self) -> int | None:
        """The part of the rows that is there; None while it is not known of how many."""
        if MovePhase(self.step.phase) is MovePhase.DONE:
            return 100
        if not self.step.rows_total:
            return None
        return int(100 * min(1.0, self.step.rows_done / self.step.rows_total))

    @property
    def rows(self) -> str:
        """Rows done and to be done."""
        return f"{self.step.rows_done:,} of {counted(self.step.rows_total, 'row')}"

    @property
    def size(self) -> str:
        """Bytes done and to be done."""
        return f"{size(self.step.bytes_done)} of {size(self.step.bytes_total)}"

    @property
    def trouble(self) -> str:
        """What keeps it from going on, with how often it was tried, or why it ended; empty when nothing does."""
        if not self.step.error or MovePhase(self.step.phase).is_over:
            return self.step.error
        return f"{self.step.error} ({counted(self.step.attempts, 'attempt')} in a row; it is tried again)"


@dataclass(frozen=True, slots=True)
class MoveNow:
    """One move with its steps, oldest first, and its history."""

    progress: Progress
    steps: Sequence[StepNow]
    events: Sequence[Line] = field(default_factory=tuple)

    @property
    def move(self) -> Move:
        """Its row."""
        return self.progress.move

    @property
    def is_of_slots(self) -> bool:
        """Whether it moves slots; what is copied to a replica has no steps, and is neither paused nor cancelled."""
        return self.move.kind in SLOT_KINDS

    @property
    def may_be_paused(self) -> bool:
        """Whether pausing it changes anything."""
        return self.is_of_slots and not self.progress.is_over and not self.move.paused

    @property
    def may_be_resumed(self) -> bool:
        """Whether it is paused."""
        return self.is_of_slots and not self.progress.is_over and self.move.paused

    @property
    def may_be_cancelled(self) -> bool:
        """Whether anything of it can still be undone, or not be begun."""
        phases = [MovePhase(step.step.phase) for step in self.steps]
        can = any(phase.may_be_cancelled for phase in phases) if phases else True
        return self.is_of_slots and not self.progress.is_over and not self.move.cancelled and can

    @property
    def condition(self) -> SafeString:
        """Whether it waits for a person, or is being undone; empty when neither."""
        if self.progress.is_over:
            return SafeString("")
        if self.move.cancelled:
            return badge(MovePhase.UNDOING)
        return paused_badge() if self.move.paused else SafeString("")

    @property
    def slots(self) -> int:
        """How many slots it moves."""
        return sum(step.slots for step in self.steps)

    @property
    def ways(self) -> list[tuple[str, str]]:
        """From which shards to which it goes: as its plan says until it has begun."""
        if self.steps:
            return [(step.step.source.label, step.step.target.label) for step in self.steps]
        return [(str(step["source"]), str(step["target"])) for step in self.move.plan.get("steps", ())]

    @property
    def doing(self) -> str:
        """What its steps are at now, in words; empty when it is over, or has none."""
        if self.progress.is_over:
            return ""
        counts: dict[MovePhase, int] = defaultdict(int)
        for step in self.steps:
            counts[MovePhase(step.step.phase)] += 1
        return ", ".join(f"{counts[phase]} {phase.value}" for phase in MovePhase if phase in counts)


def moves_now(moves: Collection[Move]) -> list[MoveNow]:
    """Return what is known of some moves, in their order; their histories are left out."""
    now = timezone.now()
    steps = steps_of(moves)
    return [MoveNow(Progress(move, now), steps.get(move.pk, ())) for move in moves]


def move_now(move: Move) -> MoveNow:
    """Return what is known of one move, with its history."""
    steps = steps_of([move]).get(move.pk, ())
    return MoveNow(Progress(move, timezone.now()), steps, events_about(f"move {move.pk}"))


def steps_of(moves: Collection[Move]) -> Mapping[int, Sequence[StepNow]]:
    """Return the steps of moves by their keys: one query."""
    found: dict[int, list[StepNow]] = defaultdict(list)
    ids = [move.pk for move in moves]
    for step in MoveStep.objects.filter(move_id__in=ids).select_related("source", "target").order_by("id"):
        found[step.move_id].append(StepNow(step))
    return found


def progress_part(now: MoveNow) -> SafeString:
    """Return phase, bar and numbers of a move, as its list shows them."""
    return render_to_string("admin/cluster/move/cell.html", {"now": now, "progress": now.progress})


def move_part(now: MoveNow) -> SafeString:
    """Return all that is known of a move."""
    return render_to_string("admin/cluster/move/panel.html", {"now": now, "progress": now.progress})
