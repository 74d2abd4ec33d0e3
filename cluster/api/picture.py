"""The cluster as a whole over HTTP: topology, and health over time."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.enabled import PictureView
from cluster.api.query import HISTORY_LIMIT, HISTORY_REPLICA, HISTORY_SHARD
from cluster.overview import health_history, shard_history, topology_picture
from cluster.services.registry import replica_of
from cluster.services.sharding import shard_of
from mlvdb_site.http.parameters import whole_number

_CHECKS = 100
_MOST = 10_000


class TopologyView(PictureView):
    """The whole picture, for dashboards: shards, copies, running moves."""

    parameters: ClassVar = {"GET": ()}
    title = "Topology"

    def get(self, request: Request) -> Response:
        """Return the picture."""
        return Response(topology_picture())


class HealthHistoryView(PictureView):
    """How replicas and the shards of other nodes were over time, by the probes of the health monitor."""

    parameters: ClassVar = {"GET": (HISTORY_REPLICA, HISTORY_SHARD, HISTORY_LIMIT)}
    title = "Health history"

    def check_query(self, request: Request) -> None:
        """Check the limit."""
        limit_of(request, _CHECKS)

    def get(self, request: Request) -> Response:
        """Return the newest probes of each replica and each shard, oldest first; of one only when it is named."""
        replica, shard = (request.query_params.get(name, "") for name in ("replica_id", "shard_id"))
        if replica:
            replica_of(replica)
        if shard:
            shard_of(shard)
        limit = limit_of(request, _CHECKS)
        answer: dict[str, Any] = {
            "history": {} if shard and not replica else health_history(replica=replica, limit=limit),
            "shards": {} if replica and not shard else shard_history(shard=shard, limit=limit),
        }
        return Response(answer)


def limit_of(request: Request, default: int) -> int:
    """Return the parameter `limit`; raise RequestError for what is no count."""
    text = request.query_params.get("limit")
    return default if text is None else whole_number(text, field="limit", minimum=1, maximum=_MOST)
