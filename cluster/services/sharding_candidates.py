"""Whether a node may become a shard: the reasons against it.

The same reasons hold when a shard is added, when a node that was not up is found later, and in the node itself, which
refuses the assignment (`cluster.services.sharding_taking`); here they are found before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.conf import settings

from cluster.models import Replica, Shard
from cluster.services.candidates import (
    AlreadyReplica,
    Cycle,
    NodeHoldsRows,
    OtherNode,
    OwnUrl,
    WrongCluster,
    check_no_shard,
    check_protocol,
)
from cluster.states import ShardState
from vectors.errors import Conflict


class AlreadyShard(Conflict):
    """Raised when the node at a URL is a shard already, under another label."""

    code = "already_shard"


class ShardLost(Conflict):
    """Raised when the node of a shard has no primary copy of it any more."""

    code = "shard_lost"


class Coordinator(NamedTuple):
    """Who asks: this node, its cluster, and the shards and replicas it knows, labels and names by node id."""

    node: str
    cluster: str
    shards: Mapping[str, str]
    replicas: Mapping[str, str]


def coordinator_now(cluster: str) -> Coordinator:
    """Return this node as the one that asks."""
    shards = Shard.objects.exclude(node="").exclude(state=ShardState.REMOVED).values_list("node", "label")
    replicas = Replica.objects.exclude(node="").values_list("node", "name")
    return Coordinator(settings.MLVDB_NODE_ID, cluster, dict(shards), dict(replicas))


def check_shard_candidate(
    asks: Coordinator, url: str, status: Mapping[str, Any], *, label: str, uid: str = "", expected_node: str = ""
) -> None:
    """Raise the reason why the node at `url` cannot be the shard `label`; return when there is none. Pure.

    `uid` is the shard's, empty for one that is yet to be made.
    """
    node = str(status["node"])
    if node == asks.node:
        raise OwnUrl(f"{url} is this node itself: a shard on it needs no URL", field="shard_url")
    if expected_node and node != expected_node:
        raise OtherNode(
            f"{url} answers as node {node[:8]}, but the shard is on node {expected_node[:8]}: if its data was lost, "
            "remove the shard by force and add it again"
        )
    if asks.shards.get(node, label) != label:
        raise AlreadyShard(
            f"the node at {url} is the shard {asks.shards[node]} already", detail={"shard_id": asks.shards[node]}
        )
    if node in asks.replicas:
        raise AlreadyReplica(
            f"the node at {url} is the replica {asks.replicas[node]} of this one",
            detail={"replica_id": asks.replicas[node]},
        )
    check_protocol(url, status)
    assignment = status.get("assignment")
    if isinstance(assignment, dict) and assignment.get("cluster") == asks.cluster:
        if assignment.get("shard") == uid:
            return
        raise AlreadyShard(
            f"the node at {url} was the shard {assignment.get('label')} here and has not been told yet that it is none"
            " any more: try again in a moment",
            detail={"shard_id": assignment.get("label")},
        )
    check_no_shard(url, status)
    held = [shard for shard in status.get("shards", ()) if isinstance(shard, dict)]
    if uid and any(shard.get("uid") == uid and shard.get("role") == "primary" for shard in held):
        # It has made the copy, and crashed before it kept the assignment.
        return
    if any(shard.get("role") in ("replica", "detached") for shard in held):
        raise WrongCluster(f"{url} is a replica: remove it from its cluster, and begin with an empty data dir")
    if status.get("replicas"):
        raise Cycle(f"{url} has {status['replicas']} replicas of its own: remove them there first")
    if not status.get("empty", False):
        rows = status.get("rows")
        raise NodeHoldsRows(
            f"{url} already holds {f'{rows} rows' if rows else 'data'} of its own; a shard begins empty",
            detail={"rows": rows},
        )
