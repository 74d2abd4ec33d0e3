"""Writing the parts of one request to their shards: other nodes' in threads first, this node's own meanwhile.

Nothing is raised from here: what became of each part is an outcome, since the other parts may be committed. A shard's
own log makes each part all or nothing.

A shard on another node may be given to one of its copies at any time, and what its former node still answers may be set
aside there. So after the answers the registry is looked at once more: an answer counts only if its node was the
shard's all the while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, Error

from cluster.query_processor.errors import AnswerVoid, NodeChanging
from cluster.query_processor.means import Means
from cluster.query_processor.reading import with_time_left
from cluster.query_processor.remote import domain_error, remote_write
from cluster.query_processor.sharded.outcomes import Outcome, Status, committed, failed
from cluster.query_processor.sharded.picture import Picture
from cluster.query_processor.sharded.routing import Part, is_dead, why_dead
from cluster.query_processor.sharded.scatter import peer_s, shard_unavailable, time_for, waits_for_others
from cluster.query_processor.writes import not_primary, write_rows
from cluster.replication.knocks import failover_knock, silence_knock
from cluster.routing.hedging import Attempt, Gathering
from cluster.routing.threads import PeerBusy
from cluster.services.shard_replicas import copies_lagging
from cluster.sharding.view import ShardMember
from cluster.topology import topology_committed
from cluster.transport.errors import PeerRejected, PeerSilent
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import Busy, MLVectorDBError, NotPrimary, StorageError, Unavailable
from vectors.query_processor import LocalQueryProcessor, RequestOptions, WriteResult

logger = logging.getLogger(__name__)

Copies = Callable[[int], LocalQueryProcessor]
"""Where a copy of this node is written, by its key."""


class InternalError(Unavailable):
    """Raised for what nobody expected, when other shards may have committed their parts; the log has the reason."""

    code = "internal_error"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A part of a write: a method of the port and its arguments, for one shard."""

    part: Part
    operation: str
    arguments: Mapping[str, Any]
    options: RequestOptions

    @property
    def member(self) -> ShardMember:
        """The shard."""
        return self.part.member


def delivery(picture: Picture, part: Part, spec: NamespaceSpec, operation: str, **arguments: Any) -> Delivery:
    """Return a part of a write as its shard gets it."""
    return Delivery(part, operation, arguments, picture.options_for(part.member, spec))


def delivered(
    picture: Picture, deliveries: Sequence[Delivery], shared: Means, copies: Copies
) -> list[tuple[Delivery, Outcome]]:
    """Write parts, and return what became of each when all have answered, at the deadline at the latest.

    `copies` has this node's own copies by key.
    """
    outcomes: dict[str, Outcome] = {}
    by_name = {item.member.uid: item for item in deliveries}
    attempts = []
    lagging: dict[str, frozenset[str]] = {}
    for item in deliveries:
        if item.member.failover.is_waited_for:
            outcomes[item.member.uid] = Outcome(Status.REFUSED, node_changing(item.member, why_dead(item.member)))
        elif is_dead(item.member):
            outcomes[item.member.uid] = Outcome(Status.REFUSED, shard_unavailable(item.member, why_dead(item.member)))
        else:
            attempts.append(_attempt(picture, item, copies, lagging))
    attempts.sort(key=lambda attempt: not attempt.peer)
    gathering = Gathering(attempts, deadline=picture.deadline, threads=shared.threads)
    while (found := gathering.next()) is not None:
        if found.answer is not None:
            outcomes[found.name] = committed(found.answer, epoch=picture.sharding.epoch)
        else:
            assert found.error is not None
            error = _error(by_name[found.name].member, found.error)
            outcomes[found.name] = failed(error, epoch=picture.sharding.epoch)
    found_by_item = [(item, outcomes.get(item.member.uid) or _late(item.member)) for item in deliveries]
    return _that_count(found_by_item, lagging)


def waiting(picture: Picture, members: Sequence[ShardMember], shared: Means) -> AbstractContextManager[None]:
    """Count the request among those that wait, where one of the shards needs other nodes. Raise Busy: to be entered
    before anything is written."""
    if any(not member.is_local or waits_for_others(picture, member, picture.options) for member in members):
        return shared.waits.request_slot()
    return nullcontext()


