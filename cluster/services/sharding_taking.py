"""Taking an assignment: what a node does when a coordinator tells it that it is one of its shards, or is none any more.

Steps of joining, each repeatable, so that a crash anywhere leaves a node which the next push completes:
1. the reasons against it are looked for;
2. the node's own empty shard goes and the shard's copy is made, writable in no slot, in one transaction;
3. the assignment is stored, with its event, in another. Only then is it acknowledged.
Between 2 and 3 the node has a copy that takes no rows.

This node goes on to keep a registry of its own: of the replicas of its shard. The coordinator's cluster and epochs are
apart from it, and known from the assignment alone. The replicas are told of it in their placements, so that one that
takes this node's place knows whose shard it is.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from django.conf import settings
from django.db import transaction

from cluster.models import Assignment, Placement, Replica, Topology
from cluster.node_urls import own_url
from cluster.replication.placements import NodeAddress
from cluster.services.candidates import Cycle, Incompatible, OtherNode, OwnUrl, WrongCluster
from cluster.services.changes import TASK, Change, event_write, locked_topology
from cluster.services.joining_lock import joining
from cluster.services.sharding_candidates import AlreadyShard, ShardLost
from cluster.services.taking import StaleEpoch
from cluster.sharding.assignment import AssignmentDocument
from mlvdb_site.celery import publish
from mlvdb_site.markers import topology_changed
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS
from vectors.errors import InvalidInput, NotPrimary
from vectors.models import ShardHead
from vectors.services import ensure_local_shard
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults

logger = logging.getLogger(__name__)

PUSH_TASK = "cluster.tasks.replication_push"


def assignment_take(document: Any, *, sender: str = "") -> None:
    """Take an assignment, or the end of one; the same one again changes nothing.

    Raise InvalidInput, Incompatible, OtherNode, OwnUrl, WrongCluster, AlreadyShard, ShardLost, Cycle, NotEmpty,
    NotPrimary, StaleEpoch, and StorageError and the like. Then this node is what it was.
    """
    told = _read(document, sender=sender)
    with joining():
        if told.released:
            _release(told)
        else:
            _take(told)


def assignment_release(document: Any, *, sender: str = "") -> None:
    """Take the end of an assignment; see `assignment_take`."""
    told = _read(document, sender=sender)
    if not told.released:
        raise InvalidInput("the document ends no assignment", field="released")
    with joining():
        _release(told)


def _take(told: AssignmentDocument) -> None:
    present = Assignment.objects.first()
    if present is not None:
        _check_same_shard(present, told)
        _check_order(present, told)
    else:
        _check_may_join(told)
    head = ShardHead.objects.filter(uid=told.shard).first()
    if head is None and (present is not None or not told.joins):
        # An empty copy would answer as if its rows had been deleted.
        raise ShardLost(f"the copy of shard {told.label} is not on this node any more: its data was lost")
    if head is None:
        from vectors.store.copies import shard_create

        head = shard_create(told.shard, told.label, writable=NO_SLOTS, epoch=told.epoch, drop_own=True)
    if not head.is_primary:
        raise _not_primary(head)
    _store(told)


def _read(document: Any, *, sender: str) -> AssignmentDocument:
    """Read an assignment that is meant for this node; raise what speaks against the document itself."""
    try:
        told = AssignmentDocument.of(document)
    except ValueError as error:
        wrong_format = isinstance(document, dict) and document.get("format") not in (None, 1)
        raise (Incompatible if wrong_format else InvalidInput)(str(error)) from None
    node = settings.MLVDB_NODE_ID
    if told.node and told.node != node:
        raise OtherNode(f"the assignment is meant for node {told.node[:8]}, this is node {node[:8]}")
    if told.coordinator_node == node:
        raise OwnUrl("the assignment names this very node as its coordinator")
    if sender and sender != told.coordinator_node:
        raise WrongCluster(
            f"node {sender[:8]} sends the assignment of another coordinator ({told.coordinator_node[:8]})"
        )
    return told


def _check_same_shard(present: Assignment, told: AssignmentDocument) -> None:
    if present.cluster != told.cluster:
        raise WrongCluster(
            f"this node is the shard {present.label} of the coordinator at {present.coordinator_url}: remove it there",
            detail={"coordinator_url": present.coordinator_url},
        )
    if present.shard != told.shard:
        raise AlreadyShard(f"this node is the shard {present.label} already", detail={"shard_id": present.label})


def _check_order(present: Assignment, told: AssignmentDocument) -> None:
    """Raise StaleEpoch for an assignment that is older than the one there is, or another coordinator's of the same age.

    A coordinator that was replaced does not know it, and may raise its epoch as often as it likes.
    """
    if (told.reign, told.epoch) < (present.reign, present.epoch) or (
        (told.reign, told.epoch) == (present.reign, present.epoch) and told.coordinator_node != present.coordinator_node
    ):
        raise StaleEpoch(
            f"this node has the assignment of epoch {present.epoch} of the coordinator at {present.coordinator_url}, "
            f"newer than {told.epoch}",
            detail={"epoch": present.epoch, "reign": present.reign, "coordinator_url": present.coordinator_url},
        )


def _check_may_join(told: AssignmentDocument) -> None:
    topology = Topology.objects.first()
    if topology is not None and topology.sharding_enabled:
        raise Cycle("this node has shards of its own: it is a coordinator")
    if ShardHead.objects.filter(uid=told.shard, is_primary=True).exists():
        # Its copy was made before, and its replicas, if any, are copies of that.
        return
    placement = Placement.objects.first()
    if placement is not None or (topology is not None and not topology.is_owner):
        raise WrongCluster("this node is a replica: remove it from its cluster, and begin with an empty data dir")
    replicas = Replica.objects.count()
    if replicas:
        raise Cycle(f"this node has {replicas} replicas of its own: remove them first", detail={"replicas": replicas})


@storage_faults()
def _store(told: AssignmentDocument) -> None:
    fields = told.to_fields()
    with writers_in_line(), transaction.atomic(durable=True):
        topology = locked_topology()
        row = Assignment.objects.first()
        if row is not None:
            _check_same_shard(row, told)
            same = all(_plain(getattr(row, name)) == value for name, value in fields.items())
            if same:
                return
            _check_order(row, told)
        before = None if row is None else {"epoch": row.epoch, "coordinator": row.coordinator_url}
        if topology is None:
            Topology.objects.create(cluster=uuid.uuid4().hex, replication_enabled=True)
        elif not topology.replication_enabled:
            # The replicas of a shard are registered with the node that is its primary.
            topology.replication_enabled = True
            topology.save(update_fields=["replication_enabled"])
        if row is None:
            Assignment.objects.create(shard=told.shard, **fields)
        else:
            for name, value in fields.items():
                setattr(row, name, value)
            row.save()
        event_write(
            actor=f"node {told.coordinator_node}",
            action="assignment_taken",
            subject=told.label,
            before=before,
            after={"epoch": told.epoch, "coordinator": told.coordinator_url, "slots": len(told.slots)},
            epoch=told.epoch,
        )
        _tell_replicas(told)
        topology_changed()
    logger.info("assignment_taken shard=%s epoch=%d slots=%d", told.label, told.epoch, len(told.slots))


@storage_faults()
def _release(told: AssignmentDocument) -> None:
    """Be nobody's shard any more: an empty plain node, or one that keeps the rows that were not moved away."""
    with writers_in_line(), transaction.atomic(durable=True):
        locked_topology()
        row = Assignment.objects.filter(shard=told.shard, cluster=told.cluster).first()
        if row is not None:
            _check_order(row, told)
            row.delete()
            _tell_replicas(told)
            event_write(
                actor=f"node {told.coordinator_node}",
                action="assignment_ended",
                subject=told.label,
                before={"epoch": row.epoch, "coordinator": row.coordinator_url},
                epoch=told.epoch,
            )
            topology_changed()
    head = ShardHead.objects.filter(uid=told.shard, is_primary=True).first()
    if head is None:
        return
    from vectors.query_processor.moving import MovingCopy
    from vectors.store.copies import shard_drop

    rows = _rows(head)
    if rows or Replica.objects.exists():
        # From here on they are this node's own: it takes clients' writes to all slots again.
        MovingCopy(head.pk).set_slots(told.epoch, ALL_SLOTS)
    else:
        shard_drop(told.shard)
        ensure_local_shard()
    logger.info("assignment_ended shard=%s rows_kept=%d", told.label, rows)


def _tell_replicas(told: AssignmentDocument) -> None:
    """Have this node's replicas told, inside the transaction; a task sends it to them after that."""
    topology = locked_topology()
    replicas = list(Replica.objects.values_list("pk", flat=True))
    if topology is None or not topology.is_owner or not replicas:
        return
    address = NodeAddress(settings.MLVDB_NODE_ID, own_url())
    change = Change(topology, TASK, "assignment_taken", told.label, address)
    change.epoch_raise()
    change.write_pushes()
    publish(PUSH_TASK)


def _rows(head: ShardHead) -> int:
    from vectors.query_processor.moving import MovingCopy

    counts, _ = MovingCopy(head.pk).slot_counts()
    return int(counts.sum())


def _not_primary(head: ShardHead) -> NotPrimary:
    placement = Placement.objects.filter(shard=head.uid).first()
    url = "" if placement is None else str(placement.document["primary"]["url"])
    return NotPrimary(
        f"another node is the primary of the shard {head.label} by now{f': {url}' if url else ''}",
        detail={"shard": head.label, "primary_url": url},
    )


def _plain(value: Any) -> Any:
    """Return bytes as bytes: drivers return memory views."""
    return bytes(value) if isinstance(value, memoryview) else value
