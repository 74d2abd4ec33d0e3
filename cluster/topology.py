"""The topology as each process of a node knows it: the registry's at its owner, the placements' at every other node.

A process keeps the last picture and reads it anew when the topology marker has changed, which every change of registry,
placement or health sets in its own transaction; one short statement per request finds that out. While the database
cannot be read, the last picture stays. Progress (positions, what was heard) sets no marker: a picture with copies is
read anew behind requests when it is older than a moment, and carries positions as of then.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from django.db import DatabaseError

from cluster.models import Assignment, MoveStep, Placement, Replica, ReplicaCopy, Shard, ShardCopy, Topology
from cluster.replication.placements import REPLICA, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.sharding.assignment import AssignmentDocument
from cluster.sharding.table import SlotTable
from cluster.sharding.view import AssignmentView, ShardingView, ShardMember
from cluster.states import CopyState, FailoverState, Membership, MovePhase, PeerHealth, ShardState
from mlvdb_site.markers import topology_marker
from vectors.engine.slots import SlotSet
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

_TRIES = 5
REFRESH_EVERY_S = 1.0
"""Age at which a picture with copies in it is read anew although its marker is the same."""


@dataclass(frozen=True, slots=True)
class CopyView:
    """A copy of a shard on a node other than the primary.

    `replica_id` is the key of its Replica row, at the registry's owner only. `term` and `seq` are the position it last
    answered, as far as this node knows; 0 where it knows nothing. `health` is unknown but at the owner.
    """

    name: str
    url: str
    node: str
    state: CopyState
    membership: Membership
    health: PeerHealth = PeerHealth.UNKNOWN
    term: int = 0
    seq: int = 0
    paused: bool = False
    is_self: bool = False
    replica_id: int | None = None


@dataclass(frozen=True, slots=True)
class PlacementView:
    """What this node has been told of one shard by the owner of its registry.

    `primary_seq` and `heard` are as of the picture; `placement_heard` reads them anew.
    """

    name: str
    role: str
    epoch: int
    term: int
    primary_url: str
    primary_node: str
    owner_url: str
    owner_node: str
    state: CopyState
    membership: Membership
    primary_seq: int
    heard: int
    cluster: str = ""
    assignment: AssignmentView | None = None
    """Whose shard it is, where the primary is another coordinator's."""

    @property
    def is_detached(self) -> bool:
        """Whether the copy was removed from its cluster: it is kept, read-only, and filled no more."""
        return self.role == "detached"

    @property
    def is_quarantined(self) -> bool:
        """Whether its contents were found to differ."""
        return self.state is CopyState.QUARANTINED


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard that this node holds a copy of. `copies` are all but the primary's, this node's own included.

    `shard_id` is the key of this node's own copy, None when it has none (yet). `primary_url` is None where this node's
    own copy is the primary, and where nobody has told.
    """

    uid: str
    label: str
    shard_id: int | None
    is_local_primary: bool
    primary_url: str | None = None
    primary_node: str = ""
    copies: tuple[CopyView, ...] = ()
    placement: PlacementView | None = None

    @property
    def own(self) -> CopyView | None:
        """This node's own copy among `copies`; None at the primary."""
        return next((copy for copy in self.copies if copy.is_self), None)


