"""Whether a node may become a replica: asking it what it is, and the reasons against it.

The same reasons hold when a replica is added, when a node that was not up is found later, and in the node itself, which
refuses the placement; here they are found before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.conf import settings

from cluster.models import Assignment, Replica
from cluster.transport import PROTOCOL
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerGarbled, PeerRejected
from vectors.errors import Conflict, InvalidInput

STATUS_PATH = "/cluster/node/status"


class NotANode(InvalidInput):
    """Raised when something answers at a URL that is not a node of MLVectorDB."""

    code = "not_a_node"


class OwnUrl(InvalidInput):
    """Raised when a URL leads to the very node that is to have a replica there."""

    code = "own_url"


class Incompatible(Conflict):
    """Raised when a node speaks another protocol between nodes."""

    code = "incompatible"


class OtherNode(Conflict):
    """Raised when another node answers at a replica's URL than the one that was registered."""

    code = "other_node"


class WrongCluster(Conflict):
    """Raised when a node belongs to another cluster."""

    code = "wrong_cluster"


class Cycle(Conflict):
    """Raised when a node that has replicas or shards of its own is to become one."""

    code = "cycle"


class NodeHoldsRows(Conflict):
    """Raised when a node holds rows that are not of this cluster; `detail`: rows."""

    code = "not_empty"


class AlreadyReplica(Conflict):
    """Raised when the node at a URL is a replica already, under another name."""

    code = "already_replica"


class Host(NamedTuple):
    """Who asks: this node, its cluster (empty where it has none yet), and the replicas it knows, by node id.

    `coordinator` is the cluster of which it is a shard, empty where it is none.
    """

    node: str
    cluster: str
    replicas: Mapping[str, str]
    coordinator: str = ""


def ask_status(
    url: str, *, timeout_s: float, even_if_silent: bool = False, field: str = "replica_url"
) -> dict[str, Any]:
    """Return what the node at `url` says of itself; `field` is the parameter that the URL came in.

    Raise NotANode when something else answers there, and the errors of `cluster.transport`.
    """
    try:
        status = peer_client().json(url, "GET", STATUS_PATH, timeout_s=timeout_s, even_if_silent=even_if_silent)
    except PeerGarbled as error:
        raise NotANode(error.message, field=field) from None
    except PeerRejected as error:
        if error.peer_status in (404, 405):
            raise NotANode(
                f"{url} answers, but not as a node that can join: {error.peer_message}", field=field
            ) from None
        raise
    if not isinstance(status.get("node"), str) or not isinstance(status.get("protocol"), int):
        raise NotANode(f"{url} answers, but not with the status of a node", field=field)
    return status


def host_now(cluster: str) -> Host:
    """Return this node as the one that asks."""
    known = Replica.objects.exclude(node="").values_list("node", "name")
    coordinator = Assignment.objects.values_list("cluster", flat=True).first()
    return Host(settings.MLVDB_NODE_ID, cluster, dict(known), coordinator or "")


def check_candidate(host: Host, url: str, status: Mapping[str, Any], *, name: str, expected_node: str = "") -> None:
    """Raise the reason why the node at `url` cannot be a replica; return when there is none. Pure."""
    node = str(status["node"])
    if node == host.node:
        raise OwnUrl(f"{url} is this node itself", field="replica_url")
    if expected_node and node != expected_node:
        raise OtherNode(
            f"{url} answers as node {node[:8]}, but the replica is node {expected_node[:8]}: if its data was lost, "
            "remove the replica and add it again"
        )
    if host.replicas.get(node, name) != name:
        raise AlreadyReplica(
            f"the node at {url} is the replica {host.replicas[node]} already",
            detail={"replica_id": host.replicas[node]},
        )
    check_protocol(url, status)
    held = [shard for shard in status.get("shards", ()) if isinstance(shard, dict)]
    in_cluster = str(status.get("cluster") or "")
    if host.cluster and in_cluster == host.cluster:
        # One that was here before, or the primary of before a promotion, which its own node sees to.
        return
    if host.coordinator and in_cluster == host.coordinator and (not status.get("is_owner") or held_apart(host, held)):
        # A replica of all shards of the coordinator; it may have become the coordinator itself since.
        return
    check_no_shard(url, status)
    if status.get("replicas"):
        raise Cycle(f"{url} has {status['replicas']} replicas of its own: remove them there first")
    if in_cluster and not status.get("is_owner") and any(shard.get("role") == "replica" for shard in held):
        raise WrongCluster(
            f"{url} is a replica in another cluster ({in_cluster[:8]}): remove it there first",
            detail={"cluster": in_cluster},
        )
    if not status.get("empty", False):
        rows = status.get("rows")
        raise NodeHoldsRows(
            f"{url} already holds {f'{rows} rows' if rows else 'data'} of its own; a replica begins empty",
            detail={"rows": rows},
        )


def check_protocol(url: str, status: Mapping[str, Any]) -> None:
    """Raise Incompatible when the node at `url` does not speak as this one does. Pure."""
    if status["protocol"] != PROTOCOL:
        raise Incompatible(
            f"{url} (version {status.get('version')}) speaks protocol {status['protocol']} between nodes, "
            f"this node {PROTOCOL}",
            detail={"version": status.get("version"), "protocol": status["protocol"]},
        )


def held_apart(host: Host, held: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a node of the coordinator's has a copy of this node's shard already. Pure."""
    return any(shard.get("cluster") == host.cluster and shard.get("role") != "primary" for shard in held)


def check_no_shard(url: str, status: Mapping[str, Any]) -> None:
    """Raise Cycle for the node of a coordinator, WrongCluster for that of a coordinator's shard. Pure."""
    if status.get("is_coordinator"):
        raise Cycle(f"{url} has shards of its own: it is a coordinator")
    assignment = status.get("assignment")
    if isinstance(assignment, dict):
        raise WrongCluster(
            f"{url} is the shard {assignment.get('label')} of the coordinator at {assignment.get('coordinator_url')}: "
            "remove it there first",
            detail={"coordinator_url": assignment.get("coordinator_url")},
        )


def words_of(error: Exception) -> str:
    """Return what goes into `last_error`: a peer's own code and message where it gave one."""
    if isinstance(error, PeerRejected):
        return f"{error.peer_code}: {error.peer_message}"[:500]
    if isinstance(error, PeerError):
        return f"{error.code}: {error.message}"[:500]
    return f"{getattr(error, 'code', 'error')}: {error}"[:500]
