"""Taking a placement: what a node does when the owner of a registry tells it what it keeps.

Steps of joining, each repeatable, so that a crash anywhere leaves a node which the next push completes:
1. the reasons against it are looked for;
2. the node's own empty shard goes and the copy is made (`vectors.store.copies`), in one transaction;
3. the placement is stored, with its event, in another. Only then is it acknowledged.
Between 2 and 3 the node has a copy that is no primary and takes no writes.

Placements of one cluster are ordered by epoch, and those of an older term than this copy has promised are refused
whatever their epoch: their sender is not the primary any more.

A replica of all shards of a coordinator keeps copies of shards on other nodes too. Their primaries keep registries of
their own, each a cluster with epochs of its own: such a placement is taken where the coordinator's has named that shard
and node, and from then on whoever is elected in that cluster is believed. What this node is, it is by the
coordinator's placements alone.
"""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from cluster.models import Assignment, Placement, PlacementPush, Replica, Topology
from cluster.replication.placements import REPLICA, PlacementDocument, summary
from cluster.services.candidates import Cycle, Incompatible, OtherNode, OwnUrl, WrongCluster
from cluster.services.changes import event_write, locked_topology
from cluster.services.joining_lock import joining
from mlvdb_site.markers import topology_changed
from vectors.errors import Conflict, InvalidInput, StaleTerm
from vectors.models import ShardHead
from vectors.store import terms
from vectors.store.append_lock import writers_in_line
from vectors.store.copies import copy_create
from vectors.store.faults import storage_faults

logger = logging.getLogger(__name__)


class StaleEpoch(Conflict):
    """Raised when a placement is older than the one this node has; `detail`: epoch, term, and that placement."""

    code = "stale_epoch"


class ShardNotTold(Conflict):
    """Raised by a coordinator's replica for the placement of a shard that the coordinator has not told it of (yet)."""

    code = "shard_not_told"


class EpochTaken(Conflict):
    """Raised when a placement differs from the one this node has of the same epoch: two nodes call themselves owner."""

    code = "stale_epoch"


def placement_take(document: Any, *, sender: str = "") -> None:
    """Take a placement; the same one again changes nothing.

    Raise InvalidInput, Incompatible, OtherNode, OwnUrl, WrongCluster, ShardNotTold, Cycle, NotEmpty, StaleEpoch,
    StaleTerm, and StorageError and the like. Then this node is what it was.
    """
    placement = placement_read(document, sender=sender)
    topology = Topology.objects.first()
    if topology is not None and topology.is_owner and topology.cluster == placement.cluster and _given_up(placement):
        return
    present = Placement.objects.filter(shard=placement.shard).first()
    if placement.is_detached and (present is None or present.cluster != placement.cluster):
        # There is nothing of that cluster here that could be let go.
        return
    if present is not None:
        _take(placement, present)
        return
    with joining():
        _take(placement, Placement.objects.filter(shard=placement.shard).first())


def check_order(present: Placement, placement: PlacementDocument) -> None:
    """Raise StaleEpoch or EpochTaken when a placement may not replace the one there is."""
    if placement.epoch < present.epoch:
        raise StaleEpoch(
            f"this node has the placement of epoch {present.epoch}, newer than {placement.epoch}",
            detail=_detail(present),
        )
    if placement.epoch == present.epoch and present.document != placement.to_document():
        raise EpochTaken(f"this node has another placement of epoch {present.epoch}", detail=_detail(present))


def check_term(placement: PlacementDocument) -> None:
    """Raise StaleTerm when this node's copy has promised a newer term than the placement is of."""
    promised = ShardHead.objects.filter(uid=placement.shard).values_list("promised_term", flat=True).first()
    if promised is not None and placement.term < promised:
        raise StaleTerm(
            f"this node has promised term {promised}; the placement is of term {placement.term}",
            detail={"promised_term": promised, "term": placement.term},
        )


def placement_read(document: Any, *, sender: str = "") -> PlacementDocument:
    """Read a placement that is meant for this node; raise what speaks against the document itself."""
    try:
        placement = PlacementDocument.of(document)
    except ValueError as error:
        wrong_format = isinstance(document, dict) and document.get("format") not in (None, 1)
        raise (Incompatible if wrong_format else InvalidInput)(str(error)) from None
    node = settings.MLVDB_NODE_ID
    if placement.node and placement.node != node:
        raise OtherNode(f"the placement is meant for node {placement.node[:8]}, this is node {node[:8]}")
    if node in (placement.owner.node, placement.primary.node):
        raise OwnUrl("the placement names this very node as its primary")
    if sender and sender != placement.owner.node:
        raise WrongCluster(f"node {sender[:8]} sends the placement of another owner ({placement.owner.node[:8]})")
    return placement


def _take(placement: PlacementDocument, present: Placement | None) -> None:
    _check_cluster(Topology.objects.first(), placement, present)
    if present is not None:
        check_order(present, placement)
    check_term(placement)
    head = copy_create(placement.shard, placement.label)
    if head.is_primary:
        raise WrongCluster(f"this node is the primary of the shard {placement.label} on its own")
    _store(placement)
    if placement.term > head.promised_term:
        terms.term_heard(head.pk, placement.term)