@dataclass(frozen=True, slots=True)
class TopologyView:
    """The picture. `shards` by uid holds every shard copy of this node, also on a node that is in no cluster."""

    cluster: str = ""
    epoch: int = 0
    is_owner: bool = False
    replication_enabled: bool = False
    is_single: bool = True
    """Whether there is no other copy of anything here and nobody to obey: this node answers as one on its own."""
    shards: Mapping[str, ShardView] = field(default_factory=dict)
    sharding: ShardingView | None = None
    """The shards of this coordinator; None where sharding is not enabled."""
    placed_sharding: ShardingView | None = None
    """At a replica of a coordinator, the shards as it was told of them; None where there are no others."""
    assignment: AssignmentView | None = None
    """What a coordinator has told this node; None where it is nobody's shard."""

    @property
    def routes(self) -> ShardingView | None:
        """The shards over which this node's answers are to be gathered; None where one shard has everything."""
        return self.sharding or self.placed_sharding

    @property
    def placement(self) -> PlacementView | None:
        """What this node has been told, of any shard that it still keeps; None where it obeys nobody."""
        told = [shard.placement for shard in self.shards.values() if shard.placement is not None]
        # Whoever keeps copies of shards that are clusters of their own obeys nobody in that.
        own = [placement for placement in told if placement.cluster in ("", self.cluster)]
        return min(own, key=lambda placement: placement.is_detached, default=None)

    def cluster_of(self, shard: ShardView) -> str:
        """Return the cluster whose registry names the copies of a shard: this node's own, or what it was told."""
        return self.cluster if shard.placement is None else shard.placement.cluster or self.cluster

    def assignment_of(self, shard: ShardView) -> AssignmentView | None:
        """Return what a coordinator has told of a shard: this node, or the primary that this node follows."""
        if shard.placement is not None:
            return None if shard.placement.is_detached else shard.placement.assignment
        return self.assignment if self.assignment is not None and self.assignment.uid == shard.uid else None

    def epoch_of(self, shard: ShardView) -> int:
        """Return the epoch of `cluster_of` as this node knows it."""
        return self.epoch if shard.placement is None else shard.placement.epoch


def topology() -> TopologyView:
    """Return the topology as committed now, or the last one known while it cannot be read."""
    return _cache.get()


def topology_committed() -> TopologyView:
    """Return the topology as committed now. Raise the errors of `django.db` while it cannot be read."""
    return _cache.get(is_strict=True)


def topology_forget() -> None:
    """Forget the picture: for tests, and for a process that was given another database."""
    _cache.forget()


def placement_heard(shard_uid: str) -> tuple[int, int] | None:
    """Return (primary's seq when last heard, times it was heard) of a placement, read now; None when there is none.

    Raise the errors of `django.db`.
    """
    return Placement.objects.filter(shard=shard_uid).values_list("primary_seq", "heard").first()


