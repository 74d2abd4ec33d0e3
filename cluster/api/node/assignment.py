"""What a coordinator tells the node of one of its shards: its assignment, and what has become of namespaces."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import NeedPlacement, NodeRouteView, WrongCluster, sender
from cluster.selectors import node_status
from cluster.services.namespace_errands import NamespaceChange, changes_take
from cluster.services.sharding_taking import assignment_take
from cluster.sharding.view import AssignmentView as AssignmentPicture
from cluster.topology import ShardView, topology
from mlvdb_site.http.errors import RequestError
from vectors.errors import NotPrimary


class AssignmentView(NodeRouteView):
    """An assignment document, see `cluster.sharding.assignment`."""

    parameters: ClassVar = {"PUT": ()}

    def put(self, request: Request) -> Response:
        """Take it, and return the status of this node as it is then."""
        body: Any = request.data
        assignment_take(body, sender=sender(request))
        return Response(node_status())


class NamespacesView(NodeRouteView):
    """Changes of a shard's namespaces: `{"cluster", "changes": [{"uid", "name", …, "has_ended"}, …]}`."""

    parameters: ClassVar = {"PUT": ()}

    def put(self, request: Request, uid: str) -> Response:
        """Do what they say; what is so already changes nothing."""
        body: Any = request.data
        changes = body.get("changes") if isinstance(body, dict) else None
        if not isinstance(changes, list):
            raise RequestError("changes must be a list", field="changes")
        read = [NamespaceChange.of(change) for change in changes]
        _, shard = assigned_or_409(uid, body.get("cluster"), sender=sender(request))
        assert shard.shard_id is not None
        changes_take(shard.shard_id, read)
        return Response({})


def assigned_or_409(uid: str, cluster: object, *, sender: str) -> tuple[AssignmentPicture, ShardView]:
    """Return this node's assignment and its picture of the shard, when the coordinator that asks is the one of it.

    Raise NeedPlacement when this node was told of no such shard (the coordinator tells it and tries once more),
    WrongCluster when another coordinator did, or the sender was replaced as the coordinator, NotPrimary when another
    node has been made the primary.
    """
    picture = topology()
    told, shard = picture.assignment, picture.shards.get(uid)
    if told is not None and told.cluster != cluster:
        raise WrongCluster(
            f"this node is the shard {told.label} of the coordinator at {told.coordinator_url}",
            detail={"cluster": told.cluster},
        )
    if shard is not None and not shard.is_local_primary:
        raise NotPrimary(
            f"this node's copy of the shard {shard.label} is not the primary",
            detail={"shard": shard.label, "primary_url": shard.primary_url or ""},
        )
    if told is None or told.uid != uid or shard is None or shard.shard_id is None:
        raise NeedPlacement(f"this node was not told that it is the shard {uid}")
    check_coordinator_is(told, sender)
    return told, shard


def check_coordinator_is(told: AssignmentPicture, sender: str) -> None:
    """Raise WrongCluster when a node that was the coordinator once, and may not know it any more, is to have effects.

    What it does to slots, rows and namespaces of this shard would not be known to the one that has replaced it.
    """
    if sender and sender != told.coordinator_node:
        raise WrongCluster(
            f"the coordinator of the shard {told.label} is the node at {told.coordinator_url} now",
            detail={"cluster": told.cluster, "coordinator_url": told.coordinator_url},
        )
