"""What is read of the cluster for others to see."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from cluster.models import Replica
from cluster.node_urls import own_url
from cluster.topology import ShardView, topology
from cluster.transport import PROTOCOL
from mlvdb_site import __version__
from mlvdb_site.heartbeats import QUEUES, process_states, worker_name
from vectors.models import Namespace, ShardHead
from vectors.runtime import runtime
from vectors.store.slices import oldest_seq
from vectors.store.terms import read_terms


def node_status() -> dict[str, Any]:
    """Return what this node is and how far its shard copies are, for other nodes.

    `empty` is whether it could become a replica: it has no living namespace. `rows` are those of the engines that this
    process has open, as of their last look at the log: for people and for refusals, not for decisions.
    """
    picture = topology()
    heads = list(ShardHead.objects.all())
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
        "rows": sum(_rows_open(head.pk) for head in heads),
        "replicas": Replica.objects.count(),
        "shards": [_shard_status(head, picture.shards.get(head.uid)) for head in heads],
        "workers_alive": {queue: states[worker_name(queue)].alive for queue in QUEUES},
    }


def _shard_status(head: ShardHead, shard: ShardView | None) -> dict[str, Any]:
    placement = None if shard is None else shard.placement
    return {
        "uid": head.uid,
        "label": head.label,
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
    }


def _rows_open(shard_id: int) -> int:
    opened = runtime().shard(shard_id).opened
    if opened is None:
        return 0
    views = [opened.engine.view(name) for name in opened.engine.names()]
    return sum(view.count for view in views if view is not None)
