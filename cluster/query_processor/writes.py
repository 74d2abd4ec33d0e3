"""A write on one shard: refused where this node is not its primary, and answered when its level is reached.

The write is committed here first, by the single node's query processor; then it waits for other copies
(`cluster.replication.lanes`). What is not reached in time is answered 503 with what was: the write stays in the log,
and may or may not survive a failover. The ids are in that answer, generated ones too, so that a client can repeat it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from django.conf import settings
from django.db import DatabaseError

from cluster.query_processor.means import means
from cluster.replication import lanes
from cluster.topology import ShardView, topology
from vectors.engine.ids import id_of
from vectors.errors import MLVectorDBError, NotEnoughCopies, NotPrimary
from vectors.query_processor import LocalQueryProcessor, NamespaceInfo, RequestOptions, WriteResult
from vectors.store.log import Position
from vectors.tokens import token_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


def write_rows(options: RequestOptions, do: Callable[[], WriteResult]) -> WriteResult:
    """Do a write on this node's copy of a shard, and wait for the level that it asks for.

    Raise Busy before anything is written, NotPrimary, NotEnoughCopies, and what the single node raises.
    """

    def written(result: WriteResult) -> _Written:
        ((label, (uid, term, seq)),) = result.positions.items()
        return _Written(uid, label, Position(term, seq), result.keys)

    return _at_level(options, do, written)


def write_namespace(
    local: LocalQueryProcessor, options: RequestOptions, do: Callable[[], NamespaceInfo]
) -> NamespaceInfo:
    """Make or change a namespace of this node's copy at the level that is asked for; raise as `write_rows`."""

    def written(_info: NamespaceInfo) -> _Written:
        # Its entry is in the log by now, if there is one: the head is at it or beyond.
        head = local.head()
        return _Written(head.uid, head.label, head.position)

    return _at_level(options, do, written)


def not_primary(shard: ShardView) -> NotPrimary:
    """Return the error for a write to a copy that does not take any."""
    url = None if shard.is_local_primary else shard.primary_url
    where = f"send it to {url}" if url else "another node may be, this one has not heard which"
    if shard.placement is not None and not url:
        where = "the primary is a program, which takes writes of its own only"
    return NotPrimary(
        f"this node is not the primary of shard {shard.label}: {where}",
        detail={"shard": shard.label, "primary_url": url},
    )


class _Written(NamedTuple):
    """Where a write is in the log of its shard, and of which rows."""

    uid: str
    label: str
    position: Position
    keys: Sequence[bytes] = ()

    @property
    def detail(self) -> dict[str, Any]:
        """What a client needs to repeat the write, or to wait for it."""
        term, seq = self.position
        return {
            "shard": self.label,
            "ids": [id_of(key) for key in self.keys],
            "seq": {self.label: token_of(self.uid, term=term, seq=seq)},
        }


def _at_level(options: RequestOptions, do: Callable[[], T], written: Callable[[T], _Written]) -> T:
    try:
        if options.consistency == "one":
            return do()
        deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S)
        # Before the write: one that is in the log and was never waited for would be a worse answer than `busy`.
        with means().waits.slot():
            result = do()
            # Who the members are is looked up after the commit: one that joined before it counts, and one that joins
            # later begins with this write in its log.
            _wait(written(result), options.consistency, deadline=deadline)
            return result
    except NotPrimary as error:
        # It has promised a higher term, or was released since the topology was read.
        raise _with_primary_url(error) from error


def _wait(write: _Written, level: str, *, deadline: float) -> None:
    try:
        reached = lanes.wait_for(write.uid, write.position, level, deadline=deadline)
    except (MLVectorDBError, DatabaseError) as error:
        # It is committed here all the same: an error of another name would say that it is not.
        logger.warning("level_not_known shard=%s level=%s error=%s", write.label, level, error)
        raise NotEnoughCopies(
            f"the write is committed on this node; whether other copies have it could not be told: {error}",
            detail={"acknowledged": 1, "required": 2, **write.detail},
            retry_after_s=1,
        ) from error
    if not reached.reached:
        raise NotEnoughCopies(
            f"{reached.acknowledged} of {reached.required} copies of shard {write.label} have the write",
            detail={
                "acknowledged": reached.acknowledged,
                "required": reached.required,
                **write.detail,
                "copies": {name: str(why)[:300] for name, why in reached.why.items()},
            },
            retry_after_s=1,
        )


def _with_primary_url(error: NotPrimary) -> NotPrimary:
    urls = [shard.primary_url for shard in topology().shards.values() if not shard.is_local_primary]
    return NotPrimary(error.message, detail={**error.detail, "primary_url": urls[0] if urls else None})
