"""What is read of the cluster for others to see."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import QuerySet

from cluster.models import Placement, Replica, ReplicaCopy, Topology
from cluster.node_urls import own_url
from cluster.sharding.view import AssignmentView, ShardingView
from cluster.topology import TopologyView, topology
from cluster.transport import PROTOCOL
from mlvdb_site import __version__
from mlvdb_site.heartbeats import QUEUES, process_states, worker_name
from vectors.models import Namespace, ShardHead
from vectors.runtime import runtime
from vectors.store.copies import copy_contents
from vectors.store.slices import oldest_seq
from vectors.store.terms import read_terms


def node_status() -> dict[str, Any]:
    """Return what this node is and how far its shard copies are, for other nodes.

    `empty` is whether it could become a replica or a shard: it has no living namespace. `rows` and `size_bytes` are
    those of the engines that this process has open, as of their last look at the log, and estimates for others: for
    people and for refusals, not for decisions. `assignment` is there when it is a coordinator's shard.
    """
    picture = topology()
    heads = list(ShardHead.objects.all())
    shards = [_shard_status(head, picture) for head in heads]
    states = process_states()
    return {
        "node": settings.MLVDB_NODE_ID,
        "version": __version__,
        "protocol": PROTOCOL,
        "url": own_url(),
        "cluster": picture.cluster,
        "epoch": picture.epoch,
        "is_owner": picture.is_owner,
        "replication": picture.replication_enabled,
        "empty": not Namespace.objects.filter(dropped_at__isnull=True).exists(),
        "rows": sum(shard["rows"] for shard in shards),
        "replicas": Replica.objects.count(),
        "shards": shards,
        "is_coordinator": picture.sharding is not None,
        "sharding": None if picture.sharding is None else _sharding_status(picture.sharding),
        "assignment": None if picture.assignment is None else _assignment_status(picture.assignment),
        "workers_alive": {queue: states[worker_name(queue)].alive for queue in QUEUES},
    }


def own_placements() -> QuerySet[Placement]:
    """Return what this node was told by its own cluster; copies of shards that are clusters of their own are not in."""
    return Placement.objects.filter(cluster__in=Topology.objects.values("cluster")).order_by("shard")


def shard_copies(uid: str) -> list[dict[str, Any]]:
    """Return the replicas' copies of a shard whose registry this node keeps, as its coordinator is told of them."""
    copies = ReplicaCopy.objects.filter(shard=uid).select_related("replica").order_by("replica__name")
    return [
        {
            "name": copy.replica.name,
            "url": copy.replica.url,
            "node": copy.replica.node,
            "state": copy.state,
            "membership": copy.membership,
            "health": copy.replica.health,
            "term": copy.term,
            "seq": copy.seq,
            "last_error": copy.replica.last_error,
        }
        for copy in copies
    ]


def _shard_status(head: ShardHead, picture: TopologyView) -> dict[str, Any]:
    shard = picture.shards.get(head.uid)
    placement = None if shard is None else shard.placement
    rows, size_bytes = _contents(head)
    return {
        "uid": head.uid,
        "label": head.label,
        "cluster": picture.cluster if shard is None else picture.cluster_of(shard),
        "epoch": picture.epoch if shard is None else picture.epoch_of(shard),
        "role": "primary" if head.is_primary else "replica" if placement and not placement.is_detached else "detached",
        "term": head.term,
        "seq": head.last_seq,
        "promised_term": head.promised_term,
        "damage": head.damage,
        "incarnation": head.incarnation,
        "manifest_seq": head.manifest_seq,
        "oldest_seq": oldest_seq(head.pk),
        "terms": [list(start) for start in read_terms(head.pk)],
        "quarantined": placement is not None and placement.is_quarantined,
        "copies": shard_copies(head.uid) if head.is_primary else [],
        "rows": rows,
        "size_bytes": size_bytes,
    }


def _sharding_status(view: ShardingView) -> dict[str, Any]:
    return {"strategy": view.strategy, "shards": len(view.members)}


def _assignment_status(told: AssignmentView) -> dict[str, Any]:
    return {
        "shard": told.uid,
        "label": told.label,
        "cluster": told.cluster,
        "epoch": told.epoch,
        "coordinator_node": told.coordinator_node,
        "coordinator_url": told.coordinator_url,
        "slots": len(told.slots),
    }


def _contents(head: ShardHead) -> tuple[int, int]:
    """Return rows and bytes of a copy, counted without opening it where this process has not."""
    opened = runtime().shard(head.pk).opened
    if opened is None:
        return copy_contents(head.pk).rows, head.tail_bytes
    engine = opened.engine
    views = [engine.view(name) for name in engine.names()]
    return sum(view.count for view in views if view is not None), engine.mapped_bytes + engine.tail_bytes
