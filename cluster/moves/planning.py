"""What a move of slots would do now: which slots go where, how much is in them, and about how long that takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.models import SLOT_KINDS, Move, Shard, Topology
from cluster.moves.ends import end_of
from cluster.services.sharding_rows import check_coordinator
from cluster.sharding import plan as planning
from cluster.sharding.table import SlotTable
from cluster.states import ShardState
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.slots import SlotSet
from vectors.errors import Conflict, InvalidInput, MLVectorDBError
from vectors.models import ShardHead
from vectors.runtime import runtime

logger = logging.getLogger(__name__)

_FIRST_RATE = 30 * 1024 * 1024
"""Bytes a second that a plan reckons with before any move has run on this node."""

_OPENING_S = 30.0
"""How long a move whose turn it is waits for its process to open a shard of this node."""

_Count = Callable[[Shard, np.ndarray], tuple[np.ndarray, np.ndarray]]


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


def plan_counted(kind: Move.Kind | str, *, source: Shard | None = None, target: Shard | None = None) -> MovePlan:
    """Return as `move_plan`; raise NotReady for a shard of this node whose rows are still being read in."""
    return _plan(kind, source, target, _counted)


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
        return _evenly(owned, shard.rows), _evenly(owned, shard.size_bytes)


def _evenly(owned: np.ndarray, amount: int) -> np.ndarray:
    """Return (slots,) whole numbers that are `amount` in all, spread over the owned slots."""
    up_to = np.cumsum(owned, dtype=np.int64) * amount // max(1, int(owned.sum()))
    return np.diff(up_to, prepend=0)


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
