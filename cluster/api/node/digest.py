"""Digests between nodes: asked for once, computed in the background, fetched when they are there."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import CLUSTER, EPOCH, NodeRouteView
from cluster.api.node.log import own_copy
from cluster.replication.digests import run_document, run_of
from mlvdb_site.celery import publish
from mlvdb_site.http.errors import RequestError
from vectors.store.log import Position

_REQUEST = re.compile(r"[0-9a-f]{32}").fullmatch

COMPUTE_TASK = "cluster.tasks.digest_compute"


class DigestView(NodeRouteView):
    """The digest of this node's copy of a shard at a position."""

    parameters: ClassVar = {"POST": (CLUSTER, EPOCH)}

    def post(self, request: Request, uid: str) -> Response:
        """Return the digest, or that it is being computed (202)."""
        own_copy(request, uid)
        body: Any = request.data
        position = Position(_whole(body, "term"), _whole(body, "seq"))
        run, made = run_of(_request(body), uid, position)
        if made and not publish(COMPUTE_TASK, run.pk):
            run.delete()
            raise RequestError("this node's broker takes no task", code="broker_down", status=503)
        document = run_document(run)
        return Response(document, status=202 if document["state"] == "computing" else 200)


def _request(body: Any) -> str:
    value = body.get("request")
    if not isinstance(value, str) or not _REQUEST(value):
        raise RequestError("request must be 32 hexadecimal digits", field="request")
    return value


def _whole(body: Any, name: str) -> int:
    value = body.get(name) if isinstance(body, dict) else None
    if type(value) is not int or not 0 <= value < 2**63:
        raise RequestError(f"{name} must be a whole number", field=name)
    return value
