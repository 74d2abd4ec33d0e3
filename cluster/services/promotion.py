"""Making this node the primary: asked of a replica by a person, or of a primary whose right to write was questioned.

A promotion is: look, before any term is touched, whether it is allowed; win an election
(`cluster.replication.election`); commit the change of sides (`cluster.services.accession`); have the others told. Each
step may be repeated, and whatever is cut short is completed by asking again or by beat: placements that were not taken
are pushed until they are, and a primary that has lost its right to write without a successor stands for election again
by itself.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings
from django.db.models import F

from cluster.models import Placement, Replica, Topology
from cluster.replication.election import (
    Elected,
    MoreCaughtUp,
    NewerPlacement,
    NotElected,
    PrimaryAlive,
    elect,
)
from cluster.replication.knocks import SHIP_TASK
from cluster.replication.placements import PlacementDocument
from cluster.replication.votes import next_term
from cluster.selectors import own_placements
from cluster.services.accession import PlacementChanged, accede, loss_of, placement_adopt, registry_document, secede
from cluster.services.changes import TASK, registry_change
from cluster.services.eligibility import check_fit, look
from cluster.services.placements import placements_push
from cluster.services.succession import check_has_all
from cluster.services.succession_checks import succession_go_on
from cluster.topology import topology
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError
from cluster.transport.messages import shard_path
from mlvdb_site.celery import publish
from vectors.errors import Conflict, MLVectorDBError
from vectors.models import ShardHead
from vectors.store import leases, log
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)

HEALTH_TASK = "cluster.tasks.health_replicas"

_TRIES = 5
_FENCED_S = 2.0
_HAND_OVER_WITHIN_S = 15.0

#: (shard, term it has promised) → when this process first saw that.
_fenced_since: dict[tuple[str, int], float] = {}


class NotAReplica(Conflict):
    """Raised when a node that obeys nobody is to be promoted."""

    code = "not_a_replica"


class Detached(Conflict):
    """Raised when a copy that was removed from its cluster is to be promoted without force."""

    code = "detached"


class Promotion(NamedTuple):
    """What a promotion has brought: `warning` says what may have been lost, empty where nothing can be."""

    shard: str
    term: int
    seq: int
    epoch: int
    warning: str = ""
    changed: bool = True


def promote(*, force: bool = False, actor: str) -> Promotion:
    """Make this node, a replica, the primary of its shard; return the new term.

    On the primary itself there is nothing to do, unless it has promised a newer term and takes no writes: then it
    stands for election again. With `force` a primary that is alive is asked to hand over first, and then fewer votes
    will do. Without it raise PrimaryAlive, MoreCaughtUp or NotElected; and Unfit, Detached, NotAReplica, StorageError
    and the like.
    """
    shards = _own_shards()
    if not shards:
        return _promote_primary(force=force, actor=actor)
    if any(_placement(uid).is_detached for uid in shards):
        promotions = [_promote_shards([uid], force=force, actor=actor) for uid in shards]
        return promotions[0]
    # All of a coordinator's shards, or none: half of a coordinator can neither write nor be had back.
    return _promote_shards(shards, force=force, actor=actor)


def shard_promote(shard_uid: str, *, actor: str) -> Promotion:
    """Make this node's copy of one shard the primary, without force, as the coordinator orders whose shard it is.

    Raise what `promote` raises.
    """
    return _promote_shards([shard_uid], force=False, actor=actor)


def stand_again(shard_uid: str, *, force: bool = False, actor: str) -> Promotion:
    """Have this primary, which has promised a newer term, win another one; return it.

    Finding a newer placement, it becomes what that says and raises NewerPlacement. Raise PrimaryAlive, NotElected and
    MoreCaughtUp when it cannot win: then another copy is the primary or has to be promoted, or this one by force.
    """
    for _ in range(_TRIES):
        document = registry_document(shard_uid)
        head = _head(shard_uid)
        if head.takes_writes:
            return _promotion(document, head, changed=False)
        try:
            # A term that is promised in vain would cost a successor its right to write.
            found = look(document, head, force=force)
            if found is not None:
                raise NewerPlacement(found)
            elected = elect(document, head, force=force)
            return _accede(elected, head, actor=actor, action="elected_again")
        except NewerPlacement as newer:
            if newer.document.primary.node == settings.MLVDB_NODE_ID:
                # Of this node itself, before its registry was taken back to an older state (a restored disk).
                with registry_change(actor=actor, action="epoch_outrun", subject=document.label) as change:
                    change.before = {"epoch": change.topology.epoch}
                    change.after = {"epoch": change.epoch_raise(at_least=newer.document.epoch + 1)}
                continue
            placement_adopt(newer.document)
            raise
        except PlacementChanged:
            continue
    raise Conflict("the placement changes faster than an election can be held; try again")


class TakeOver(NamedTuple):
    """One shard that a primary hands over: the term that it has promised, and where its log ends."""

    shard: str
    term: int
    at: Position


def take_over(
    orders: Sequence[TakeOver], *, cluster: str, epoch: int, sender: str, force: bool, actor: str
) -> dict[str, int]:
    """Become the primary because the present one hands over: it takes no writes any more and has given its vote.

    All shards of the orders are taken over, or none. `at` is where the log ends: this copy must be exactly there.
    Asked again after it was done, it answers the same. Raise Conflict where it is not, or was told of another
    placement, and what an election raises.
    """
    head = _head(orders[0].shard)
    if head.is_primary and head.takes_writes and head.term >= orders[0].term:
        return {"term": head.term, "seq": head.last_seq, "epoch": topology().epoch}
    asked = [(order, _placement(order.shard), _head(order.shard)) for order in orders]
    for order, document, head in asked:
        _check_order(order, document, head, cluster=cluster, epoch=epoch, sender=sender)
    check_has_all(asked[0][1].sharding)
    try:
        won = [elect(document, head, force=force, term=order.term) for order, document, head in asked]
        promotion = _accede(
            won[0],
            asked[0][2],
            actor=f"{actor} at node {sender}",
            action="took_over",
            also=[(one, head.shard_id) for one, (_, _, head) in zip(won[1:], asked[1:], strict=True)],
        )
    except (NewerPlacement, PlacementChanged):
        raise Conflict("the placement has changed during the election; hand over again") from None
    return {"term": promotion.term, "seq": promotion.seq, "epoch": promotion.epoch}


def _check_order(
    order: TakeOver, document: PlacementDocument, head: Head, *, cluster: str, epoch: int, sender: str
) -> None:
    if document.cluster != cluster or document.epoch != epoch:
        raise Conflict(
            f"the order is of epoch {epoch}, this node's placement of {document.epoch}",
            detail={"epoch": document.epoch},
        )
    if sender != document.primary.node:
        raise Conflict(f"node {sender[:8]} is not the primary that could hand over")
    check_fit(document, head)
    if (head.term, head.last_seq) != order.at:
        raise Conflict(
            f"this copy is at term {head.term}, seq {head.last_seq}, not where the primary ends "
            f"({order.at.term}, {order.at.seq})",
            detail={"term": head.term, "seq": head.last_seq},
        )


def fenced_shards() -> list[str]:
    """Return the shards whose primary is this node but has promised a newer term, for some seconds already. By beat.

    A candidate that is about to win is left the time to say so.
    """
    fenced = ShardHead.objects.filter(is_primary=True).exclude(promised_term=F("term"))
    now, seen = time.monotonic(), dict(_fenced_since)
    _fenced_since.clear()
    for uid, promised in fenced.values_list("uid", "promised_term"):
        _fenced_since[uid, promised] = seen.get((uid, promised), now)
    return [uid for (uid, _), since in _fenced_since.items() if now - since >= _FENCED_S]


def stand_if_fenced(shard_uid: str) -> None:
    """Have a fenced primary stand for election again, unless a handover is under way; what forbids it is logged."""
    lease = promotion_lease(shard_uid)
    if lease is None:
        return
    with lease:
        try:
            stand_again(shard_uid, actor=TASK)
        except NewerPlacement as newer:
            logger.info("successor_found shard=%s primary=%s", shard_uid[:8], newer.document.primary.url)
        except MLVectorDBError as error:
            logger.warning("not_elected_again shard=%s error=%s", shard_uid[:8], error.message)


def promotion_lease(shard_uid: str) -> leases.Lease | None:
    """Take the lease under which this node's right to write is given away or won back; None while another has it."""
    return leases.take_lease(f"promote:{shard_uid}", f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}")


