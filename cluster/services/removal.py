"""Removing a replica: at once when it does not count, else through the change of members that keeps every write.

Steps for a member:
1. a majority of those who stay must have the log up to the head; that is waited for a moment, then refused;
2. the copy is LEAVING in all placements: both sets of members must be satisfied;
3. when enough nodes know (`cluster.services.membership`), the rows go, and the node is told that it is detached.
A crash after 2 leaves a removal that beat completes. Forced, the rows go at once, and the event says what that risks.
"""

from __future__ import annotations

import logging
import time

from django.conf import settings

from cluster.models import Replica, ReplicaCopy
from cluster.services.changes import Change, Unchanged, registry_change
from cluster.services.membership import (
    locked_head,
    majority_holds,
    membership_set,
    membership_settle,
    rows_of,
    under_way,
)
from cluster.services.placements import placements_push
from cluster.services.registry import check_owner, replica_of
from cluster.states import Membership
from vectors.errors import Conflict
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1


class MembersBehind(Conflict):
    """Raised when too few of the members that stay have the whole log; `detail`: shard, seq, members."""

    code = "members_behind"


class MembershipChanging(Conflict):
    """Raised while another copy of the shard joins or leaves."""

    code = "membership_changing"


class NotConfirmed(Conflict):
    """Raised when too few nodes have confirmed that they know of the removal; it was taken back."""

    code = "removal_not_confirmed"


def replica_remove(*, name: str, force: bool = False, actor: str) -> None:
    """Remove a replica; its node keeps its copy, detached and read-only.

    One of all shards of a coordinator is removed here first, then from the shards on other nodes: where one of these
    refuses, what is left is a replica of that shard, of the same name, which can be removed again.

    Raise ReplicaNotFound, MembersBehind, MembershipChanging and NotConfirmed; the last three not with `force`.
    """
    # Replicas of other shards are asked of their nodes, which know removals as well.
    from cluster.services.full_replicas import full_replica_remove

    check_owner()
    replica = replica_of(name)
    _remove_here(replica, force=force, actor=actor)
    if not replica.shard:
        full_replica_remove(replica.url, force=force, actor=actor)


def _remove_here(replica: Replica, *, force: bool, actor: str) -> None:
    name = replica.name
    if force:
        _remove(replica, actor, risk=removal_risk(replica))
        return
    deadline = time.monotonic() + settings.MLVDB_PEER_TIMEOUT_S
    leaving = [copy for copy in replica.copies.all() if copy.membership != Membership.NONE]
    if not leaving:
        _remove(replica, actor)
        return
    _wait_for_majority(leaving, deadline)
    _begin_leaving(replica, actor)
    while True:
        for copy in leaving:
            membership_settle(copy.shard)
        if not ReplicaCopy.objects.filter(replica_id=replica.pk, membership=Membership.LEAVING).exists():
            break
        if time.monotonic() > deadline:
            _stay(replica, actor)
            raise NotConfirmed(
                f"too few nodes have confirmed that {name} is no member any more; it stays one. force=true removes it "
                "all the same: a node that does not know of it might then be promoted without the newest writes",
                field="replica_id",
            )
        time.sleep(_LOOK_EVERY_S)
        placements_push()
    if Replica.objects.filter(pk=replica.pk).exists():
        # Copies that do not count, beside those that did.
        _remove(replica, actor)
    logger.info("replica_removed replica=%s", name)


def _remove(replica: Replica, actor: str, *, risk: str = "") -> None:
    with registry_change(actor=actor, action="replica_removed", subject=replica.name) as change:
        rows = list(ReplicaCopy.objects.filter(replica=replica).select_related("replica"))
        if not Replica.objects.filter(pk=replica.pk).exists():
            raise Unchanged
        change.before = {
            "url": replica.url,
            "node": replica.node,
            "copies": {row.shard: f"{row.state}, {row.membership}, seq {row.seq}" for row in rows},
        }
        change.after = {"forced": True, "risk": risk} if risk else None
        change.alarm = bool(risk)
        change.epoch_raise()
        for row in rows:
            change.drop(row)
        Replica.objects.filter(pk=replica.pk).delete()


def _wait_for_majority(leaving: list[ReplicaCopy], deadline: float) -> None:
    heads = {copy.shard: ShardHead.objects.get(uid=copy.shard) for copy in leaving}
    while True:
        behind = [copy for copy in leaving if not _may_leave(copy, heads[copy.shard])]
        if not behind:
            return
        if time.monotonic() > deadline:
            head = heads[behind[0].shard]
            rows = rows_of(head.uid)
            raise MembersBehind(
                f"too few of the members that stay have the log of {head.label} up to {head.last_seq}; force=true"
                " removes the replica all the same, and what only it has is lost if the primary is lost then",
                field="replica_id",
                detail={
                    "shard": head.label,
                    "seq": head.last_seq,
                    "members": {row.replica.name: row.seq for row in rows if row.membership == Membership.MEMBER},
                },
            )
        time.sleep(_LOOK_EVERY_S)


def _may_leave(copy: ReplicaCopy, head: ShardHead) -> bool:
    rows = rows_of(copy.shard)
    for row in rows:
        if row.pk == copy.pk:
            row.membership = Membership.LEAVING
    return majority_holds(rows, head, seq=head.last_seq)


def _begin_leaving(replica: Replica, actor: str) -> None:
    with registry_change(actor=actor, action="member_leaving", subject=replica.name) as change:
        rows = list(ReplicaCopy.objects.filter(replica=replica).select_related("replica"))
        begun = [_leave(change, row) for row in rows if row.membership in (Membership.MEMBER, Membership.JOINING)]
        if not begun:
            raise Unchanged


def _leave(change: Change, row: ReplicaCopy) -> ReplicaCopy:
    head = locked_head(row.shard)
    other = under_way([other for other in rows_of(row.shard) if other.pk != row.pk])
    if other is not None:
        raise MembershipChanging(
            f"{other.replica.name} is {other.membership}; one change of the members at a time",
            field="replica_id",
            detail={"replica_id": other.replica.name, "membership": other.membership},
        )
    if head is None:
        raise Unchanged
    membership_set(change, row, Membership.LEAVING, head=head)
    return row


def _stay(replica: Replica, actor: str) -> None:
    """Take a removal back that could not be confirmed."""
    with registry_change(actor=actor, action="member_stays", subject=replica.name) as change:
        rows = ReplicaCopy.objects.filter(replica=replica, membership=Membership.LEAVING).select_related("replica")
        heads = [(row, locked_head(row.shard)) for row in rows]
        if not heads:
            raise Unchanged
        for row, head in heads:
            if head is not None:
                membership_set(change, row, Membership.MEMBER, head=head)


def removal_risk(replica: Replica) -> str:
    """Return in words what a forced removal may cost; empty when it costs nothing."""
    risks = []
    for copy in replica.copies.exclude(membership=Membership.NONE):
        head = ShardHead.objects.filter(uid=copy.shard).first()
        if head is None:
            continue
        if not _may_leave(copy, head):
            risks.append(
                f"too few of the members that stay have {head.label} up to {head.last_seq}: writes that"
                f" {replica.name} had acknowledged are lost if the primary is lost before they are copied"
            )
        risks.append(
            f"{replica.name} may not know that it was removed from {head.label}: promoted where it cannot be reached,"
            " it would go on without the writes made since"
        )
    return "; ".join(risks)
