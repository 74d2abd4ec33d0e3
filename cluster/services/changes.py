"""The frame of every change of the registry: one transaction with what is changed, its event, epoch and marker.

A change of placement raises the epoch and leaves in its transaction one `PlacementPush` per copy; they are sent after
the commit, never within. Nothing here or below it talks to another node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from cluster.models import (
    Assignment,
    ClusterEvent,
    Move,
    NamespaceErrand,
    PlacementPush,
    Replica,
    ReplicaCopy,
    Shard,
    Topology,
)
from cluster.node_urls import own_url
from cluster.replication.placements import DETACHED, REPLICA, NodeAddress, PlacedCopy, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.sharding.assignment import AssignmentDocument
from cluster.sharding.placed import PlacedShard, PlacedShards
from cluster.sharding.table import SlotTable
from cluster.states import CopyState, Membership, MovePhase, ShardState
from mlvdb_site.markers import topology_changed
from vectors.engine.slots import SlotSet
from vectors.errors import Conflict
from vectors.models import ShardHead
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults

TASK = "task"
"""The actor of what nobody asked for: a state that was found to have changed."""


class NotOwner(Conflict):
    """Raised when a node that does not keep the registry (any more) is to change it; `detail`: owner_url."""

    code = "not_owner"


class Unchanged(Exception):
    """Raised inside a change that finds nothing to do: rolled back, no event, no marker. `registry_change` ends it."""


@dataclass(slots=True)
class Change:
    """A change of the registry under way; `topology` is locked. What is set here goes into the event."""

    topology: Topology
    actor: str
    action: str
    subject: str
    address: NodeAddress
    before: Any = None
    after: Any = None
    alarm: bool = False
    raised: bool = False
    _detached: list[tuple[Replica, ReplicaCopy]] = field(default_factory=list)

    def epoch_raise(self, *, at_least: int = 0) -> int:
        """Make this a change of placement; return the new epoch. Once for a change, however often it is called."""
        if not self.raised:
            self.topology.epoch = max(self.topology.epoch + 1, at_least)
            self.topology.save(update_fields=["epoch"])
            self.raised = True
        return self.topology.epoch

    def drop(self, copy: ReplicaCopy) -> None:
        """Remove a copy, and its replica with the last one; its node is told that the copy is of no cluster any more.

        Call it after `epoch_raise`. What was being copied to it is cancelled.
        """
        replica = copy.replica
        self._detached.append((replica, copy))
        for phase in MovePhase:
            if not phase.is_over:
                Move.objects.filter(replica=replica, shard=copy.shard, phase=phase).update(
                    phase=MovePhase.CANCELLED, error="the replica was removed", ended_at=timezone.now()
                )
        copy.delete()
        if not replica.copies.exists():
            replica.delete()

    def write_pushes(self) -> None:
        """Write the placements of this epoch into the outbox."""
        copies = list(ReplicaCopy.objects.select_related("replica"))
        shards = shards_told(self.topology) if copies else None
        for head in ShardHead.objects.filter(is_primary=True):
            mine = [copy for copy in copies if copy.shard == head.uid]
            placed = (self._primary(), *[_placed(copy) for copy in mine])
            # A program may have copies that are no shards (`cluster.library`): whoever keeps one has all of it.
            is_shard = shards is not None and any(shard.uid == head.uid for shard in shards.shards)
            for copy in mine:
                self._push(copy.replica, head, REPLICA, placed, shards if is_shard else None)
            for replica, copy in self._detached:
                if copy.shard == head.uid:
                    self._push(replica, head, DETACHED, placed, None)

    def _push(
        self,
        replica: Replica,
        head: ShardHead,
        role: str,
        placed: tuple[PlacedCopy, ...],
        shards: PlacedShards | None,
    ) -> None:
        document = PlacementDocument(
            cluster=self.topology.cluster,
            epoch=self.topology.epoch,
            shard=head.uid,
            label=head.label,
            term=head.term,
            role=role,
            name=replica.name,
            node=replica.node,
            owner=self.address,
            primary=self.address,
            copies=placed,
            sharding=shards,
            assignment=assignment_told(head.uid),
        )
        PlacementPush.objects.update_or_create(
            url=replica.url,
            shard=head.uid,
            defaults={
                "epoch": self.topology.epoch,
                "document": document.to_document(),
                "attempts": 0,
                "last_error": "",
            },
        )

    def _primary(self) -> PlacedCopy:
        return PlacedCopy(PRIMARY, *self.address, Membership.MEMBER, CopyState.FOLLOWING)


@contextmanager
def registry_change(*, actor: str, action: str, subject: str, tells: bool = True) -> Iterator[Change]:
    """Open the transaction of a change of this node's registry; raise NotOwner when it has none.

    When the block ends, event and marker are written, and the outbox where the epoch was raised; after the commit what
    is in it is sent, unless `tells` is false: then whoever changes has no time to lose, and sends it later (beat does
    so too). `Unchanged` out of the block rolls back quietly. Never inside another transaction.
    """
    # Outbox and registry know of each other: what a node answers to a placement changes the registry.
    from cluster.services.placements import placements_push
    from cluster.services.sharding_assignments import assignments_knock

    address = NodeAddress(settings.MLVDB_NODE_ID, own_url())
    try:
        with storage_faults(), writers_in_line(), transaction.atomic(durable=True):
            topology = locked_topology()
            if topology is None or not topology.is_owner:
                raise NotOwner("this node does not keep the registry of its cluster")
            change = Change(topology, actor[:150], action, subject[:160], address)
            yield change
            if change.raised:
                change.write_pushes()
            event_write(
                actor=change.actor,
                action=change.action,
                subject=change.subject,
                before=change.before,
                after=change.after,
                epoch=topology.epoch,
                alarm=change.alarm,
            )
            topology_changed()
    except Unchanged:
        return
    if change.raised and tells:
        placements_push()
        if change.topology.sharding_enabled:
            assignments_knock()


def shards_told(topology: Topology) -> PlacedShards | None:
    """Return what replicas are told of this node's shards, None where there are none."""
    if not topology.sharding_enabled or topology.slots is None:
        return None
    ended = NamespaceErrand.objects.filter(namespace__dropped_at__isnull=False).order_by("namespace__uid")
    return PlacedShards(
        topology.strategy,
        SlotTable.of_bytes(bytes(topology.slots)),
        tuple(
            PlacedShard(
                shard.pk,
                shard.label,
                shard.uid,
                shard.url,
                shard.node,
                ShardState(shard.state),
                shard.has_foreign,
                shard.weight,
                shard.auto_failover,
            )
            for shard in Shard.objects.order_by("label")
            # The node of a removed one has yet to be told, by whoever is the coordinator then.
            if ShardState(shard.state).is_shard or not (shard.is_local or shard.released)
        ),
        topology.reign,
        tuple(ended.values_list("namespace__uid", flat=True).distinct()),
    )


