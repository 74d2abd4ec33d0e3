"""What is known of replicas and of each of their copies, for the pages: a constant number of queries for any of them.

All of it is read from this node's own rows, without asking anybody: the positions that copies have answered, this
node's log, the probes. So a page is as good while a replica is down, which is when it is looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import BigIntegerField, Case, F, OuterRef, QuerySet, Subquery, When
from django.utils import timezone
from django.utils.safestring import SafeString

from cluster.admin.chart import Bar, health_chart
from cluster.admin.probes import newest_probes
from cluster.admin.progress import progress_bar
from cluster.admin.wording import NOTHING, admin_link, badge, duration, paused_badge, position, since, verdict_badge
from cluster.models import Move, Placement, Replica, ReplicaCopy, Topology
from cluster.replication import quorum
from cluster.selectors import own_placements
from cluster.states import CopyState, Membership, PeerHealth
from vectors.models import LogEntry, ShardHead, ShardTerm

BARS = 40
BARS_WIDTH = 130
MORE_BARS = 180
MORE_BARS_WIDTH = 720


@dataclass(frozen=True, slots=True)
class CopyTruth:
    """One copy: `row` is a row of `copies_with_lag`, `move` the sync of it that is under way."""

    row: Any
    move: Move | None
    now: datetime

    @property
    def label(self) -> str:
        """The shard's label; the beginning of its uid where this node has no copy of it."""
        return self.row.label or self.row.shard[:8]

    @property
    def state(self) -> SafeString:
        """The state as a coloured word."""
        return badge(CopyState(self.row.state))

    @property
    def state_since(self) -> SafeString:
        """How long it has been in that state."""
        return since(self.row.state_since, self.now)

    @property
    def membership(self) -> SafeString:
        """Whether it counts, as a coloured word."""
        return badge(Membership(self.row.membership))

    @property
    def applied(self) -> str:
        """The newest entry it has answered to have."""
        return position(self.row.term, self.row.seq)

    @property
    def lag(self) -> int | None:
        """Operations of this node's log that it lacks; None where this node has no log of the shard.

        Entries of an older term that the primary does not have are none of them: they are set aside.
        """
        return None if self.row.head_seq is None else max(0, self.row.head_seq - self.row.common_seq)

    @property
    def lag_words(self) -> str:
        """The lag in operations."""
        return NOTHING if self.lag is None else f"{self.lag:,}"

    @property
    def lag_s(self) -> float | None:
        """Seconds since the oldest operation that it lacks was logged; None when it lacks none, or when that is not
        known any more."""
        if not self.lag or self.row.lacks_since is None:
            return None
        return max(0.0, (self.now - self.row.lacks_since).total_seconds())

    @property
    def lag_s_words(self) -> str:
        """The lag in seconds; "more than" where the oldest operation it lacks is in no log any more."""
        if not self.lag:
            return "0 s" if self.lag == 0 else NOTHING
        if self.lag_s is None:
            return "unknown"
        return f"{'' if self.row.lacks_seq == self.row.common_seq + 1 else 'more than '}{duration(self.lag_s)}"

    @property
    def is_behind(self) -> bool:
        """Whether it lacks anything."""
        return bool(self.lag)

    @property
    def verdict(self) -> SafeString:
        """What comparing its contents has brought."""
        return verdict_badge(self.row.digest_verdict)

    @property
    def verdict_since(self) -> SafeString | str:
        """How long ago they were compared."""
        return "" if self.row.digest_at is None else since(self.row.digest_at, self.now)

    @property
    def verdict_reason(self) -> str:
        """Why they differ, or why nobody could tell."""
        return str(self.row.digest_detail.get("reason", ""))

    @property
    def waits_for_person(self) -> bool:
        """Whether nothing goes on by itself: both contents verify, and differ."""
        return bool(self.row.digest_detail.get("waits_for_person"))

    @property
    def progress(self) -> SafeString | str:
        """The progress bar of the sync that is under way."""
        return "" if self.move is None else progress_bar(self.move, self.now)


@dataclass(frozen=True, slots=True)
class ReplicaTruth:
    """One replica: `checks` are its newest probes, oldest first."""

    replica: Replica
    copies: Sequence[CopyTruth]
    checks: Sequence[Bar]
    now: datetime
    room: int
    width: int

    @property
    def health(self) -> SafeString:
        """What the failure detector thinks, as a coloured word."""
        return badge(PeerHealth(self.replica.health))

    @property
    def health_since(self) -> SafeString:
        """How long it has been thinking so."""
        return since(self.replica.health_since, self.now)

    @property
    def checked(self) -> SafeString | str:
        """How long ago it was probed; empty when it never was."""
        return "" if self.replica.checked_at is None else since(self.replica.checked_at, self.now)

    @property
    def chart(self) -> SafeString:
        """The newest probes as a picture."""
        return health_chart(self.checks, room=self.room, width=self.width)

    @property
    def error_since(self) -> SafeString:
        """How long ago the last error was met."""
        return since(self.replica.last_error_at, self.now)

    @property
    def paused(self) -> SafeString | str:
        """The word for a replica to which nothing is sent."""
        return paused_badge() if self.replica.paused else ""

    @property
    def waits(self) -> str:
        """What a person should know of failed sendings."""
        if not self.replica.send_failures:
            return ""
        times = f"{self.replica.send_failures} failed sending{'' if self.replica.send_failures == 1 else 's'} in a row"
        skip = self.replica.sweeps_to_skip
        return f"{times}, tried again after {skip} sweep{'' if skip == 1 else 's'}" if skip else times