def _that_count(
    found: list[tuple[Delivery, Outcome]], lagging: Mapping[str, frozenset[str]]
) -> list[tuple[Delivery, Outcome]]:
    """Return the outcomes as they stand after another look at the registry, which also learns of copies that lag.

    Both before anything is acknowledged: a copy that lags must not take the place of a node with rows that it lacks.
    """
    if all(item.member.is_local or outcome.status is Status.REFUSED for item, outcome in found):
        return found
    try:
        sharding = topology_committed().sharding
    except Error as error:
        # Nobody can tell now whose answers count.
        logger.warning("registry_not_read error=%r", str(error))
        sharding = None
    checked = []
    for item, outcome in found:
        member = item.member
        now = None if sharding is None else sharding.by_uid.get(member.uid)
        if not member.is_local and outcome.status is not Status.REFUSED:
            if now is None or now.node_epoch != member.node_epoch:
                void = AnswerVoid(
                    f"shard {member.label} was given to another node while this one wrote",
                    detail={"shard": member.label},
                    retry_after_s=1,
                )
                outcome = Outcome(Status.UNKNOWN, void)
            else:
                outcome = _with_lagging_noted(member, outcome, lagging.get(member.uid, frozenset()) - now.lagging)
        checked.append((item, outcome))
    return checked


def _with_lagging_noted(member: ShardMember, outcome: Outcome, names: frozenset[str]) -> Outcome:
    if not names:
        return outcome
    try:
        copies_lagging(member.uid, sorted(names))
    except DatabaseError as error:
        return Outcome(Status.UNKNOWN, StorageError(f"the registry could not be written: {error}", retry_after_s=1))
    return outcome


def _attempt(
    picture: Picture, item: Delivery, copies: Copies, lagging: dict[str, frozenset[str]]
) -> Attempt[WriteResult]:
    member = item.member
    if not member.is_local:
        return Attempt(member.uid, member.url, lambda _timeout_s: _write_there(picture, item, lagging))
    threads_of = f"shard {member.uid}" if waits_for_others(picture, member, item.options) else ""
    return Attempt(member.uid, threads_of, lambda _timeout_s: _write_here(picture, item, copies))


def _write_here(picture: Picture, item: Delivery, copies: Copies) -> WriteResult:
    shard = picture.view.shards.get(item.member.uid)
    if shard is None or shard.shard_id is None:
        raise shard_unavailable(item.member, "its copy has left this node")
    if not shard.is_local_primary:
        raise not_primary(shard)
    processor = copies(shard.shard_id)
    options = with_time_left(item.options, picture.left_s)
    return write_rows(options, lambda: getattr(processor, item.operation)(**item.arguments, options=options))


def _write_there(picture: Picture, item: Delivery, lagging: dict[str, frozenset[str]]) -> WriteResult:
    member, timeout_s = item.member, time_for(picture, item.member)
    written = remote_write(
        member.url,
        picture.view.cluster,
        member.uid,
        item.operation,
        item.arguments,
        with_time_left(item.options, peer_s(timeout_s)),
        timeout_s=timeout_s,
    )
    if written.lagging:
        lagging[member.uid] = written.lagging
    return written.result


def _error(member: ShardMember, error: Exception) -> MLVectorDBError:
    """Return an error as one of a shard's part."""
    if isinstance(error, PeerRejected):
        known = domain_error(error, of_shard=True)
        if known is None:
            why = f"{error.peer_code}: {error.peer_message}"
            known = InternalError(why) if error.peer_status >= 500 else shard_unavailable(member, why)
        error = known
    if isinstance(error, NotPrimary):
        # Where its primary is now is for the coordinator to find out, not for its clients.
        if member.is_local:
            error = shard_unavailable(member, error.message)
        else:
            failover_knock(member.number)
            error = node_changing(member, error.message)
    if isinstance(error, PeerSilent):
        silence_knock()
    if isinstance(error, PeerBusy):
        error = Busy(str(error), retry_after_s=1)
    if isinstance(error, DatabaseError):
        error = StorageError(f"the database failed: {error}", retry_after_s=1)
    if not isinstance(error, MLVectorDBError):
        logger.error("write_failed shard=%s", member.label, exc_info=error)
        error = InternalError("the node failed to write; its log has the reason under this request id")
    if error.status >= 500:
        # Which shard it was is nothing to a client whose own mistake it is.
        error.detail.setdefault("shard", member.label)
    return error


def node_changing(member: ShardMember, why: str) -> NodeChanging:
    """Return the error for a shard that is being given to another node."""
    return NodeChanging(
        f"shard {member.label} could not be asked: {why}"[:500],
        detail={"shard": member.label, "reason": why[:300]},
        retry_after_s=1,
    )


def _late(member: ShardMember) -> Outcome:
    return Outcome(Status.UNKNOWN, shard_unavailable(member, "no answer in time"))
