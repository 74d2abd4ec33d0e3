"""Whether a node answers, and what it is: the routes that probes use."""

from __future__ import annotations

from typing import Any, ClassVar

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import NodeRouteView
from cluster.selectors import node_status
from cluster.services.hearing import primary_heard
from mlvdb_site.http.errors import RequestError


class AliveView(NodeRouteView):
    """Whether this node answers at all.

    Nothing is read, neither database nor engine, nor is anybody waited for. The answer still needs a free request
    thread of the worker process that takes the connection: a node all of whose threads are busy does not answer, and to
    the one who asks it is silent. That is meant: a request would wait there just as long. Threads that wait for other
    nodes do not count, since two of each process are kept from that (`cluster.routing.threads`).
    """

    parameters: ClassVar = {"GET": ()}
    reads_topology = False

    def get(self, request: Request) -> HttpResponse:
        """Answer 204 at once."""
        return HttpResponse(status=204)


class StatusView(NodeRouteView):
    """What this node is, and how far its shard copies are.

    GET only answers. POST also tells this node where the primary's logs end: `{"cluster", "epoch", "heads": {uid:
    [term, seq]}}`, all optional.
    """

    parameters: ClassVar = {"GET": (), "POST": ()}

    def get(self, request: Request) -> Response:
        """Return the status."""
        return Response(node_status())

    def post(self, request: Request) -> Response:
        """Note where the primary's logs end, and return the status."""
        body: Any = request.data
        heads = body.get("heads")
        if heads is not None and heads != {}:
            primary_heard(cluster=_text(body, "cluster"), epoch=_whole(body, "epoch"), heads=_heads(heads))
        return Response(node_status())


def _text(body: Any, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string", field=name)
    return value


def _whole(body: Any, name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise RequestError(f"{name} must be a whole number", field=name)
    return value


def _heads(value: Any) -> dict[str, tuple[int, int]]:
    if not isinstance(value, dict):
        raise RequestError("heads must be an object of uid: [term, seq]", field="heads")
    heads: dict[str, tuple[int, int]] = {}
    for uid, position in value.items():
        if not (
            isinstance(uid, str)
            and isinstance(position, list)
            and len(position) == 2
            and all(type(number) is int and 0 <= number < 2**63 for number in position)
        ):
            raise RequestError("heads must be an object of uid: [term, seq]", field="heads")
        heads[uid] = (position[0], position[1])
    return heads