class _Cache:
    """The picture of one process."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[str | None, TopologyView] | None = None
        self._read_at = 0.0

    def get(self, *, is_strict: bool = False) -> TopologyView:
        try:
            marker = topology_marker()
        except DatabaseError as error:
            if is_strict:
                raise
            return self._last(error)
        seen = self._seen
        if seen is not None and seen[0] == marker:
            if seen[1].is_single or self.timer() - self._read_at < REFRESH_EVERY_S:
                return seen[1]
            # One thread pays for the new positions; the others go on with what is right but for them.
            if not self._lock.acquire(blocking=False):
                return seen[1]
        else:
            self._lock.acquire()
        try:
            return self._read(marker)
        except DatabaseError as error:
            if is_strict:
                raise
            return self._last(error)
        finally:
            self._lock.release()

    def forget(self) -> None:
        self._seen = None

    def _read(self, marker: str | None) -> TopologyView:
        seen = self._seen
        now = self.timer()
        if seen is not None and seen[0] == marker and now - self._read_at < REFRESH_EVERY_S:
            # Read while this thread waited for the lock.
            return seen[1]
        for _ in range(_TRIES):
            # Several statements, and no transaction, which would keep writers out on SQLite. A change in between has
            # another marker: half of it would be a table of one epoch with marks of the next.
            view, before, marker = read_topology(), marker, topology_marker()
            self._seen, self._read_at = (before, view), now
            if marker == before:
                break
        return view

    def _last(self, error: DatabaseError) -> TopologyView:
        seen = self._seen
        if seen is None:
            raise error
        logger.warning("topology_not_read error=%r", str(error))
        return seen[1]


def read_topology() -> TopologyView:
    """Read the topology from the database; everyone but tests takes it from `topology`."""
    heads = list(ShardHead.objects.values("pk", "uid", "label", "is_primary"))
    row = Topology.objects.first()
    if row is None:
        own = [ShardView(head["uid"], head["label"], head["pk"], head["is_primary"]) for head in heads]
        return TopologyView(shards={shard.uid: shard for shard in own})
    copies = _registered_copies() if row.is_owner else {}
    told = Placement.objects.all()
    placements = {placement.shard: placement for placement in told}
    shards = {}
    for head in heads:
        uid = head["uid"]
        placement = placements.pop(uid, None)
        if placement is not None:
            shards[uid] = _told(placement, shard_id=head["pk"])
        else:
            others = copies.get(uid, ())
            shards[uid] = ShardView(uid, head["label"], head["pk"], head["is_primary"], copies=others)
    for uid, placement in placements.items():
        shards[uid] = _told(placement, shard_id=None)
    sharding = _sharding(row, heads) if row.sharding_enabled else None
    placed_sharding = None if row.is_owner else _placed_sharding(row.cluster, list(told), heads)
    for routed in (sharding, placed_sharding):
        for member in () if routed is None else routed.members:
            if member.uid not in shards:
                shards[member.uid] = ShardView(
                    member.uid, member.label, None, False, primary_url=member.url, primary_node=member.node
                )
    assignment = _assignment(heads)
    return TopologyView(
        cluster=row.cluster,
        epoch=row.epoch,
        is_owner=row.is_owner,
        replication_enabled=row.replication_enabled,
        is_single=sharding is None
        and assignment is None
        and not any(shard.copies or shard.placement or not shard.is_local_primary for shard in shards.values()),
        shards=shards,
        sharding=sharding,
        placed_sharding=placed_sharding,
        assignment=assignment,
    )


def _sharding(row: Topology, heads: Sequence[Mapping[str, Any]]) -> ShardingView | None:
    """Return the view of the shards; None as long as no slot has an owner."""
    if row.slots is None:
        return None
    table = SlotTable.of_bytes(bytes(row.slots))
    shard_ids = {head["uid"]: head["pk"] for head in heads}
    lagging: dict[int, set[str]] = {}
    copied: set[int | str] = set(ReplicaCopy.objects.values_list("shard", flat=True))
    for number, name, in_sync in ShardCopy.objects.values_list("shard_id", "name", "in_sync"):
        copied.add(number)
        if not in_sync:
            lagging.setdefault(number, set()).add(name)
    members = tuple(
        ShardMember(
            number=shard.pk,
            label=shard.label,
            uid=shard.uid,
            slots=table.owned_by(shard.pk),
            state=ShardState(shard.state),
            weight=shard.weight,
            shard_id=None if shard.url else shard_ids.get(shard.uid),
            url=shard.url,
            node=shard.node,
            # One that has yet to say what it writes is not asked: it may own less, or more, than is known here.
            health=PeerHealth.DEAD if shard.recheck_due else PeerHealth(shard.health),
            has_foreign=shard.has_foreign,
            has_copies=shard.pk in copied or shard.uid in copied,
            failover=FailoverState(shard.failover),
            node_epoch=shard.node_epoch,
            lagging=frozenset(lagging.get(shard.pk, ())),
        )
        for shard in Shard.objects.order_by("label")
        if ShardState(shard.state).may_own
    )
    closing = MoveStep.objects.filter(phase__in=(MovePhase.CLOSING, MovePhase.SWITCHING)).values_list(
        "slots", flat=True
    )
    closed = None
    for slots in closing:
        some = SlotSet(bytes(slots))
        closed = some if closed is None else closed | some
    return _view(row.strategy, row.epoch, members, table, closed)


def _placed_sharding(
    cluster: str, placements: Sequence[Placement], heads: Sequence[Mapping[str, Any]]
) -> ShardingView | None:
    """Return the shards that the coordinator's newest placement tells of; None where it is one, whose copy has all.

    A shard on another node is read here where this node has a readable copy of it, else at its node.
    """
    kept = [placement for placement in placements if (placement.role, placement.cluster) == (REPLICA, cluster)]
    if not kept:
        return None
    document = PlacementDocument.of(max(kept, key=lambda placement: placement.epoch).document)
    told = document.sharding
    if told is None or sum(shard.state.may_own for shard in told.shards) < 2:
        return None
    shard_ids = {head["uid"]: head["pk"] for head in heads}
    apart = {placement.shard for placement in placements if placement.cluster != cluster and _is_readable(placement)}
    here = {shard.uid for shard in told.shards if shard.uid in shard_ids and (not shard.url or shard.uid in apart)}
    members = tuple(
        ShardMember(
            number=shard.number,
            label=shard.label,
            uid=shard.uid,
            slots=told.table.owned_by(shard.number),
            state=shard.state,
            shard_id=shard_ids[shard.uid] if shard.uid in here else None,
            # The owner answers for those of its own shards that this node has no copy of.
            url="" if shard.uid in here else shard.url or document.owner.url,
            node=shard.node,
            has_foreign=shard.has_foreign,
            has_copies=True,
        )
        for shard in told.shards
        if shard.state.may_own
    )
    return _view(told.strategy, document.epoch, members, told.table, None)


def _is_readable(placement: Placement) -> bool:
    """Whether this node's copy has a whole state of its shard, as far as the shard's primary has said."""
    own = PlacementDocument.of(placement.document).own
    return placement.role == REPLICA and own is not None and own.state.is_readable


def _view(
    strategy: str, epoch: int, members: tuple[ShardMember, ...], table: SlotTable, closed: SlotSet | None
) -> ShardingView:
    places = np.zeros(1 << 16, dtype=np.uint16)
    for place, member in enumerate(members):
        places[member.number] = place
    return ShardingView(
        strategy=strategy,
        epoch=epoch,
        members=members,
        owners=places[table.owners],
        closed=closed,
        by_uid={member.uid: member for member in members},
        by_label={member.label: member for member in members},
    )


def _assignment(heads: Sequence[Mapping[str, Any]]) -> AssignmentView | None:
    found = Assignment.objects.first()
    # One whose copy is no primary (any more) says nothing: another node is this shard by now.
    if found is None or not any(head["uid"] == found.shard and head["is_primary"] for head in heads):
        return None
    return AssignmentView(
        uid=found.shard,
        label=found.label,
        cluster=found.cluster,
        epoch=found.epoch,
        coordinator_node=found.coordinator_node,
        coordinator_url=found.coordinator_url,
        slots=SlotSet(bytes(found.slots)),
    )


def _assignment_view(told: AssignmentDocument) -> AssignmentView:
    return AssignmentView(
        uid=told.shard,
        label=told.label,
        cluster=told.cluster,
        epoch=told.epoch,
        coordinator_node=told.coordinator_node,
        coordinator_url=told.coordinator_url,
        slots=told.slots,
    )


def _registered_copies() -> dict[str, tuple[CopyView, ...]]:
    found: dict[str, list[CopyView]] = {}
    replicas = {replica.pk: replica for replica in Replica.objects.all()}
    for copy in ReplicaCopy.objects.order_by("replica__name"):
        replica = replicas.get(copy.replica_id)
        if replica is None:
            continue
        found.setdefault(copy.shard, []).append(
            CopyView(
                name=replica.name,
                url=replica.url,
                node=replica.node,
                state=CopyState(copy.state),
                membership=Membership(copy.membership),
                health=PeerHealth(replica.health),
                term=copy.term,
                seq=copy.seq,
                paused=replica.paused,
                replica_id=replica.pk,
            )
        )
    return {uid: tuple(copies) for uid, copies in found.items()}


def _told(placement: Placement, *, shard_id: int | None) -> ShardView:
    """Return the view of a shard that this node was told of; it is never the primary of it."""
    document = PlacementDocument.of(placement.document)
    copies = tuple(
        CopyView(
            name=copy.name,
            url=copy.url,
            node=copy.node,
            state=copy.state,
            membership=copy.membership,
            is_self=copy.name == document.name,
        )
        for copy in document.copies
        if copy.name != PRIMARY
    )
    own = document.own
    return ShardView(
        uid=placement.shard,
        label=document.label,
        shard_id=shard_id,
        is_local_primary=False,
        primary_url=document.primary.url or None,
        primary_node=document.primary.node,
        copies=copies,
        placement=PlacementView(
            name=document.name,
            role=placement.role,
            epoch=placement.epoch,
            term=placement.term,
            primary_url=document.primary.url,
            primary_node=document.primary.node,
            owner_url=document.owner.url,
            owner_node=document.owner.node,
            state=CopyState.FOLLOWING if own is None else own.state,
            membership=Membership.NONE if own is None else own.membership,
            primary_seq=placement.primary_seq,
            heard=placement.heard,
            cluster=placement.cluster,
            assignment=None if document.assignment is None else _assignment_view(document.assignment),
        ),
    )


_cache = _Cache()


def _forget_after_fork() -> None:
    global _cache
    # The lock may have been held by a thread that does not exist in the child.
    _cache = _Cache()


os.register_at_fork(after_in_child=_forget_after_fork)
