"""Moves over HTTP: what is copied and what was, plans, and their control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.actors import actor_of
from cluster.api.disabled import SHARDING
from cluster.api.enabled import EnabledView, PictureView, is_enabled
from cluster.api.picture import limit_of
from cluster.api.query import DRY_RUN, MOVE_KIND, MOVE_SOURCE, MOVE_TARGET, MOVES_LIMIT
from cluster.api.sharding import planned_or_asked
from cluster.models import SLOT_KINDS, Move
from cluster.moves.control import MoveNotFound, move_cancel, move_of, move_pause, move_resume
from cluster.overview import move_view
from cluster.services import sharding
from mlvdb_site.http.errors import RequestError

_MOVES = 100


class MovesView(PictureView):
    """Running and past moves, newest first; a POST asks for one, or with `dry_run` for its plan."""

    parameters: ClassVar = {"GET": (MOVES_LIMIT,), "POST": (MOVE_KIND, MOVE_SOURCE, MOVE_TARGET, DRY_RUN)}
    title = "Moves"
    examples: ClassVar = {"POST": {"kind": "rebalance", "dry_run": True}}

    def check_query(self, request: Request) -> None:
        """Check the limit."""
        limit_of(request, _MOVES)

    def get(self, request: Request) -> Response:
        """Return them."""
        limit = limit_of(request, _MOVES)
        return Response({"moves": [move_view(move) for move in Move.objects.all()[:limit]]})

    def post(self, request: Request) -> Response:
        """Ask for a move, or plan it."""
        if not is_enabled(SHARDING):
            raise RequestError(SHARDING.message, code=SHARDING.code)
        given = self.given(request, required=("kind",))
        if given["kind"] not in SLOT_KINDS:
            raise RequestError(f"kind is one of {', '.join(SLOT_KINDS)}", field="kind")
        source = sharding.shard_of(given["source"]) if given.get("source") else None
        target = sharding.shard_of(given["target"]) if given.get("target") else None
        dry_run = self.given_flag(given, "dry_run")
        if given["kind"] == Move.Kind.DRAIN and not dry_run:
            raise RequestError(
                "a shard is drained by removing it: DELETE /sharding/shards/{shard_id}; its plan can be asked for here",
                field="kind",
            )
        message = f"{Move.Kind(given['kind']).label.capitalize()} started"
        return planned_or_asked(request, given["kind"], message, source=source, target=target, dry_run=dry_run)


class MoveView(PictureView):
    """A move: plan, phase, progress."""

    parameters: ClassVar = {"GET": ()}
    title = "Move"

    def get(self, request: Request, move_id: str) -> Response:
        """Return it."""
        return Response(move_view(move_of(_number(move_id))))


class _MoveControlView(EnabledView):
    """A move is told what to do."""

    parameters: ClassVar = {"POST": ()}
    feature = SHARDING
    service: ClassVar[Callable[..., Move]]
    done: ClassVar[str]

    def post(self, request: Request, move_id: str) -> Response:
        """Do it."""
        self.given(request)
        move = type(self).service(_number(move_id), actor=actor_of(request))
        answer: dict[str, Any] = {"status": "success", "message": f"Move {move.pk} {self.done}", "move": move.pk}
        return Response(answer)


class MovePauseView(_MoveControlView):
    """Pause a move: it stops where it is, but for slots that are closed, which are switched first."""

    title = "Pause of a move"
    service = move_pause
    done = "paused"


class MoveResumeView(_MoveControlView):
    """Resume a move."""

    title = "Resumption of a move"
    service = move_resume
    done = "resumed"


class MoveCancelView(_MoveControlView):
    """Cancel a move: what has not been switched is undone."""

    title = "Cancellation of a move"
    service = move_cancel
    done = "cancelled"


def _number(move_id: str) -> int:
    is_number = move_id.isascii() and move_id.isdigit() and len(move_id) <= 18
    if not is_number:
        raise MoveNotFound(f"there is no move {move_id}", field="move_id")
    return int(move_id)
