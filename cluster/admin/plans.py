"""A plan of moves before it is asked for: what goes where, how much, and about how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from cluster.admin.wording import counted, duration, size
from cluster.models import Move, Shard
from cluster.moves.planning import move_plan
from vectors.errors import MLVectorDBError


@dataclass(frozen=True, slots=True)
class PlannedWay:
    """Slots that would go from one shard to another."""

    source: str
    target: str
    slots: int
    rows: int
    size_bytes: int

    @property
    def size(self) -> str:
        """Its bytes."""
        return size(self.size_bytes)


@dataclass(frozen=True, slots=True)
class PlanNow:
    """A plan made from the numbers of this moment; `refusal` is why there is none."""

    steps: Sequence[PlannedWay] = ()
    seconds: float | None = None
    refusal: str = ""

    @property
    def sentence(self) -> str:
        """The whole plan in a line."""
        if not self.steps:
            return "Nothing has to move."
        slots, rows = sum(step.slots for step in self.steps), sum(step.rows for step in self.steps)
        about = "" if self.seconds is None else f", in about {duration(max(1.0, self.seconds))}"
        return (
            f"{counted(slots, 'slot')} move with {counted(rows, 'row')},"
            f" {size(sum(step.size_bytes for step in self.steps))}{about}."
        )


def plan_now(kind: Move.Kind, *, source: Shard | None = None, target: Shard | None = None) -> PlanNow:
    """Return the plan as the service makes it, without asking for it; with the reason where it refuses."""
    try:
        plan = move_plan(kind, source=source, target=target)
    except MLVectorDBError as refusal:
        return PlanNow(refusal=refusal.message)
    return PlanNow(
        [PlannedWay(step.source, step.target, len(step.slots), step.rows, step.bytes) for step in plan.steps],
        plan.eta_s,
    )


def plan_part(plan: PlanNow) -> SafeString:
    """Return the plan as a table."""
    return render_to_string("admin/cluster/shard/plan.html", {"plan": plan})
