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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from django.db import DatabaseError

from cluster.models import Placement, Replica, ReplicaCopy, Topology
from cluster.replication.placements import PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.states import CopyState, Membership, PeerHealth
from mlvdb_site.markers import topology_marker
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

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

    @property
    def placement(self) -> PlacementView | None:
        """What this node has been told, of any shard; None where it obeys nobody."""
        return next((shard.placement for shard in self.shards.values() if shard.placement is not None), None)


def topology() -> TopologyView:
    """Return the topology as committed now, or the last one known while it cannot be read."""
    return _cache.get()


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

    def get(self) -> TopologyView:
        try:
            marker = topology_marker()
        except DatabaseError as error:
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
        # The marker was read before the rows: what changes in between has another marker, and is read next time.
        view = read_topology()
        self._seen, self._read_at = (marker, view), now
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
    placements = {placement.shard: placement for placement in Placement.objects.all()}
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
    return TopologyView(
        cluster=row.cluster,
        epoch=row.epoch,
        is_owner=row.is_owner,
        replication_enabled=row.replication_enabled,
        is_single=not any(shard.copies or shard.placement or not shard.is_local_primary for shard in shards.values()),
        shards=shards,
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
        ),
    )


_cache = _Cache()


def _forget_after_fork() -> None:
    global _cache
    # The lock may have been held by a thread that does not exist in the child.
    _cache = _Cache()


os.register_at_fork(after_in_child=_forget_after_fork)
