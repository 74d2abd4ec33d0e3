"""The transactions in which a node changes sides: it becomes the primary and keeps the registry, or it is one no more.

Both move the head of the log and the registry in one commit, so that there is no moment in which a node takes writes of
a term that its registry knows nothing of, or keeps a registry whose primary is another.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from cluster.models import Assignment, Move, Placement, Replica, ReplicaCopy, Shard, Topology
from cluster.node_urls import own_url
from cluster.replication.election import Elected
from cluster.replication.placements import REPLICA, NodeAddress, PlacedCopy, PlacementDocument, summary
from cluster.replication.quorum import PRIMARY
from cluster.services.candidates import WrongCluster
from cluster.services.changes import Change, NotOwner, assignment_told, event_write, locked_topology, shards_told
from cluster.services.succession import succession_begin, succession_end
from cluster.services.taking import StaleEpoch, placement_write
from cluster.sharding.assignment import AssignmentDocument
from cluster.states import CopyState, Membership, MovePhase
from mlvdb_site.markers import topology_changed
from vectors.models import ShardHead
from vectors.store import log, terms
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults
from vectors.store.log import Position

logger = logging.getLogger(__name__)


class PlacementChanged(Exception):
    """Raised when the placement under which an election was held is not the present one any more: hold it again."""


def accede(
    elected: Elected,
    *,
    shard_id: int,
    actor: str,
    action: str = "promoted",
    also: Sequence[tuple[Elected, int]] = (),
) -> Position:
    """Become the primary of the term that was won, in one transaction; return where the term begins.

    The first entry of the term, the registry with all other copies (imported from the placement on a node that was a
    replica), a newer epoch, the event, and the placements for the others are committed together. `also` are elections
    that were won for other shards of the cluster, each with the key of the shard's copy: who takes the place of a
    coordinator takes all of its shards at once. Doing it again for the same terms changes nothing. Raise
    PlacementChanged, StaleTerm when a newer term was promised in the meantime, and ShardDamaged, StorageError and the
    like.
    """
    document = elected.document
    with log.append_transaction(shard_id) as open_log:
        topology = locked_topology()
        placement = Placement.objects.filter(shard=document.shard).first()
        epoch = topology.epoch if placement is None and topology is not None else placement.epoch if placement else 0
        if topology is None or epoch != document.epoch or topology.cluster != document.cluster:
            raise PlacementChanged
        position = terms.term_begin(open_log, elected.term)
        # The registry's part reads the head as it is from now on.
        open_log.close()
        won = [(elected, placement, position)]
        for other, other_id in also:
            told = Placement.objects.filter(shard=other.document.shard, epoch=other.document.epoch).first()
            if told is None:
                raise PlacementChanged
            with log.append_inside(other_id) as other_log:
                won.append((other, told, terms.term_begin(other_log, other.term)))
        change = _change(topology, actor, action, document.label)
        if placement is not None:
            change.before = summary(document.to_document())
            _own_registry(topology)
            if document.own is not None:
                # The command may run while the server does not: the members know where it will be.
                change.address = NodeAddress(settings.MLVDB_NODE_ID, document.own.url)
            newest = max(won, key=lambda one: one[0].document.epoch)[0].document
            epoch = change.epoch_raise(at_least=max(topology.epoch, newest.epoch) + 1)
            for one, told, began in won:
                _import(one.document, one, epoch=epoch, head_seq=began.seq)
                if told is not None:
                    told.delete()
            _assignment_keep(document.assignment)
            succession_begin(topology, newest.sharding)
        change.after = _outcome(elected, position)
        if also:
            change.after["also"] = {one.document.label: _outcome(one, began) for one, _, began in won[1:]}
        change.alarm = not all(one.count.is_certain for one, _, _ in won)
        _finish(change)
    logger.warning(
        "acceded shard=%s term=%d seq=%d epoch=%d votes=%d needed=%d",
        document.label,
        position.term,
        position.seq,
        change.topology.epoch,
        elected.count.votes,
        elected.count.needed,
    )
    return position


def secede(document: PlacementDocument, *, shard_id: int, term: int, actor: str) -> Position:
    """Make a detached copy the primary of a cluster of its own, in one transaction; return where its term begins.

    Raise PlacementChanged, StaleTerm, ShardDamaged, and StorageError and the like.
    """
    with log.append_transaction(shard_id) as open_log:
        topology = locked_topology()
        placement = Placement.objects.filter(shard=document.shard, epoch=document.epoch).first()
        if placement is None or topology is None:
            raise PlacementChanged
        position = terms.term_begin(open_log, term)
        open_log.close()
        change = _change(topology, actor, "seceded", document.label)
        change.before = summary(document.to_document())
        _own_registry(topology)
        topology.cluster, topology.epoch = secrets.token_hex(16), 0
        topology.save(update_fields=["cluster", "epoch"])
        change.epoch_raise()
        placement.delete()
        change.after = {"cluster": topology.cluster, "term": position.term, "seq": position.seq}
        change.alarm = True
        _finish(change)
    logger.warning("seceded shard=%s term=%d cluster=%s", document.label, position.term, topology.cluster[:8])
    return position


def demote(placement: PlacementDocument) -> bool:
    """Become a replica, in one transaction: another node has been made the primary, and this is its placement.

    Return whether this was done; False on a node that does not keep the registry any more: nothing was stored then.

    The copy takes no writes any more and the registry here is over: its rows are removed, and kept in the event. What
    the log has and the new primary's has not is set aside later, when that primary sends. Doing it again changes
    nothing. Raise StaleTerm when this node is the primary of a later term, and StaleEpoch when the placement is not
    newer than this registry: then its sender has to outrun it.
    """
    head = ShardHead.objects.filter(uid=placement.shard).first()
    if head is None:
        raise WrongCluster(f"this node has no copy of the shard {placement.label}")
    if placement.term > head.term and not _is_newer(placement, Topology.objects.first()):
        # Whatever the epochs say: a primary of a newer term exists, and this one has to stop.
        terms.term_heard(head.pk, placement.term)
    with log.append_transaction(head.pk) as open_log:
        topology = locked_topology()
        if topology is None or not topology.is_owner:
            return False
        terms.release(open_log, placement.term)
        if not _is_newer(placement, topology):
            raise StaleEpoch(
                f"this node's registry is of epoch {topology.epoch}, not older than {placement.epoch}",
                detail={"epoch": topology.epoch, "term": head.term},
            )
        open_log.close()
        before: dict[str, Any] = {
            "term": head.term,
            "replicas": {row.name: row.url for row in Replica.objects.all()},
        }
        Move.objects.filter(ended_at=None).update(
            phase=MovePhase.CANCELLED, error="another node was made the primary", ended_at=timezone.now()
        )
        Replica.objects.all().delete()
        _let_go_of_others(head, placement)
        if topology.sharding_enabled:
            before["shards"] = {row.label: row.url for row in Shard.objects.order_by("label")}
            succession_end(topology)
        # The new primary is the shard of that coordinator now.
        Assignment.objects.filter(shard=placement.shard).delete()
        placement_write(placement, actor=f"node {placement.owner.node}")
        event_write(
            actor=f"node {placement.owner.node}",
            action="demoted",
            subject=placement.label,
            before=before,
            after=summary(placement.to_document()),
            epoch=placement.epoch,
        )
    logger.warning(
        "demoted shard=%s term=%d primary=%s epoch=%d",
        placement.label,
        placement.term,
        placement.primary.url,
        placement.epoch,
    )
    return True


def _let_go_of_others(head: ShardHead, placement: PlacementDocument) -> None:
    """Take no writes in any other shard of the cluster either, inside the transaction: its placement is on its way."""
    told = set() if placement.sharding is None else {shard.uid for shard in placement.sharding.shards}
    for other in ShardHead.objects.filter(is_primary=True, uid__in=told).exclude(pk=head.pk):
        with log.append_inside(other.pk) as open_log:
            terms.release(open_log, open_log.head.term)


def placement_adopt(placement: PlacementDocument) -> None:
    """Take a newer placement that a member told a candidate; unlike a push it may be of a term that is over here."""
    topology = Topology.objects.first()
    if topology is not None and topology.is_owner and demote(placement):
        return
    with storage_faults(), writers_in_line(), transaction.atomic(durable=True):
        placement_write(placement, actor="candidate")


def registry_document(shard_uid: str) -> PlacementDocument:
    """Return the placement of a shard as the owner of the registry would be told it: it is the copy PRIMARY itself.

    Raise NotOwner on a node that does not keep the registry.
    """
    topology = Topology.objects.filter(is_owner=True).first()
    head = ShardHead.objects.filter(uid=shard_uid, is_primary=True).first()
    if topology is None or head is None:
        raise NotOwner("this node does not keep the registry of the shard")
    address = NodeAddress(settings.MLVDB_NODE_ID, own_url())
    rows = ReplicaCopy.objects.filter(shard=shard_uid).select_related("replica").order_by("replica__name")
    copies = [
        PlacedCopy(node.name, node.node, node.url, Membership(row.membership), CopyState(row.state))
        for row in rows
        for node in (row.replica,)
    ]
    return PlacementDocument(
        cluster=topology.cluster,
        epoch=topology.epoch,
        shard=head.uid,
        label=head.label,
        term=head.term,
        role=REPLICA,
        name=PRIMARY,
        node=address.node,
        owner=address,
        primary=address,
        copies=(PlacedCopy(PRIMARY, *address, Membership.MEMBER, CopyState.FOLLOWING), *copies),
        sharding=shards_told(topology) if Shard.objects.filter(uid=head.uid).exists() else None,
        assignment=assignment_told(head.uid),
    )


def name_of_former_primary(node: str) -> str:
    """Return the name under which a node that was the primary stands among the replicas of the next one."""
    return f"node_{node[:8]}"


def _is_newer(placement: PlacementDocument, topology: Topology | None) -> bool:
    return topology is None or placement.epoch > topology.epoch


def _change(topology: Topology, actor: str, action: str, label: str) -> Change:
    address = NodeAddress(settings.MLVDB_NODE_ID, own_url())
    return Change(topology, actor[:150], action, label[:160], address)


def _own_registry(topology: Topology) -> None:
    topology.is_owner = topology.replication_enabled = True
    topology.save(update_fields=["is_owner", "replication_enabled"])


def _import(document: PlacementDocument, elected: Elected, *, epoch: int, head_seq: int) -> None:
    """Make rows of all other copies. They are NEW: none is read from until it has been sent to from here."""
    for copy in document.copies:
        if copy.name == document.name:
            continue
        name = name_of_former_primary(copy.node) if copy.name == PRIMARY else copy.name
        replica, _ = Replica.objects.get_or_create(url=copy.url, defaults={"name": name, "node": copy.node})
        state = CopyState.QUARANTINED if copy.state is CopyState.QUARANTINED else CopyState.NEW
        under_way = copy.membership in (Membership.JOINING, Membership.LEAVING)
        answered = elected.votes.get(copy.name, Position(0, 0))
        ReplicaCopy.objects.update_or_create(
            replica=replica,
            shard=document.shard,
            defaults={
                "state": state,
                "membership": copy.membership,
                "membership_epoch": epoch if under_way else 0,
                "membership_seq": head_seq if under_way else 0,
                "term": answered.term,
                "seq": answered.seq,
            },
        )


def _assignment_keep(told: AssignmentDocument | None) -> None:
    """Be the shard of the coordinator whose the former primary was; it will look for its shard, and find it here."""
    if told is None:
        return
    Assignment.objects.update_or_create(shard=told.shard, defaults=told.to_fields())


def _outcome(elected: Elected, position: Position) -> dict[str, Any]:
    counted = elected.count
    outcome: dict[str, Any] = {
        "term": position.term,
        "seq": position.seq,
        "votes": {name: list(vote) for name, vote in elected.votes.items()},
        "needed": counted.needed,
    }
    if elected.refusals:
        outcome["no_vote"] = dict(elected.refusals)
    if not counted.is_certain:
        outcome["may_be_lost"] = loss_of(elected)
    return outcome


def loss_of(elected: Elected) -> str:
    """Return in a sentence what a promotion by force may have lost; empty when nothing can be."""
    counted = elected.count
    if counted.is_certain:
        return ""
    own = elected.votes[elected.document.name]
    text = (
        f"only {counted.votes} of {counted.needed} votes were given: writes after term {own.term}, seq {own.seq} that "
        "a quorum had acknowledged may be missing here"
    )
    if counted.ahead is not None:
        name, (term, seq) = counted.ahead
        text = f"{name} has entries up to term {term}, seq {seq}, this copy up to seq {own.seq}"
    return f"{text}; what the other copies have beyond that is set aside in files on their nodes when they come back"


def _finish(change: Change) -> None:
    change.epoch_raise()
    change.write_pushes()
    event_write(
        actor=change.actor,
        action=change.action,
        subject=change.subject,
        before=change.before,
        after=change.after,
        epoch=change.topology.epoch,
        alarm=change.alarm,
    )
    topology_changed()