def _given_up(placement: PlacementDocument) -> bool:
    """Give the registry up to another node of the cluster, when that was made the primary after this one.

    False when another placement did that in the meantime: then this one is taken as by any replica.
    """
    # Accession and taking know of each other: who is promoted has taken placements, who is demoted was primary once.
    from cluster.services.accession import demote

    check_term(placement)
    return demote(placement)


def _check_cluster(topology: Topology | None, placement: PlacementDocument, present: Placement | None) -> None:
    if topology is None or topology.cluster == placement.cluster:
        return
    if present is not None and present.cluster == placement.cluster:
        # A shard of the coordinator that this node is, or was, a replica of.
        return
    if topology.is_owner:
        if topology.sharding_enabled:
            raise Cycle("this node has shards of its own: it is a coordinator")
        assignment = Assignment.objects.first()
        if assignment is not None:
            raise WrongCluster(
                f"this node is the shard {assignment.label} of the coordinator at {assignment.coordinator_url}",
                detail={"coordinator_url": assignment.coordinator_url},
            )
        count = Replica.objects.count()
        if count:
            raise Cycle(f"this node has {count} replicas of its own: remove them first", detail={"replicas": count})
        # A registry without replicas, of a node without data (the copy's making will see to that), binds nobody.
        return
    if _check_told(topology, placement):
        return
    raise WrongCluster(
        f"this node belongs to the cluster {topology.cluster[:8]} already", detail={"cluster": topology.cluster}
    )


def _check_told(topology: Topology, placement: PlacementDocument) -> bool:
    """Return whether the coordinator whose replica this node is has named a shard, and the node that tells of it.

    False where there is no such coordinator. Raise ShardNotTold where it has not: its own placement may be on its way.
    """
    kept = Placement.objects.filter(cluster=topology.cluster, role=REPLICA).order_by("-epoch").first()
    told = None if kept is None else PlacementDocument.of(kept.document).sharding
    if told is None:
        return False
    node = next((shard.node for shard in told.shards if shard.uid == placement.shard and shard.url), None)
    if node is None or node not in ("", placement.owner.node):
        raise ShardNotTold(
            f"the coordinator has not told this node of the shard {placement.label} on node {placement.owner.node[:8]}",
            detail={"cluster": topology.cluster},
        )
    return True


def _store(placement: PlacementDocument) -> None:
    with storage_faults(), writers_in_line(), transaction.atomic(durable=True):
        # Under the lock of every promise: whoever has this copy's vote was elected by members who knew no more than
        # it, so a placement of the term before must not be acknowledged any more.
        heads = ShardHead.objects.filter(uid=placement.shard)
        (heads.select_for_update() if connection.features.has_select_for_update else heads).first()
        check_term(placement)
        stored = placement_write(placement, actor=f"node {placement.owner.node}")
    if stored:
        logger.info(
            "placement_taken shard=%s epoch=%d role=%s primary=%s",
            placement.label,
            placement.epoch,
            placement.role,
            placement.primary.url,
        )


def placement_write(placement: PlacementDocument, *, actor: str) -> bool:
    """Store a placement inside a transaction; return whether anything changed: of two at once the newer one stays."""
    document = placement.to_document()
    topology = locked_topology()
    row = Placement.objects.filter(shard=placement.shard).first()
    if row is not None and row.cluster == placement.cluster and row.epoch >= placement.epoch:
        return False
    # Of a shard that is a cluster of its own: this node is in another one, as a replica or by now as its coordinator.
    is_apart = (
        topology is not None
        and topology.cluster != placement.cluster
        and (not topology.is_owner or (row is not None and row.cluster == placement.cluster))
    )
    before = summary(None if row is None else row.document)
    fields = {
        "cluster": placement.cluster,
        "epoch": placement.epoch,
        "role": placement.role,
        "term": placement.term,
        "document": document,
    }
    if row is None:
        Placement.objects.create(shard=placement.shard, **fields)
    else:
        Placement.objects.filter(pk=row.pk).update(**fields)
    if topology is None:
        Topology.objects.create(
            cluster=placement.cluster, epoch=placement.epoch, is_owner=False, replication_enabled=True
        )
    elif not is_apart:
        topology.cluster, topology.is_owner, topology.replication_enabled = placement.cluster, False, True
        known = Placement.objects.filter(cluster=placement.cluster).values_list("epoch", flat=True)
        topology.epoch = max(placement.epoch, *known)
        topology.save()
        PlacementPush.objects.all().delete()
    event_write(
        actor=actor,
        action="detached" if placement.is_detached else "placement_taken",
        subject=placement.label,
        before=before,
        after=summary(document),
        epoch=placement.epoch,
    )
    topology_changed()
    return True


def _detail(present: Placement) -> dict[str, Any]:
    return {"epoch": present.epoch, "term": present.term, "placement": present.document}
