"""The picture as the rows say it: the registry's own at its owner, what the placements tell at every other node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.models import Assignment, MoveStep, Placement, Replica, ReplicaCopy, Shard, ShardCopy, Topology
from cluster.replication.placements import REPLICA, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.sharding.assignment import AssignmentDocument
from cluster.sharding.table import SlotTable
from cluster.sharding.view import AssignmentView, ShardingView, ShardMember
from cluster.states import CLOSED_PHASES, CopyState, FailoverState, Membership, PeerHealth, ShardState
from cluster.topology.views import CopyView, PlacementView, ShardView, TopologyView
from vectors.engine.slots import SlotSet
from vectors.models import ShardHead


def placement_heard(shard_uid: str) -> tuple[int, int] | None:
    """Return (primary's seq when last heard, times it was heard) of a placement, read now; None when there is none.

    Raise the errors of `django.db`.
    """
    return Placement.objects.filter(shard=shard_uid).values_list("primary_seq", "heard").first()


def read_topology() -> TopologyView:
    """Read the topology from the database; everyone but tests takes it from `topology`."""
    heads = list(ShardHead.objects.values("pk", "uid", "label", "is_primary"))
    row = Topology.objects.first()
    if row is None:
        own = [ShardView(head["uid"], head["label"], head["pk"], head["is_primary"]) for head in heads]
        return TopologyView(shards={shard.uid: shard for shard in own})
    copies = _registered_copies() if row.is_owner else {}
    told = Placement.objects.all()
    placements = {placement.shard: placement for placement in told}
    shards = {}
    for head in heads:
        uid = head["uid"]
        placement = placements.pop(uid, None)
        if placement is not None:
            shards[uid] = _told(placement, shard_id=head["pk"])
        else:
            others = copies.get(uid, ())
            shards[uid] = ShardView(uid, head["label"], head["pk"], head["is_primary"], copies=others)
    for uid, placement in placements.items():
        shards[uid] = _told(placement, shard_id=None)
    sharding = _sharding(row, heads) if row.sharding_enabled else None
    placed_sharding = None if row.is_owner else _placed_sharding(row.cluster, list(told), heads)
    for routed in (sharding, placed_sharding):
        for member in () if routed is None else routed.members:
            if member.uid not in shards:
                shards[member.uid] = ShardView(
                    member.uid, member.label, None, False, primary_url=member.url, primary_node=member.node
                )
    assignment = _assignment(heads)
    return TopologyView(
        cluster=row.cluster,
        epoch=row.epoch,
        is_owner=row.is_owner,
        replication_enabled=row.replication_enabled,
        is_single=sharding is None
        and assignment is None
        and not any(shard.copies or shard.placement or not shard.is_local_primary for shard in shards.values()),
        shards=shards,
        sharding=sharding,
        placed_sharding=placed_sharding,
        assignment=assignment,
    )


def _sharding(row: Topology, heads: Sequence[Mapping[str, Any]]) -> ShardingView | None:
    """Return the view of the shards; None as long as no slot has an owner."""
    if row.slots is None:
        return None
    table = SlotTable.of_bytes(bytes(row.slots))
    shard_ids = {head["uid"]: head["pk"] for head in heads}
    lagging: dict[int, set[str]] = {}
    copied: set[int | str] = set(ReplicaCopy.objects.values_list("shard", flat=True))
    for number, name, in_sync in ShardCopy.objects.values_list("shard_id", "name", "in_sync"):
        copied.add(number)
        if not in_sync:
            lagging.setdefault(number, set()).add(name)
    members = tuple(
        ShardMember(
            number=shard.pk,
            label=shard.label,
            uid=shard.uid,
            slots=table.owned_by(shard.pk),
            state=ShardState(shard.state),
            weight=shard.weight,
            shard_id=None if shard.url else shard_ids.get(shard.uid),
            url=shard.url,
            node=shard.node,
            # One that has yet to say what it writes is not asked: it may own less, or more, than is known here.
            health=PeerHealth.DEAD if shard.recheck_due else PeerHealth(shard.health),
            has_foreign=shard.has_foreign,
            has_copies=shard.pk in copied or shard.uid in copied,
            failover=FailoverState(shard.failover),
            node_epoch=shard.node_epoch,
            lagging=frozenset(lagging.get(shard.pk, ())),
        )
        for shard in Shard.objects.order_by("label")
        if ShardState(shard.state).may_own
    )
    closing = MoveStep.objects.filter(phase__in=CLOSED_PHASES).values_list("slots", flat=True)
    closed = None
    for slots in closing:
        some = SlotSet(bytes(slots))
        closed = some if closed is None else closed | some
    return _view(row.strategy, row.epoch, members, table, closed)


def _placed_sharding(
    cluster: str, placements: Sequence[Placement], heads: Sequence[Mapping[str, Any]]
) -> ShardingView | None:
    """Return the shards that the coordinator's newest placement tells of; None where it is one, whose copy has all.

    A shard on another node is read here where this node has a readable copy of it, else at its node.
    """
    kept = [placement for placement in placements if (placement.role, placement.cluster) == (REPLICA, cluster)]
    if not kept:
        return None
    document = PlacementDocument.of(max(kept, key=lambda placement: placement.epoch).document)
    told = document.sharding
    if told is None or sum(shard.state.may_own for shard in told.shards) < 2:
        return None
    shard_ids = {head["uid"]: head["pk"] for head in heads}
    apart = {placement.shard for placement in placements if placement.cluster != cluster and _is_readable(placement)}
    here = {shard.uid for shard in told.shards if shard.uid in shard_ids and (not shard.url or shard.uid in apart)}
    members = tuple(
        ShardMember(
            number=shard.number,
            label=shard.label,
            uid=shard.uid,
            slots=told.table.owned_by(shard.number),
            state=shard.state,
            shard_id=shard_ids[shard.uid] if shard.uid in here else None,
            # The owner answers for those of its own shards that this node has no copy of.
            url="" if shard.uid in here else shard.url or document.owner.url,
            node=shard.node,
            has_foreign=shard.has_foreign,
            has_copies=True,
        )
        for shard in told.shards
        if shard.state.may_own
    )
    return _view(told.strategy, document.epoch, members, told.table, None)


def _is_readable(placement: Placement) -> bool:
    """Whether this node's copy has a whole state of its shard, as far as the shard's primary has said."""
    own = PlacementDocument.of(placement.document).own
    return placement.role == REPLICA and own is not None and own.state.is_readable


def _view(
    strategy: str, epoch: int, members: tuple[ShardMember, ...], table: SlotTable, closed: SlotSet | None
) -> ShardingView:
    places = np.zeros(1 << 16, dtype=np.uint16)
    for place, member in enumerate(members):
        places[member.number] = place
    return ShardingView(
        strategy=strategy,
        epoch=epoch,
        members=members,
        owners=places[table.owners],
        closed=closed,
        by_uid={member.uid: member for member in members},
        by_label={member.label: member for member in members},
    )


def _assignment(heads: Sequence[Mapping[str, Any]]) -> AssignmentView | None:
    found = Assignment.objects.first()
    # One whose copy is no primary (any more) says nothing: another node is this shard by now.
    if found is None or not any(head["uid"] == found.shard and head["is_primary"] for head in heads):
        return None
    return AssignmentView(
        uid=found.shard,
        label=found.label,
        cluster=found.cluster,
        epoch=found.epoch,
        coordinator_node=found.coordinator_node,
        coordinator_url=found.coordinator_url,
        slots=SlotSet(bytes(found.slots)),
    )


def _assignment_view(told: AssignmentDocument) -> AssignmentView:
    return AssignmentView(
        uid=told.shard,
        label=told.label,
        cluster=told.cluster,
        epoch=told.epoch,
        coordinator_node=told.coordinator_node,
        coordinator_url=told.coordinator_url,
        slots=told.slots,
    )


def _registered_copies() -> dict[str, tuple[CopyView, ...]]:
    found: dict[str, list[CopyView]] = {}
    replicas = {replica.pk: replica for replica in Replica.objects.all()}
    for copy in ReplicaCopy.objects.order_by("replica__name"):
        replica = replicas.get(copy.replica_id)
        if replica is None:
            continue
        found.setdefault(copy.shard, []).append(
            CopyView(
                name=replica.name,
                url=replica.url,
                node=replica.node,
                state=CopyState(copy.state),
                membership=Membership(copy.membership),
                health=PeerHealth(replica.health),
                term=copy.term,
                seq=copy.seq,
                paused=replica.paused,
                replica_id=replica.pk,
            )
        )
    return {uid: tuple(copies) for uid, copies in found.items()}


def _told(placement: Placement, *, shard_id: int | None) -> ShardView:
    """Return the view of a shard that this node was told of; it is never the primary of it."""
    document = PlacementDocument.of(placement.document)
    copies = tuple(
        CopyView(
            name=copy.name,
            url=copy.url,
            node=copy.node,
            state=copy.state,
            membership=copy.membership,
            is_self=copy.name == document.name,
        )
        for copy in document.copies
        if copy.name != PRIMARY
    )
    own = document.own
    return ShardView(
        uid=placement.shard,
        label=document.label,
        shard_id=shard_id,
        is_local_primary=False,
        primary_url=document.primary.url or None,
        primary_node=document.primary.node,
        copies=copies,
        placement=PlacementView(
            name=document.name,
            role=placement.role,
            epoch=placement.epoch,
            term=placement.term,
            primary_url=document.primary.url,
            primary_node=document.primary.node,
            owner_url=document.owner.url,
            owner_node=document.owner.node,
            state=CopyState.FOLLOWING if own is None else own.state,
            membership=Membership.NONE if own is None else own.membership,
            primary_seq=placement.primary_seq,
            heard=placement.heard,
            cluster=placement.cluster,
            assignment=None if document.assignment is None else _assignment_view(document.assignment),
        ),
    )
