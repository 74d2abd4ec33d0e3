"""What the node of another coordinator's shard answers: that coordinator for the whole shard, clients for its rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings

from cluster.query_processor.errors import ShardUnavailable
from cluster.query_processor.means import means
from cluster.query_processor.reading import Read, with_time_left
from cluster.query_processor.reads import read_shard
from cluster.query_processor.writes import not_primary, write_rows
from cluster.sharding.view import AssignmentView
from cluster.states import Membership
from cluster.topology import ShardView, topology
from vectors.errors import NotPrimary, NotReady, StaleScope
from vectors.query_processor import Answer, RequestOptions, Scope, WriteResult

WRITES = frozenset({"upsert_many", "delete", "patch"})
"""Operations of the port that a coordinator has a shard do."""

_PAUSE_S = 0.01


def read_for_coordinator(uid: str, read: Read, options: RequestOptions) -> Answer[Any]:
    """Answer for a whole shard: from its primary unless a replica is asked for, at the level that is asked for."""
    view = topology()
    shard = _shard(uid)
    if options.read_preference in (None, "nearest"):
        # The coordinator is not here: what it means is the copy that orders the shard's writes.
        options = replace(options, read_preference="primary")
    return read_shard(view, shard, read, options)


def write_for_coordinator(
    uid: str, operation: str, arguments: Mapping[str, Any], options: RequestOptions
) -> WriteResult:
    """Do a part of a write on this shard, at its level. Raise NotPrimary when another node is the primary now."""
    shard = _shard(uid)
    if not shard.is_local_primary or shard.shard_id is None:
        raise not_primary(shard)
    processor = means().primary(shard.shard_id)
    return write_rows(options, lambda: getattr(processor, operation)(**arguments, options=options))


def check_still_primary(uid: str, cluster: str) -> None:
    """Raise NotPrimary when it is another node by now that is the shard of the coordinator with this cluster."""
    view = topology()
    shard = view.shards.get(uid)
    told = None if shard is None else view.assignment_of(shard)
    if shard is not None and told is not None and told.cluster == cluster and not shard.is_local_primary:
        raise not_primary(shard)


def copies_lagging(uid: str, result: WriteResult) -> list[str]:
    """Return the names of members that are more than MLVDB_FAILOVER_MAX_LAG behind a write, as far as is known."""
    shard = topology().shards.get(uid)
    head = max((seq for _, _, seq in result.positions.values()), default=0)
    return [
        copy.name
        for copy in (() if shard is None else shard.copies)
        if copy.membership is not Membership.NONE and head - copy.seq > settings.MLVDB_FAILOVER_MAX_LAG
    ]


def read_own_slots(uid: str, read: Read, options: RequestOptions) -> Answer[Any]:
    """Answer a client that asks this node directly: from the slots that it was told it owns.

    While the copy's slots have changed and the assignment that says so is on its way, it is waited for.
    """
    deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_READ_TIMEOUT_S)
    while True:
        view, shard = topology(), _shard(uid)
        assignment = view.assignment_of(shard)
        scope = None if assignment is None else Scope(assignment.epoch, assignment.slots)
        left_s = deadline - time.monotonic()
        try:
            return read_shard(view, shard, read, replace(with_time_left(options, left_s), scope=scope))
        except StaleScope as stale:
            if left_s <= _PAUSE_S:
                raise ShardUnavailable(
                    f"what this node owns of shard {shard.label} is changing: {stale.message}",
                    detail={"shard": shard.label},
                    retry_after_s=1,
                ) from stale
        time.sleep(_PAUSE_S)


def not_coordinator(assignment: AssignmentView) -> NotPrimary:
    """Return the error for a client's write at a shard's node."""
    url = assignment.coordinator_url
    return NotPrimary(
        f"this node is shard {assignment.label} of another: send it to {url or 'the coordinator'}",
        detail={"shard": assignment.label, "primary_url": url or None},
    )


def _shard(uid: str) -> ShardView:
    shard = topology().shards.get(uid)
    if shard is None:
        raise NotReady(f"this node has no copy of the shard {uid}", retry_after_s=1)
    return shard
