"""What the routes between nodes share: bodies, answers, errors, and whether sender and receiver mean the same epoch.

Who may ask is settled by `mlvdb_site.http.access` before a view runs: a request that another node has signed, or one of
this machine where there is neither secret nor API key. A signed request's body is compared with its signature when it
is read.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, ClassVar

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpResponse
from rest_framework.request import Request

from cluster.topology import ShardView, topology
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter
from mlvdb_site.http.parsers import JSONParser, MsgpackParser, read_body
from mlvdb_site.http.renderers import JSONRenderer, MsgpackRenderer
from mlvdb_site.http.signing import NODE_HEADER, node_of
from mlvdb_site.http.views import NodeView
from vectors.errors import Conflict, LogError

EPOCH_HEADER = "X-MLVDB-Epoch"
BINARY = "application/octet-stream"

#: A batch of the largest body a client may send is longer as a log entry: ids and lengths are added to each row.
_LARGER_THAN_A_CLIENTS = 2

_WHOLE = re.compile(r"[0-9]{1,18}").fullmatch

CLUSTER = QueryParameter("cluster", "uid of the cluster.", required=True)
EPOCH = QueryParameter("epoch", "Epoch of the sender's placement.", required=True)
TERM = QueryParameter("term", "Term of the sender.", required=True)


class StaleEpoch(Conflict):
    """Raised when the sender acts on an older placement than this node has; `detail` has this node's epoch."""

    code = "stale_epoch"


class NeedPlacement(Conflict):
    """Raised when the sender acts on a newer placement than this node has, or on one it was never told of."""

    code = "need_placement"


class DetachedCopy(Conflict):
    """Raised when the sender acts on a copy that was removed from the cluster: it is kept as it was."""

    code = "detached"


class WrongCluster(Conflict):
    """Raised when the sender belongs to another cluster than this node."""

    code = "wrong_cluster"


class NodeRouteView(NodeView):
    """A route between nodes. Methods return a `Response` (JSON or msgpack as asked) or a `binary_answer`.

    Domain errors raised in a method are answered in the one error shape, by their own code and status, errors of a log
    as 409. Query parameters are declared in `parameters`, as in every view; the sender's id is `sender(request)`.
    """

    schema = None  # not in the OpenAPI document
    renderer_classes = [JSONRenderer, MsgpackRenderer]
    parser_classes = [JSONParser, MsgpackParser]
    reads_topology: ClassVar[bool] = True
    """Whether answers carry the epoch, which may take a look at the database."""

    def binary_body(self, request: Request) -> bytes:
        """Return the body as it was sent; raise RequestError for one that is too large, cut short or not as signed."""
        return read_body(request._request, limit=_LARGER_THAN_A_CLIENTS * settings.MLVDB_MAX_BODY_BYTES)

    def handle_exception(self, exception: Exception) -> Any:
        """Answer an error of a log as a conflict: it is the sender's turn to do something about it."""
        if isinstance(exception, LogError):
            exception = RequestError(
                exception.message, code=exception.code, status=409, field=exception.field, detail=exception.detail
            )
        return super().handle_exception(exception)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Put on every answer which node it is from and which epoch that node is at."""
        response = super().finalize_response(request, response, *args, **kwargs)
        response[NODE_HEADER] = settings.MLVDB_NODE_ID
        if self.reads_topology:
            with suppress(DatabaseError):
                response[EPOCH_HEADER] = str(topology().epoch)
        return response


def binary_answer(body: bytes, *, status: int = 200) -> HttpResponse:
    """Return an answer of bytes."""
    return HttpResponse(body, status=status, content_type=BINARY)


def sender(request: Request) -> str:
    """Return the id of the node that sent a request."""
    return node_of(request._request.META) or ""


def text_parameter(request: Request, name: str) -> str:
    """Return a query parameter that must be there."""
    value = request.query_params.get(name, "")
    if not value:
        raise RequestError(f"{name} is required", code="missing_parameter", field=name)
    return value


def whole_parameter(request: Request, name: str) -> int:
    """Return a query parameter that must be there and be a whole number of at most 18 digits."""
    value = text_parameter(request, name)
    if not _WHOLE(value):
        raise RequestError(f"{name} must be a whole number", field=name)
    return int(value)


def placement_or_409(uid: str, cluster: str, epoch: int) -> ShardView:
    """Return this node's picture of a shard, when the sender acts on the same placement of it.

    Raise StaleEpoch when the sender's is older (it takes the newer one and starts again), NeedPlacement when this
    node's is older or there is none (the sender has it pushed and tries once more), DetachedCopy, WrongCluster.
    """
    picture = topology()
    shard = picture.shards.get(uid)
    if shard is None or not picture.cluster:
        raise NeedPlacement(f"this node was not told of the shard {uid}", detail={"epoch": picture.epoch})
    known = picture.cluster_of(shard)
    if cluster != known:
        raise WrongCluster(
            f"this node's shard {shard.label} belongs to the cluster {known}, not {cluster}", detail={"cluster": known}
        )
    own = picture.epoch_of(shard)
    if epoch < own:
        raise StaleEpoch(f"epoch {epoch} is older than this node's {own}", detail={"epoch": own})
    if epoch > own:
        raise NeedPlacement(f"epoch {epoch} is newer than this node's {own}", detail={"epoch": own})
    if shard.placement is not None and shard.placement.is_detached:
        # A sender that has not looked since the removal.
        raise DetachedCopy(f"this copy of the shard {shard.label} was removed from the cluster", detail={"epoch": own})
    return shard
