"""A coordinator's orders to copies of its shard whose primary is gone: take its place, or help the one that is to."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import NeedPlacement, NodeRouteView, WrongCluster
from cluster.node_urls import node_url
from cluster.services.lending import tail_lend
from cluster.services.promotion import shard_promote
from cluster.topology import topology
from mlvdb_site.http.errors import RequestError


class PromoteShardView(NodeRouteView):
    """Stand for election as the primary of a shard: `{"cluster", "actor"}`, the cluster being the coordinator's."""

    parameters: ClassVar = {"POST": ()}

    def post(self, request: Request, uid: str) -> Response:
        """Win the election, without force, and return where the new term begins; once it is the primary, say so."""
        body = _order(request, uid)
        promoted = shard_promote(uid, actor=str(body.get("actor") or "")[:100])
        return Response({"term": promoted.term, "seq": promoted.seq, "epoch": promoted.epoch})


class LendView(NodeRouteView):
    """Send another copy what this one has beyond it: `{"cluster", "url", "epoch"}`, the epoch being the receiver's."""

    parameters: ClassVar = {"POST": ()}

    def post(self, request: Request, uid: str) -> Response:
        """Send it and return where the other copy is then."""
        body = _order(request, uid)
        url, epoch = body.get("url"), body.get("epoch")
        if not isinstance(url, str) or type(epoch) is not int or not 0 <= epoch < 2**63:
            raise RequestError("url is a text and epoch a whole number", field="url")
        position = tail_lend(uid, url=node_url(url, field="url"), epoch=epoch)
        return Response({"term": position.term, "seq": position.seq})


def _order(request: Request, uid: str) -> dict[str, Any]:
    """Return the body of an order of the coordinator whose shard this node has a copy of."""
    body: Any = request.data
    if not isinstance(body, dict):
        raise RequestError("the body must be an object")
    picture = topology()
    shard = picture.shards.get(uid)
    told = None if shard is None else picture.assignment_of(shard)
    if shard is None or told is None:
        raise NeedPlacement(f"this node was not told of the shard {uid}")
    if told.cluster != body.get("cluster"):
        raise WrongCluster(
            f"this node's copy is of the shard {told.label} of the coordinator at {told.coordinator_url}",
            detail={"cluster": told.cluster},
        )
    return body