def _promote_primary(*, force: bool, actor: str) -> Promotion:
    head = ShardHead.objects.filter(is_primary=True).first()
    if head is None or not Topology.objects.filter(is_owner=True, replication_enabled=True).exists():
        raise NotAReplica("this node is not a replica: there is nothing to promote it from")
    try:
        return stand_again(head.uid, force=force, actor=actor)
    except NewerPlacement as newer:
        raise PrimaryAlive(
            f"another node was made the primary: {newer.document.primary.url}",
            detail={"primary_url": newer.document.primary.url},
        ) from None


def _own_shards() -> list[str]:
    """Return the shards of which this node was told by its own cluster; others' are not its to take."""
    return list(own_placements().values_list("shard", flat=True))


def _promote_shards(uids: Sequence[str], *, force: bool, actor: str) -> Promotion:
    """Make this node the primary of some shards of one cluster, of all or of none; return that of the first."""
    gently = force
    for _ in range(_TRIES):
        if not Placement.objects.filter(shard=uids[0]).exists():
            # Another request was faster, or this one is the second half of one that a crash cut short.
            return _promotion(registry_document(uids[0]), _head(uids[0]), changed=False)
        documents, heads = [_placement(uid) for uid in uids], [_head(uid) for uid in uids]
        document = documents[0]
        for told, head in zip(documents, heads, strict=True):
            check_fit(told, head)
        check_has_all(max(documents, key=lambda told: told.epoch).sharding)
        newer = None
        try:
            if document.is_detached:
                return _secede(document, heads[0], force=force, actor=actor)
            for told, head in zip(documents, heads, strict=True):
                newer = newer or look(told, head, force=force and not gently)
            if newer is None:
                won = [elect(told, head, force=force) for told, head in zip(documents, heads, strict=True)]
                return _accede(
                    won[0], heads[0], actor=actor, also=list(zip(won[1:], [h.shard_id for h in heads[1:]], strict=True))
                )
        except (PrimaryAlive, MoreCaughtUp, NotElected) as refusal:
            if not gently:
                raise
            # Force is for what cannot be had otherwise: a primary that answers may hand over, and nothing is lost.
            gently = False
            if isinstance(refusal, PrimaryAlive) and _ask_to_hand_over(document, actor=actor):
                return _promotion(registry_document(uids[0]), _head(uids[0]), changed=True)
            continue
        except NewerPlacement as found:
            newer = found.document
        except PlacementChanged:
            continue
        logger.info("newer_placement shard=%s epoch=%d primary=%s", newer.label, newer.epoch, newer.primary.url)
        placement_adopt(newer)
    raise Conflict("the placement changes faster than an election can be held; try again")


