"""Who counts in quorums and votes: joining, leaving, and when a change of the members may end.

A copy begins to join when it first reaches the head; one change at a time for a shard. While a change is under way both
sets of members must reach every level and every election (`cluster.replication.quorum`). It ends when two things hold:
1. a quorum of the members before it has acknowledged the placement with the change, so that the old set alone can elect
   nobody any more;
2. a quorum of the members after it holds the log up to where it ended when the change began, so that every write which
   the old set alone has acknowledged is on each quorum of the new one.
A member that leaves and cannot be reached is not waited for, or nobody could be removed that is gone for good: then as
many of those who stay must have acknowledged, or all of them where they are fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.db import connection

from cluster.models import PlacementPush, ReplicaCopy
from cluster.replication import quorum
from cluster.services.changes import TASK, Change, NotOwner, Unchanged, registry_change
from cluster.states import MEMBERSHIP_TRANSITIONS, CopyState, Membership, allowed
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

UNDER_WAY = (Membership.JOINING, Membership.LEAVING)


def membership_advance(copy: ReplicaCopy) -> None:
    """Let a copy that has just reached the head join, and end what may end; nothing to do is success.

    Called by the sender that saw it there, with the copy's position written.
    """
    if not _begin_joining(copy):
        membership_settle(copy.shard)


def membership_settle(shard_uid: str) -> bool:
    """End the change of membership of a shard that is under way, if it may end; return whether one did.

    The usual case, that there is none, costs one query: every acknowledgement asks.
    """
    if not ReplicaCopy.objects.filter(shard=shard_uid, membership__in=UNDER_WAY).exists():
        return False
    settled = False
    try:
        with registry_change(actor=TASK, action="membership_settled", subject=shard_uid) as change:
            if not settle(change, shard_uid):
                raise Unchanged
            settled = True
    except NotOwner:
        return False
    return settled


def membership_set(change: Change, row: ReplicaCopy, new: Membership, *, head: ShardHead) -> None:
    """Begin or end a change of membership, inside a change of the registry."""
    old = Membership(row.membership)
    assert allowed(MEMBERSHIP_TRANSITIONS, old, new), (old, new)
    row.membership = new
    row.membership_epoch, row.membership_seq = change.epoch_raise(), head.last_seq
    row.save(update_fields=["membership", "membership_epoch", "membership_seq"])
    change.before = {**(change.before or {}), row.replica.name: old.value}
    change.after = {**(change.after or {}), row.replica.name: new.value}
    logger.info("membership replica=%s shard=%s membership=%s before=%s", row.replica.name, row.shard[:8], new, old)


def settle(change: Change, shard_uid: str) -> bool:
    """End what is under way for a shard, inside a change of the registry; return whether it could be ended."""
    head = locked_head(shard_uid)
    rows = rows_of(shard_uid)
    row = under_way(rows)
    if head is None or row is None or not (is_told(rows, row) and majority_holds(rows, head, seq=row.membership_seq)):
        return False
    change.subject = row.replica.name
    if row.membership == Membership.JOINING:
        membership_set(change, row, Membership.MEMBER, head=head)
    else:
        change.before = {"membership": row.membership, "shard": shard_uid}
        change.epoch_raise()
        change.drop(row)
    return True


def is_told(rows: Sequence[ReplicaCopy], row: ReplicaCopy) -> bool:
    """Whether enough nodes know of the change that is under way for `row`, one of a shard's `rows`."""
    pushes = {push.url: push for push in PlacementPush.objects.filter(shard=row.shard)}
    told = {quorum.PRIMARY}
    for other in rows:
        push = pushes.get(other.replica.url)
        if push is not None and push.acknowledged_epoch >= row.membership_epoch:
            told.add(other.replica.name)
    before, after = quorum.member_sets(members_of(rows))
    if row.membership == Membership.LEAVING and _cannot_be_told(pushes.get(row.replica.url)):
        # Of an even number a quorum of those who stay leaves it enough votes among the others, so as many are asked
        # for as without it, if there are that many.
        return len(told & after) >= min(quorum.quorum_of(len(before)), len(after))
    return len(told & before) >= quorum.quorum_of(len(before))


def majority_holds(rows: Sequence[ReplicaCopy], head: ShardHead, *, seq: int) -> bool:
    """Whether a quorum of the members after the change under way has the primary's log up to `seq`."""
    decisive = quorum.member_sets(members_of(rows))[-1]
    holders = {row.replica.name for row in rows if row.term == head.term and row.seq >= seq}
    return len((holders | {quorum.PRIMARY}) & decisive) >= quorum.quorum_of(len(decisive))


def members_of(rows: Sequence[ReplicaCopy]) -> dict[str, Membership]:
    """Return the membership of every copy of a shard, the primary's included."""
    return {quorum.PRIMARY: Membership.MEMBER} | {row.replica.name: Membership(row.membership) for row in rows}


def rows_of(shard_uid: str) -> list[ReplicaCopy]:
    """Return the copies of a shard with their replicas."""
    return list(ReplicaCopy.objects.filter(shard=shard_uid).select_related("replica"))


def under_way(rows: Sequence[ReplicaCopy]) -> ReplicaCopy | None:
    """Return the copy that joins or leaves."""
    return next((row for row in rows if row.membership in UNDER_WAY), None)


def locked_head(shard_uid: str) -> ShardHead | None:
    """Return this node's head of a shard of which it is the primary, kept from growing until the transaction ends."""
    heads = ShardHead.objects.filter(uid=shard_uid, is_primary=True)
    return (heads.select_for_update() if connection.features.has_select_for_update else heads).first()


def _cannot_be_told(push: PlacementPush | None) -> bool:
    """Whether a node was tried and does not hear: it is down, cut off, or not that node any more.

    One that knows a newer placement or term hears very well.
    """
    return push is not None and bool(push.last_error) and not push.last_error.startswith("stale_")


def _begin_joining(copy: ReplicaCopy) -> bool:
    if copy.membership != Membership.NONE or not CopyState(copy.state).takes_slices:
        return False
    begun = False
    with registry_change(actor=TASK, action="member_joining", subject=f"replica {copy.replica_id}") as change:
        head = locked_head(copy.shard)
        rows = rows_of(copy.shard)
        row = next((row for row in rows if row.pk == copy.pk), None)
        if head is None or row is None or under_way(rows) is not None or not _may_join(row, head):
            raise Unchanged
        change.subject = row.replica.name
        membership_set(change, row, Membership.JOINING, head=head)
        settle(change, copy.shard)
        begun = True
    return begun


def _may_join(row: ReplicaCopy, head: ShardHead) -> bool:
    has_head = row.term == head.term or not head.last_seq
    return has_head and row.membership == Membership.NONE and CopyState(row.state).takes_slices
