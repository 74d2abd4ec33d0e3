"""What a coordinator has the node of one of its shards do about the replicas of that shard."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.assignment import assigned_or_409
from cluster.api.node.base import NodeRouteView, sender
from cluster.selectors import shard_copies
from cluster.services import registry
from cluster.services.handover import replica_promote
from cluster.services.removal import replica_remove
from mlvdb_site.http.errors import RequestError


class ShardReplicasView(NodeRouteView):
    """The replicas of this node's shard; every body has the `cluster` of the coordinator, and the replica's `name`.

    Answers have `copies`, as the status of this node does.
    """

    parameters: ClassVar = {"PUT": (), "DELETE": (), "POST": ()}

    def put(self, request: Request, uid: str) -> Response:
        """Add one: `{"name", "url", "actor"}`."""
        body = _body(request, uid)
        registry.replica_add(name=_text(body, "name"), url=_text(body, "url"), actor=_actor(body))
        return Response({"copies": shard_copies(uid)})

    def delete(self, request: Request, uid: str) -> Response:
        """Remove one: `{"name", "force", "actor"}`."""
        body = _body(request, uid)
        replica_remove(name=_text(body, "name"), force=body.get("force") is True, actor=_actor(body))
        return Response({"copies": shard_copies(uid)})

    def post(self, request: Request, uid: str) -> Response:
        """Sync, probe or promote one: `{"operation": "sync" | "check" | "promote", "name", …}`.

        A sync may have a `namespace`, a promotion `force`, and both have an `actor`.
        """
        body = _body(request, uid)
        name, operation = _text(body, "name"), body.get("operation")
        if operation == "check":
            return Response({"is_healthy": registry.replica_check(name=name)})
        if operation == "promote":
            promoted = replica_promote(name=name, force=body.get("force") is True, actor=_actor(body))
            return Response(promoted._asdict())
        if operation != "sync":
            raise RequestError("operation is sync, check or promote", field="operation")
        namespace = None if body.get("namespace") is None else _text(body, "namespace")
        move = registry.replica_sync(name=name, namespace=namespace, actor=_actor(body))
        return Response({"move": move.pk, "kind": move.get_kind_display()})


def _body(request: Request, uid: str) -> dict[str, Any]:
    """Return the body, when the coordinator that this node was assigned by has sent it."""
    body: Any = request.data
    if not isinstance(body, dict):
        raise RequestError("the body must be an object")
    assigned_or_409(uid, body.get("cluster"), sender=sender(request))
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise RequestError(f"{name} must be a short text", field=name)
    return value


def _actor(body: dict[str, Any]) -> str:
    return f"{str(body.get('actor') or '')[:100]} at the coordinator"
