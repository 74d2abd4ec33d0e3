"""The cluster as a whole over HTTP: topology, moves, health over time. Reads only; other endpoints make moves."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.disabled import SHARDING
from cluster.api.enabled import EnabledView
from cluster.api.query import DRY_RUN, HISTORY_LIMIT, HISTORY_REPLICA, MOVES_LIMIT
from cluster.models import Move
from cluster.overview import health_history, move_view, topology_picture
from cluster.services.registry import replica_of
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import whole_number

_MOVES = 100
_CHECKS = 100
_MOST = 10_000


class TopologyView(EnabledView):
    """The whole picture, for dashboards: shards, copies, running moves."""

    parameters: ClassVar = {"GET": ()}
    feature = SHARDING
    title = "Topology"

    def get(self, request: Request) -> Response:
        """Return the picture."""
        return Response(topology_picture())


class MovesView(EnabledView):
    """Running and past changes of placement, newest first."""

    parameters: ClassVar = {"GET": (MOVES_LIMIT,), "POST": (DRY_RUN,)}
    feature = SHARDING
    title = "Moves"

    def check_query(self, request: Request) -> None:
        """Check the limit."""
        _limit(request, _MOVES)

    def get(self, request: Request) -> Response:
        """Return them."""
        limit = _limit(request, _MOVES)
        return Response({"moves": [move_view(move) for move in Move.objects.all()[:limit]]})

    def post(self, request: Request) -> Response:
        """Refuse: there are no slots to move on a node without shards of its own making."""
        raise RequestError(self.feature.message, code=self.feature.code)


class MoveView(EnabledView):
    """A change of placement: plan, phase, progress."""

    parameters: ClassVar = {"GET": ()}
    feature = SHARDING
    title = "Move"

    def get(self, request: Request, move_id: str) -> Response:
        """Return it."""
        is_number = move_id.isascii() and move_id.isdigit() and len(move_id) <= 18
        move = Move.objects.filter(pk=int(move_id)).first() if is_number else None
        if move is None:
            raise RequestError(f"there is no move {move_id}", code="move_not_found", status=404, field="move_id")
        return Response(move_view(move))


class HealthHistoryView(EnabledView):
    """How the replicas were over time, by the probes of the health monitor."""

    parameters: ClassVar = {"GET": (HISTORY_REPLICA, HISTORY_LIMIT)}
    feature = SHARDING
    title = "Health history"

    def check_query(self, request: Request) -> None:
        """Check the limit."""
        _limit(request, _CHECKS)

    def get(self, request: Request) -> Response:
        """Return the newest probes of each replica, oldest first."""
        replica = request.query_params.get("replica_id", "")
        if replica:
            replica_of(replica)
        history: dict[str, Any] = health_history(replica=replica, limit=_limit(request, _CHECKS))
        return Response({"history": history})


def _limit(request: Request, default: int) -> int:
    text = request.query_params.get("limit")
    return default if text is None else whole_number(text, field="limit", minimum=1, maximum=_MOST)