@dataclass(frozen=True, slots=True)
class ShardTruth:
    """A shard of which this node is the primary, with the members of its log."""

    label: str
    term: int
    seq: int
    members: quorum.Members

    @property
    def head(self) -> str:
        """Where its log ends."""
        return position(self.term, self.seq)

    @property
    def count(self) -> int:
        """N, of the larger set while the members change."""
        return max(len(some) for some in quorum.member_sets(self.members))

    @property
    def quorum(self) -> int:
        """How many of them a quorum is."""
        return quorum.required("quorum", self.members)

    @property
    def changing(self) -> str:
        """The change of the members that is under way, in words; empty when there is none."""
        return ", ".join(
            f"{name} is {membership.value}"
            for name, membership in self.members.items()
            if membership.counts_before != membership.counts_after
        )


@dataclass(frozen=True, slots=True)
class NodeTruth:
    """What this node is: owner of a registry, replica of another, or neither."""

    topology: Topology | None
    placement: Placement | None = None
    shards: Sequence[ShardTruth] = field(default_factory=tuple)

    @property
    def is_enabled(self) -> bool:
        """Whether it may have replicas."""
        return self.topology is not None and self.topology.replication_enabled and self.topology.is_owner

    @property
    def primary(self) -> SafeString:
        """A link to the primary's admin, on a replica."""
        return admin_link("" if self.placement is None else str(self.placement.document["primary"]["url"]))


def node_truth() -> NodeTruth:
    """Return what this node is."""
    topology = Topology.objects.first()
    if topology is None:
        return NodeTruth(None)
    if not topology.is_owner:
        return NodeTruth(topology, placement=own_placements().first())
    members: dict[str, dict[str, Membership]] = defaultdict(lambda: {quorum.PRIMARY: Membership.MEMBER})
    for shard, name, membership in ReplicaCopy.objects.values_list("shard", "replica__name", "membership"):
        members[shard][name] = Membership(membership)
    heads = ShardHead.objects.filter(is_primary=True)
    return NodeTruth(
        topology, shards=[ShardTruth(head.label, head.term, head.last_seq, members[head.uid]) for head in heads]
    )


def replicas_truth(replicas: Sequence[Replica], *, bars: int = BARS, width: int = BARS_WIDTH) -> list[ReplicaTruth]:
    """Return what is known of some replicas, in their order."""
    now = timezone.now()
    ids = [replica.pk for replica in replicas]
    moves = {(move.replica_id, move.shard): move for move in _moves_under_way(ids)}
    copies: dict[int, list[CopyTruth]] = defaultdict(list)
    for row in copies_with_lag().filter(replica_id__in=ids):
        copies[row.replica_id].append(CopyTruth(row, moves.get((row.replica_id, row.shard)), now))
    checks = newest_probes(Replica, ids, bars)
    return [
        ReplicaTruth(replica, copies[replica.pk], checks[replica.pk], now, room=bars, width=width)
        for replica in replicas
    ]


def copies_with_lag() -> QuerySet[Any]:
    """Return copies, each with its shard's `label`, `head_term` and `head_seq` here (None without a log of it), and:

    `common_seq`, the last entry that it and this node's log have in common as far as terms tell; `lacks_seq` and
    `lacks_since`, the oldest entry of the log after that one which is still there, and when it was logged.
    """
    head = ShardHead.objects.filter(uid=OuterRef("shard"))
    next_term = ShardTerm.objects.filter(shard__uid=OuterRef("shard"), term__gt=OuterRef("term")).order_by("term")
    lacking = LogEntry.objects.filter(shard__uid=OuterRef("shard"), seq__gt=OuterRef("common_seq")).order_by("seq")
    return (
        ReplicaCopy.objects.annotate(
            label=Subquery(head.values("label")),
            head_term=Subquery(head.values("term")),
            head_seq=Subquery(head.values("last_seq")),
            next_term_seq=Subquery(next_term.values("first_seq")[:1]),
        )
        .annotate(
            common_seq=Case(
                When(next_term_seq__lte=F("seq"), then=F("next_term_seq") - 1),
                default=F("seq"),
                output_field=BigIntegerField(),
            )
        )
        .annotate(lacks_seq=Subquery(lacking.values("seq")[:1]), lacks_since=Subquery(lacking.values("created_at")[:1]))
        .order_by("replica_id", "label", "shard")
    )


def _moves_under_way(replica_ids: Collection[int]) -> QuerySet[Move]:
    """Return the syncs under way; of two of one copy the full sync comes last, which is the one to show."""
    kinds = (Move.Kind.CATCH_UP, Move.Kind.FULL_SYNC)
    return Move.objects.filter(replica_id__in=replica_ids, kind__in=kinds, ended_at__isnull=True).order_by("kind", "id")
