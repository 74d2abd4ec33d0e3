"""Handing the primary's part over to a replica while both are alive; nothing that was acknowledged is lost.

Preconditions: this node keeps the registry and takes writes; the replica follows, is a member, and answers.
A coordinator hands over all of its shards at once: each step is done for every shard before the next.
Steps:
1. bring the replica to the head while writes go on, so that the pause for writers is short;
2. promise the next term to the replica: from here on this node commits nothing more;
3. send the rest, and compare: the replica must be exactly where this log ends;
4. tell the replica to take over; it collects the votes, this node's promise among them, and commits the change;
5. its placement makes this node a replica.
If 3 or 4 fail, this node stands for election again, in a newer term, so that writes go on; should the replica have won
after all, this node learns of it there and obeys. A crash in between leaves a primary that takes no writes, which beat
has stand again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction

from cluster.health.rounds import probe_now
from cluster.models import Placement, Replica, ReplicaCopy, Topology
from cluster.replication import quorum
from cluster.replication.election import NewerPlacement, placement_ask
from cluster.replication.placements import PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.replication.sender import Sender, Step, Target
from cluster.replication.votes import members_of, next_term
from cluster.services.accession import placement_adopt, registry_document
from cluster.services.changes import TASK, event_write
from cluster.services.placements import placement_push_now
from cluster.services.promotion import Promotion, TakeOver, promotion_lease, stand_again
from cluster.services.registry import check_owner, replica_of
from cluster.states import CopyState, Membership
from cluster.topology import topology
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerRejected
from cluster.transport.messages import shard_path
from vectors.errors import Conflict, MLVectorDBError, Unavailable
from vectors.models import ShardHead
from vectors.store import log, terms
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)

CATCH_UP_WITHIN_S = 20.0
REST_WITHIN_S = 5.0
_TAKE_OVER_WITHIN_S = 20.0
_ORDERS = 4


class NotPromotable(Conflict):
    """Raised when a replica may not take over now; nothing was changed."""

    code = "replica_not_ready"


class HandoverFailed(Conflict):
    """Raised when the replica did not take over, and this node is the primary again."""

    code = "promotion_failed"


class NoPrimary(Unavailable):
    """Raised when the replica did not take over and this node cannot be elected again; the message says what to do."""

    code = "no_primary"
    transient = False


def replica_promote(*, name: str, force: bool = False, actor: str) -> Promotion:
    """Make a replica the primary of the shard in this node's place; return the new term.

    `force` goes on where too few members can be reached to vote; the replica must be at the head all the same.

    Raise ReplicaNotFound, NotPromotable, HandoverFailed, NoPrimary, and StorageError and the like.
    """
    check_owner()
    replica = replica_of(name)
    copies = list(ReplicaCopy.objects.filter(replica=replica))
    heads = {head.uid: head for head in ShardHead.objects.filter(is_primary=True)}
    if set(heads) - {copy.shard for copy in copies}:
        raise NotPromotable(f"replica {name} has no copy of every shard of this node", field="replica_id")
    held = [(copy, heads[copy.shard]) for copy in copies if copy.shard in heads]
    if not held:
        raise NotPromotable(f"replica {name} has no copy of a shard of this node", field="replica_id")
    return _hand_over(replica, held, force, actor)


def hand_over_to(node: str, *, cluster: str, actor: str) -> Promotion:
    """Hand over to the replica that is `node`, which asks for it itself. Raise as `replica_promote` does."""
    replica = Replica.objects.filter(node=node).first()
    if replica is None or cluster != check_owner().cluster:
        raise NotPromotable(f"node {node[:8]} is no replica of this node")
    return replica_promote(name=replica.name, actor=actor)


def _hand_over(replica: Replica, held: Sequence[tuple[ReplicaCopy, ShardHead]], force: bool, actor: str) -> Promotion:
    rows = [row for _, row in held]
    with ExitStack() as leases:
        for row in rows:
            lease = promotion_lease(row.uid)
            if lease is None:
                raise NotPromotable(f"a promotion of shard {row.label} is under way already")
            leases.enter_context(lease)
        for copy, row in held:
            _check_ready(replica, copy)
            if not force:
                _check_votes(row)
        parts = [_Part(row, Sender(Target(replica.name, replica.url, row.uid, row.pk))) for row in rows]
        try:
            for part in parts:
                _bring_to_head(part.sender, within_s=CATCH_UP_WITHIN_S)
                # It must act on the present placement, or its order would be void.
                placement_push_now(url=replica.url, shard=part.row.uid)
        except MLVectorDBError as error:
            raise NotPromotable(f"replica {replica.name} could not be brought to the head: {error.message}") from error
        orders = [_promised(replica, part, actor) for part in parts]
        try:
            answer = _order(replica, parts, orders, force, actor)
        except MLVectorDBError as error:
            return _after_failure(replica, rows, error, force)
        except Exception:
            logger.exception("handover_failed shard=%s to=%s", rows[0].label, replica.name)
            _after_failure(replica, rows, Conflict("internal error, see the log"), force)
            raise
        for row in rows:
            _obey(replica, row)
    logger.warning("handed_over shards=%d to=%s term=%d", len(rows), replica.name, answer["term"])
    return Promotion(rows[0].label, answer["term"], answer["seq"], answer["epoch"])


class _Part(NamedTuple):
    """One shard that is handed over, and how the replica is sent its log."""

    row: ShardHead
    sender: Sender


def _promised(replica: Replica, part: _Part, actor: str) -> TakeOver:
    """Promise the next term of a shard to the replica: from here on this node commits nothing more in it."""
    row = part.row
    head = _read(row.pk)
    if not head.takes_writes:
        raise NotPromotable("this node has promised a newer term and takes no writes itself", field="replica_id")
    term = next_term((head.term, head.promised_term), drawn=False)
    with transaction.atomic():
        event_write(actor=actor, action="handover", subject=replica.name, after={"term": term, "shard": row.label})
    promised = terms.term_promise(row.pk, term, candidate=replica.node)
    return TakeOver(row.uid, term, Position(promised.term, promised.last_seq))


def _check_ready(replica: Replica, copy: ReplicaCopy) -> None:
    def refuse(reason: str) -> NotPromotable:
        return NotPromotable(f"replica {replica.name} {reason}", field="replica_id", detail={"state": copy.state})

    if replica.paused:
        raise refuse("is paused: resume it first")
    if not CopyState(copy.state).takes_slices:
        raise refuse(f"does not follow this node's log (state {CopyState(copy.state).label})")
    if copy.membership != Membership.MEMBER:
        raise refuse("is not a member (yet), or is about to leave")
    if not replica.node or not probe_now([replica])[replica.name]:
        replica.refresh_from_db()
        raise refuse(f"does not answer as it should: {replica.last_error or 'it was never reached'}")


def _check_votes(row: ShardHead) -> None:
    """Raise NotPromotable when too few members answer: whoever stands then, replica or this node, would not win."""
    document = registry_document(row.uid)
    members = members_of(document)
    answers = probe_now(list(Replica.objects.filter(copies__shard=row.uid)))
    voters = {PRIMARY, *(name for name, answered in answers.items() if answered)}
    if not quorum.is_elected(voters, members):
        away = sorted(set(members) - voters)
        raise NotPromotable(
            f"{quorum.votes_needed(members)} members have to vote, and {', '.join(away)} cannot be reached",
            detail={"needed": quorum.votes_needed(members), "away": away},
        )


def _bring_to_head(sender: Sender, *, within_s: float) -> None:
    """Send until the copy has the head; raise Unavailable when it is not there in time, and what sending raises."""
    deadline = time.monotonic() + within_s
    while True:
        step = sender.step(timeout_s=settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)
        if step is Step.UP_TO_DATE:
            return
        if step is Step.FULL_SYNC:
            raise Unavailable("it needs a full sync first")
        if time.monotonic() > deadline:
            raise Unavailable(f"it did not catch up within {within_s:g} s; try again when there are fewer writes")


def _order(
    replica: Replica, parts: Sequence[_Part], orders: Sequence[TakeOver], force: bool, actor: str
) -> dict[str, int]:
    """Send the rest of every shard and have the replica take over all of them; return its answer."""
    for part in parts:
        _bring_to_head(part.sender, within_s=REST_WITHIN_S)
    for _ in range(_ORDERS):
        epoch = topology().epoch
        try:
            answer = _ordered(replica, orders, epoch, force, actor)
            break
        except PeerRejected as refusal:
            known = refusal.peer_detail.get("epoch")
            if refusal.peer_code != Conflict.code or type(known) is not int or known == epoch:
                raise
            # The epoch was raised since it was told last: it acts on the present placement, or not at all.
            for part in parts:
                placement_push_now(url=replica.url, shard=part.row.uid)
    else:
        raise Unavailable("the placement changes faster than it can be told")
    return {"term": int(answer["term"]), "seq": int(answer["seq"]), "epoch": int(answer["epoch"])}


def _ordered(replica: Replica, orders: Sequence[TakeOver], epoch: int, force: bool, actor: str) -> dict[str, Any]:
    first, *others = orders
    return peer_client().json(
        replica.url,
        "POST",
        shard_path(first.shard, "take-over"),
        json={
            "cluster": topology().cluster,
            "epoch": epoch,
            "term": first.term,
            "at": list(first.at),
            "also": [{"shard": other.shard, "term": other.term, "at": list(other.at)} for other in others],
            "force": force,
            "actor": actor,
        },
        timeout_s=_TAKE_OVER_WITHIN_S,
        even_if_silent=True,
    )


def _after_failure(replica: Replica, rows: Sequence[ShardHead], error: MLVectorDBError, force: bool) -> Promotion:
    """Win the right to write back, or find that the replica has taken over; return that promotion, else raise."""
    row = rows[0]
    reason = error.peer_message if isinstance(error, PeerRejected) else error.message
    logger.warning("handover_failed shard=%s to=%s error=%s", row.label, replica.name, reason)
    try:
        again, *_ = [stand_again(one.uid, force=force, actor=TASK) for one in rows]
    except NewerPlacement as newer:
        return _taken_over(replica, newer.document)
    except MLVectorDBError as refusal:
        told = Placement.objects.filter(shard=row.uid).first()
        if told is not None:
            # The successor's placement was faster than its answer, which is lost.
            return _taken_over(replica, PlacementDocument.of(told.document))
        raise NoPrimary(
            f"{replica.name} did not take over ({reason}), and this node cannot be elected again "
            f"({refusal.message}): it takes no writes until enough members answer, which it tries by itself. If "
            "they are gone for good, run `manage.py promote --force` on this node",
            detail={"reason": reason, "election": refusal.message},
        ) from error
    raise HandoverFailed(
        f"{replica.name} did not take over: {reason}. This node is the primary again, in term {again.term}; "
        "nothing was lost",
        detail={"reason": reason, "term": again.term},
    ) from error


def _taken_over(replica: Replica, document: PlacementDocument) -> Promotion:
    """Return the promotion that a placement tells of; raise HandoverFailed when it is another node's."""
    if document.primary.node == replica.node:
        return Promotion(document.label, document.term, 0, document.epoch)
    raise HandoverFailed(
        f"another node was made the primary meanwhile: {document.primary.url}",
        detail={"primary_url": document.primary.url},
    ) from None


def _obey(replica: Replica, row: ShardHead) -> None:
    """Take the new primary's placement, if its push has not come yet; beat and its pushes will, should this fail."""
    if not Topology.objects.filter(is_owner=True).exists():
        return
    try:
        document = registry_document(row.uid)
        [copy] = [copy for copy in document.copies if copy.node == replica.node]
        told: PlacementDocument | None = placement_ask(copy, document)
        if told is not None and told.epoch > document.epoch:
            placement_adopt(told)
    except (PeerError, MLVectorDBError) as error:
        logger.warning("placement_not_taken_yet shard=%s error=%s", row.label, error)


def _read(shard_id: int) -> Head:
    head = log.read_head(shard_id)
    if head is None:
        raise Conflict("this node has no copy of the shard")
    return head