def _ask_to_hand_over(document: PlacementDocument, *, actor: str) -> bool:
    """Have the primary that is alive hand over to this node; return whether it did."""
    try:
        peer_client().json(
            document.primary.url,
            "POST",
            shard_path(document.shard, "hand-over"),
            json={"cluster": document.cluster, "actor": actor[:100]},
            timeout_s=_HAND_OVER_WITHIN_S,
        )
    except PeerError as error:
        logger.warning("not_handed_over primary=%s error=%s", document.primary.url, error.message)
    return not Placement.objects.filter(shard=document.shard).exists()


def _accede(
    elected: Elected,
    head: Head,
    *,
    actor: str,
    action: str = "promoted",
    also: Sequence[tuple[Elected, int]] = (),
) -> Promotion:
    position = accede(elected, shard_id=head.shard_id, actor=actor, action=action, also=also)
    _tell(elected.document.shard)
    return Promotion(
        shard=elected.document.label,
        term=position.term,
        seq=position.seq,
        epoch=topology().epoch,
        warning="; ".join(filter(None, [loss_of(elected), *(loss_of(other) for other, _ in also)])),
    )


def _secede(document: PlacementDocument, head: Head, *, force: bool, actor: str) -> Promotion:
    if not force:
        raise Detached(
            "this copy was removed from its cluster: by force it becomes the primary of a cluster of its own",
            detail={"primary_url": document.primary.url},
        )
    # Drawn, so that this term is never one of the cluster that the copy came from.
    term = next_term((head.promised_term, head.term, document.term), drawn=True)
    position = secede(document, shard_id=head.shard_id, term=term, actor=actor)
    return Promotion(
        shard=document.label,
        term=position.term,
        seq=position.seq,
        epoch=topology().epoch,
        warning="this node is a cluster of its own now; what the other one has written since is not here",
    )


def _tell(shard_uid: str) -> None:
    """Have the others told and sent to. What cannot be done now is done by beat."""
    try:
        placements_push()
    except MLVectorDBError as error:
        logger.warning("placements_not_pushed shard=%s error=%s", shard_uid[:8], error.message)
    try:
        succession_go_on()
    except MLVectorDBError as error:
        logger.warning("succession_not_gone_on shard=%s error=%s", shard_uid[:8], error.message)
    publish(HEALTH_TASK)
    for replica_id in Replica.objects.values_list("pk", flat=True):
        publish(SHIP_TASK, replica_id)


def _promotion(document: PlacementDocument, head: Head, *, changed: bool) -> Promotion:
    return Promotion(document.label, head.term, head.last_seq, document.epoch, changed=changed)


def _placement(shard_uid: str) -> PlacementDocument:
    row = Placement.objects.filter(shard=shard_uid).first()
    if row is None:
        raise NotAReplica("this node obeys nobody")
    return PlacementDocument.of(row.document)


def _head(shard_uid: str) -> Head:
    row = ShardHead.objects.filter(uid=shard_uid).values_list("pk", flat=True).first()
    head = None if row is None else log.read_head(row)
    if head is None:
        raise NotAReplica("this node has no copy of the shard yet")
    return head