def assignment_told(shard_uid: str) -> AssignmentDocument | None:
    """Return what a coordinator has told this node of a shard, to be told to other copies; None where none has."""
    row = Assignment.objects.filter(shard=shard_uid).first()
    if row is None:
        return None
    return AssignmentDocument(
        cluster=row.cluster,
        epoch=row.epoch,
        shard=row.shard,
        label=row.label,
        coordinator_node=row.coordinator_node,
        coordinator_url=row.coordinator_url,
        node="",
        slots=SlotSet(bytes(row.slots)),
        reign=row.reign,
    )


def locked_topology() -> Topology | None:
    """Return the topology row, locked until the end of the transaction; None on a node that has none."""
    rows = Topology.objects.all()
    return (rows.select_for_update() if connection.features.has_select_for_update else rows).first()


def event_write(
    *,
    actor: str,
    action: str,
    subject: str,
    before: Any = None,
    after: Any = None,
    epoch: int = 0,
    alarm: bool = False,
) -> ClusterEvent:
    """Write who changed what, inside the transaction of the change."""
    return ClusterEvent.objects.create(
        actor=actor[:150],
        action=action[:64],
        subject=subject[:160],
        before=before,
        after=after,
        epoch=epoch,
        alarm=alarm,
    )


def _placed(copy: ReplicaCopy) -> PlacedCopy:
    return PlacedCopy(
        copy.replica.name, copy.replica.node, copy.replica.url, Membership(copy.membership), CopyState(copy.state)
    )
