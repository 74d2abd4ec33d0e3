"""Elections between nodes: votes, the placement a member knows, and the order to take over from the primary."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import NodeRouteView, sender
from cluster.replication.votes import Ballot
from cluster.services.handover import hand_over_to
from cluster.services.promotion import TakeOver, take_over
from cluster.services.voting import placement_tell, vote_give
from mlvdb_site.http.errors import RequestError
from vectors.store.log import Position


class VoteView(NodeRouteView):
    """This copy's vote in a new term: `{"cluster", "epoch", "term", "candidate", "force"}`."""

    parameters: ClassVar = {"POST": ()}

    def post(self, request: Request, uid: str) -> Response:
        """Promise the term to the candidate and return this copy's position."""
        body: Any = request.data
        ballot = Ballot(
            cluster=_text(body, "cluster"),
            shard=uid,
            epoch=_whole(body, "epoch"),
            term=_whole(body, "term"),
            candidate=_text(body, "candidate"),
            force=body.get("force") is True,
        )
        if ballot.candidate != sender(request):
            raise RequestError("a node asks for votes for itself only", code="not_the_candidate", field="candidate")
        return Response(vote_give(ballot))


class PlacementOfShardView(NodeRouteView):
    """The newest placement of a shard that this node knows."""

    parameters: ClassVar = {"GET": ()}

    def get(self, request: Request, uid: str) -> Response:
        """Return the document."""
        return Response(placement_tell(uid))


class TakeOverView(NodeRouteView):
    """A primary that hands over has its replica take over.

    `{"cluster", "epoch", "term", "at": [term, seq], "also": [{"shard", "term", "at"}, …], "force", "actor"}`
    """

    parameters: ClassVar = {"POST": ()}

    def post(self, request: Request, uid: str) -> Response:
        """Win the election and return where the new term begins."""
        body: Any = request.data
        others = body.get("also", [])
        if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
            raise RequestError("also must be a list of objects", field="also")
        orders = [_order(uid, body), *[_order(_text(other, "shard"), other) for other in others]]
        taken = take_over(
            orders,
            cluster=_text(body, "cluster"),
            epoch=_whole(body, "epoch"),
            sender=sender(request),
            force=body.get("force") is True,
            actor=str(body.get("actor") or "")[:100],
        )
        return Response(taken)


class HandOverView(NodeRouteView):
    """A replica that is to be promoted by force has a living primary hand over: `{"cluster", "actor"}`."""

    parameters: ClassVar = {"POST": ()}

    def post(self, request: Request, uid: str) -> Response:
        """Hand over to the replica that asks and return where the new term begins."""
        body: Any = request.data
        node = sender(request)
        promoted = hand_over_to(
            node, cluster=_text(body, "cluster"), actor=f"{str(body.get('actor') or '')[:100]} at node {node}"
        )
        return Response({"term": promoted.term, "seq": promoted.seq, "epoch": promoted.epoch})


def _order(uid: str, body: Any) -> TakeOver:
    at = body.get("at")
    if not (isinstance(at, list) and len(at) == 2 and all(type(number) is int and number >= 0 for number in at)):
        raise RequestError("at must be [term, seq]", field="at")
    return TakeOver(uid, _whole(body, "term"), Position(*at))


def _text(body: Any, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 32:
        raise RequestError(f"{name} must be a uid", field=name)
    return value


def _whole(body: Any, name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise RequestError(f"{name} must be a whole number", field=name)
    return value
