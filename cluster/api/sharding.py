"""Sharding over HTTP: the shards of this coordinator, where ids are, and the moves that are asked for (API §4).

What waits for other nodes takes one of the slots that the requests of a process have for that.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.actors import actor_of
from cluster.api.disabled import SHARDING
from cluster.api.enabled import EnabledView
from cluster.api.query import AUTO_FAILOVER, DRY_RUN, FORCE, LOCATED_ID, REBALANCE, SHARD_ID, SHARD_URL, WEIGHT
from cluster.health.shards import shards_check
from cluster.models import Move, Shard
from cluster.moves.control import move_request
from cluster.moves.planning import move_plan
from cluster.query_processor.means import means
from cluster.services import sharding
from cluster.services.sharding_rows import LARGEST_WEIGHT
from cluster.shards_overview import location, sharding_info, shards_now
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import flag, positive
from vectors.api.options import ID_TYPE, NAMESPACE, id_type_is_string, namespace_of
from vectors.engine.ids import key_of_text


class ShardingView(EnabledView):
    """An endpoint of sharding."""

    feature = SHARDING


class ShardingInfoView(ShardingView):
    """The shards of this node, their slots and rows."""

    parameters: ClassVar = {"GET": ()}
    title = "Sharding"

    def get(self, request: Request) -> Response:
        """Return them."""
        return Response(sharding_info())


class ShardsView(ShardingView):
    """Add a shard and fill it with its share. Its node need not be up yet; without a URL it is on this node."""

    parameters: ClassVar = {"POST": (SHARD_ID, SHARD_URL, WEIGHT, REBALANCE, AUTO_FAILOVER)}
    title = "Shards"
    examples: ClassVar = {"POST": {"shard_id": "shard_r", "shard_url": "http://127.0.0.1:8001"}}

    def post(self, request: Request) -> Response:
        """Add it; the same id and URL again change nothing."""
        given = self.given(request, required=("shard_id",))
        rebalance = "rebalance" not in given or flag(given["rebalance"], field="rebalance")
        with means().waits.slot():
            shard, is_new, move = sharding.shard_add(
                label=given["shard_id"],
                url=given.get("shard_url", ""),
                weight=positive(given["weight"], field="weight", maximum=LARGEST_WEIGHT) if "weight" in given else 1.0,
                rebalance=rebalance,
                auto_failover=(
                    flag(given["auto_failover"], field="auto_failover") if "auto_failover" in given else None
                ),
                actor=actor_of(request),
            )
        answer: dict[str, Any] = {
            "status": "success",
            "message": f"Shard {shard.label} {'added' if is_new else 'is there already'}",
            "shard_id": shard.label,
            "is_local": shard.is_local,
        }
        if move is not None:
            answer["move"] = move.pk
        if shard.last_error:
            answer["last_error"] = shard.last_error
        return Response(answer)


class LocalShardsView(ShardsView):
    """Add a shard on this node and fill it with its share."""

    parameters: ClassVar = {"POST": (SHARD_ID, WEIGHT, REBALANCE)}
    title = "Local shards"
    examples: ClassVar = {"POST": {"shard_id": "shard_2"}}


class ShardView(ShardingView):
    """Remove a shard, draining it first."""

    parameters: ClassVar = {"DELETE": (FORCE,)}
    title = "Shard"

    def delete(self, request: Request, shard_id: str) -> Response:
        """Remove it at once when it is empty, else when the move that is answered is over."""
        given = self.given(request)
        with means().waits.slot():
            move = sharding.shard_remove(label=shard_id, force=self.given_flag(given, "force"), actor=actor_of(request))
        if move is None:
            return Response({"status": "success", "message": f"Shard {shard_id} removed", "shard_id": shard_id})
        return _accepted(move, f"Shard {shard_id} is being drained, and removed then", shard_id=shard_id)


class ShardsHealthView(ShardingView):
    """Whether each shard is healthy: all are probed now."""

    parameters: ClassVar = {"GET": ()}
    title = "Health of all shards"

    def get(self, request: Request) -> Response:
        """Probe them."""
        with means().waits.slot():
            return Response({"shards_health": shards_check(shards_now())})


class ShardHealthView(ShardingView):
    """Probe a shard now."""

    parameters: ClassVar = {"GET": ()}
    title = "Health of a shard"

    def get(self, request: Request, shard_id: str) -> Response:
        """Probe it."""
        with means().waits.slot():
            is_healthy = sharding.shard_check(label=shard_id)
        return Response({"shard_id": shard_id, "is_healthy": is_healthy})


class LocateView(ShardingView):
    """The shard and slot of an id."""

    parameters: ClassVar = {"GET": (LOCATED_ID, ID_TYPE, NAMESPACE)}
    title = "Location"

    def check_query(self, request: Request) -> None:
        """Check the id and the namespace, which are of the same form on every node."""
        self._key(request)

    def get(self, request: Request) -> Response:
        """Return them, and the copies of the shard."""
        return Response(location(self._key(request)))

    def _key(self, request: Request) -> bytes:
        text = request.query_params.get(LOCATED_ID.name, "")
        if not text:
            raise RequestError("id is required", code="missing_field", field="id")
        # An id is in the same slot in all namespaces; what cannot be one's name is refused as everywhere.
        namespace_of(request)
        return key_of_text(text, as_string=id_type_is_string(request))


class RedistributeView(ShardingView):
    """Move all slots and rows of one shard to another."""

    parameters: ClassVar = {"POST": (DRY_RUN,)}
    title = "Redistribution"

    def post(self, request: Request, source_id: str, target_id: str) -> Response:
        """Ask for it; with `dry_run` only show the plan."""
        given = self.given(request)
        source, target = sharding.shard_of(source_id), sharding.shard_of(target_id)
        return planned_or_asked(
            request,
            Move.Kind.REDISTRIBUTE,
            f"Redistribution from {source_id} to {target_id} started",
            source=source,
            target=target,
            dry_run=self.given_flag(given, "dry_run"),
        )


class RedistributeAllView(ShardingView):
    """Rebalance the shards by weight."""

    parameters: ClassVar = {"POST": (DRY_RUN,)}
    title = "Rebalance"

    def post(self, request: Request) -> Response:
        """Ask for it; with `dry_run` only show the plan."""
        given = self.given(request)
        return planned_or_asked(
            request,
            Move.Kind.REBALANCE,
            "Redistribution of all shards started",
            dry_run=self.given_flag(given, "dry_run"),
        )


def planned_or_asked(
    request: Request,
    kind: str,
    message: str,
    *,
    source: Shard | None = None,
    target: Shard | None = None,
    dry_run: bool = False,
) -> Response:
    """Answer the plan of a move, or ask for it and answer that."""
    with means().waits.slot():
        if dry_run:
            plan = move_plan(kind, source=source, target=target)
            return Response({"status": "success", "dry_run": True, "plan": plan.to_document()})
        move = move_request(kind, source=source, target=target, actor=actor_of(request))
    return _accepted(move, message)


def _accepted(move: Move, message: str, **more: Any) -> Response:
    answer = {"status": "success", "message": message, **more, "move": move.pk}
    return Response(answer, status=status.HTTP_202_ACCEPTED)
