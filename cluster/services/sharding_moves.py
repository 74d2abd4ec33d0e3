"""The moves that changes of the registry ask for: a share for a new shard, the way out for one that is drained."""

from __future__ import annotations

import logging

from cluster.models import Move, Shard
from cluster.services.changes import TASK
from cluster.states import ShardState
from vectors.errors import MLVectorDBError

logger = logging.getLogger(__name__)


def move_request(kind: str, *, source: Shard | None, target: Shard | None, actor: str) -> Move:
    """Ask for a move."""
    # Moves and the registry know of each other: what a drained shard's move ends in is its removal.
    from cluster.services.moves import move_request as ask

    return ask(kind, source=source, target=target, actor=actor)


def fill_now(*, actor: str = TASK) -> Move | None:
    """Ask for a rebalancing when a shard waits for its share and can be given it; return the move.

    The mark is cleared after the move is there: a crash in between makes two moves, and the second finds nothing to do.
    """
    waiting = [shard.pk for shard in Shard.objects.filter(fill_due=True) if ShardState(shard.state).is_target]
    if not waiting:
        return None
    try:
        move = move_request(Move.Kind.REBALANCE, source=None, target=None, actor=actor)
    except MLVectorDBError as error:
        # The shard is there, and beat asks again.
        logger.warning("shards_not_filled error=%s", error.message)
        return None
    Shard.objects.filter(pk__in=waiting).update(fill_due=False)
    logger.info("shards_filled shards=%d move=%d", len(waiting), move.pk)
    return move


def drain_now(shard: Shard, *, actor: str = TASK) -> Move:
    """Ask for the move that takes all slots from a shard; the one that is under way when there is one."""
    under_way = Move.objects.filter(kind=Move.Kind.DRAIN, shard=shard.uid, ended_at__isnull=True).first()
    return under_way or move_request(Move.Kind.DRAIN, source=shard, target=None, actor=actor)
