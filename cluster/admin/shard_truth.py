"""What is known of shards, for the pages: a constant number of queries for any of them.

Nobody else is asked, as with replicas: rows and bytes on other nodes are those of the newest probe, here they are
counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cluster.admin.chart import Bar, health_chart
from cluster.admin.probes import newest_probes
from cluster.admin.truth import BARS, BARS_WIDTH
from cluster.admin.wording import NOTHING, badge, counted, share, since, size, word_badge
from cluster.models import MoveStep, Shard, Topology
from cluster.sharding.table import SlotTable
from cluster.shards_overview import shard_holds
from cluster.states import FailoverState, MovePhase, PeerHealth, ShardState
from vectors.engine.ids import SLOT_COUNT
from vectors.models import ShardHead


@dataclass(frozen=True, slots=True)
class Totals:
    """What all shards have together; `weight` is that of the shards that plans give slots."""

    rows: int
    weight: float


@dataclass(frozen=True, slots=True)
class ShardNow:
    """One shard: `slots` is how many it owns, `rows` those in them, `steps` the moves from or to it under way."""

    shard: Shard
    slots: int
    rows: int
    size_bytes: int
    totals: Totals
    is_damaged: bool
    steps: Sequence[MoveStep]
    probes: Sequence[Bar]
    now: datetime
    room: int
    width: int

    @property
    def state(self) -> SafeString:
        """What it is in the registry, as a coloured word."""
        return badge(ShardState(self.shard.state))

    @property
    def health(self) -> SafeString:
        """What the failure detector thinks of its node, as a coloured word; of a local one whether it is whole."""
        if self.is_damaged:
            return word_badge("bad", "damaged")
        return word_badge("good", "this node") if self.shard.is_local else badge(PeerHealth(self.shard.health))

    @property
    def failover(self) -> SafeString:
        """What becomes of a shard whose node is dead, as a coloured word."""
        is_waited_for = FailoverState(self.shard.failover).is_waited_for
        return word_badge("busy", "failing over") if is_waited_for else word_badge("bad", "failover stuck")

    @property
    def health_since(self) -> SafeString | str:
        """How long the detector has been thinking so; empty for a local shard, which nobody probes."""
        return "" if self.shard.is_local else since(self.shard.health_since, self.now)

    @property
    def checked(self) -> SafeString | str:
        """How long ago it was probed; empty when it never was."""
        return "" if self.shard.checked_at is None else since(self.shard.checked_at, self.now)

    @property
    def chart(self) -> SafeString | str:
        """The newest probes as a picture."""
        return "" if self.shard.is_local else health_chart(self.probes, room=self.room, width=self.width)

    @property
    def error_since(self) -> SafeString:
        """How long ago the last error was met."""
        return since(self.shard.last_error_at, self.now)

    @property
    def slots_share(self) -> str:
        """Its slots, as a part of all."""
        return share(self.slots, SLOT_COUNT)

    @property
    def wanted_share(self) -> str:
        """The part of all slots that its weight stands for."""
        return share(self.shard.weight, self.totals.weight) if ShardState(self.shard.state).is_target else NOTHING

    @property
    def rows_share(self) -> str:
        """Its rows, as a part of all."""
        return share(self.rows, self.totals.rows)

    @property
    def slots_words(self) -> str:
        """How many slots it owns."""
        return f"{self.slots:,}"

    @property
    def rows_words(self) -> str:
        """How many rows it had when it was last asked."""
        return f"{self.rows:,}"

    @property
    def size(self) -> str:
        """Its bytes."""
        return size(self.size_bytes)

    @property
    def load(self) -> SafeString:
        """Its share of the slots as a bar."""
        percent = f"{100 * self.slots / SLOT_COUNT:.1f}"
        return format_html(
            '<meter class="share" min="0" max="100" value="{}" aria-label="{}"></meter>',
            percent,
            f"{self.shard.label} owns {percent} % of the slots",
        )

    @property
    def waits(self) -> str:
        """What a person should know of assignments that failed."""
        if not self.shard.attempts:
            return ""
        return f"its node could not be told its slots: {counted(self.shard.attempts, 'attempt')} in a row"

    @property
    def moving(self) -> list[str]:
        """The slots on their way from or to it, in words."""
        return [
            f"{counted(count, 'slot')} {'to' if is_source else 'from'} {label}"
            for (is_source, label), count in self._ways().items()
        ]

    def _ways(self) -> Mapping[tuple[bool, str], int]:
        ways: dict[tuple[bool, str], int] = defaultdict(int)
        for step in self.steps:
            is_source = step.source_id == self.shard.pk
            ways[is_source, (step.target if is_source else step.source).label] += slots_in(bytes(step.slots))
        return ways


def is_coordinator() -> bool:
    """Whether this node divides its rows over shards."""
    return Topology.objects.filter(is_owner=True, sharding_enabled=True).exists()


def living_shards() -> list[Shard]:
    """Return the shards of this coordinator, by label."""
    return [shard for shard in Shard.objects.order_by("label") if ShardState(shard.state).is_shard]


def shards_now(shards: Collection[Shard], *, bars: int = BARS, width: int = BARS_WIDTH) -> list[ShardNow]:
    """Return what is known of some shards, in their order."""
    now = timezone.now()
    table = slot_table()
    living = living_shards()
    held = {shard.pk: shard_holds(shard, table == shard.pk) for shard in living}
    totals = _totals(living, held)
    damaged = set(ShardHead.objects.filter(damage__isnull=False).values_list("uid", flat=True))
    ids = [shard.pk for shard in shards]
    steps: dict[int, list[MoveStep]] = defaultdict(list)
    for step in steps_under_way().filter(Q(source__in=ids) | Q(target__in=ids)):
        steps[step.source_id].append(step)
        steps[step.target_id].append(step)
    probes = newest_probes(Shard, ids, bars)
    return [
        ShardNow(
            shard,
            int((table == shard.pk).sum()),
            *held.get(shard.pk, (0, 0)),
            totals,
            shard.uid in damaged,
            steps.get(shard.pk, ()),
            probes.get(shard.pk, ()),
            now,
            room=bars,
            width=width,
        )
        for shard in shards
    ]


def slot_table() -> np.ndarray:
    """Return the key of each slot's owner, (16384,) uint16; 0, which is no shard's, where nothing is divided."""
    stored = Topology.objects.values_list("slots", flat=True).first()
    return np.zeros(SLOT_COUNT, dtype=np.uint16) if stored is None else SlotTable.of_bytes(bytes(stored)).owners


def slots_in(packed: bytes) -> int:
    """Return how many slots a packed set has."""
    return int.from_bytes(packed, "big").bit_count()


def steps_under_way() -> QuerySet[MoveStep]:
    """Return the steps of moves that are not over, with their shards; those whose move has not begun among them."""
    over = [phase.value for phase in MovePhase if phase.is_over]
    return MoveStep.objects.exclude(phase__in=over).select_related("source", "target", "move").order_by("id")


def _totals(shards: Sequence[Shard], held: Mapping[int, tuple[int, int]]) -> Totals:
    return Totals(
        rows=sum(rows for rows, _ in held.values()),
        weight=sum(shard.weight for shard in shards if ShardState(shard.state).is_target),
    )
