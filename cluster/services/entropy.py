"""Anti-entropy: the contents of each copy are compared with the primary's, and a copy that differs is put right.

Preconditions: the copy follows. Steps:
1. agree on a position that both have; each end computes its digests at it, checking all checksums on the way;
2. equal: the verdict and its time are written down, and that is all;
3. the copy's own checksums fail: it is quarantined, neither read nor asked for votes, and refilled by a full sync, of
   which only the files that differ are sent;
4. the primary's own fail: nothing is done to the copy, which may be the better one, and a person is called;
5. all checksums hold and the contents differ all the same: nobody can tell by itself which side is right. The copy is
   quarantined, and a person is called: `sync` refills it; who finds that it is the right one removes it, which leaves
   its data as they are, and makes a cluster of it by `promote` with force.
Nothing is ever written into a log by this. Deletes are log entries, so they are never undone by it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from django.utils import timezone

from cluster.models import Replica, ReplicaCopy
from cluster.replication.digests import Digest, Trouble, digest_asked, digest_at, position_asked
from cluster.services.changes import event_write
from cluster.services.copies import alarm_raise, copy_state_set
from cluster.services.registry import check_owner, replica_of
from cluster.services.shipping import VERIFY_TASK
from cluster.states import CopyState
from cluster.transport.errors import PeerError
from mlvdb_site.celery import publish
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead
from vectors.store import leases
from vectors.store.log import Position

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_WITHIN_S = 480.0


def replica_verify(*, name: str, actor: str) -> None:
    """Have the contents of a replica compared with this node's, soon. Raise NotFound, NotOwner."""
    check_owner()
    replica = replica_of(name)
    event_write(actor=actor, action="verify_asked", subject=replica.name)
    publish(VERIFY_TASK, replica.pk)


def replicas_to_verify() -> list[int]:
    """Return the replicas whose contents can be compared now."""
    following = ReplicaCopy.objects.filter(state=CopyState.FOLLOWING, replica__paused=False)
    return sorted(set(following.values_list("replica_id", flat=True)))


def replica_compare(replica_id: int, *, owner: str) -> None:
    """Compare every copy of a replica, unless another process is at it."""
    replica = Replica.objects.filter(pk=replica_id, paused=False).first()
    lease = None if replica is None else leases.take_lease(f"verify:{replica_id}", owner)
    if replica is None or lease is None:
        return
    with lease:
        for copy in ReplicaCopy.objects.filter(replica=replica, state=CopyState.FOLLOWING):
            head = ShardHead.objects.filter(uid=copy.shard, is_primary=True).first()
            if head is not None:
                _compare(replica, copy, head)


def _compare(replica: Replica, copy: ReplicaCopy, head: ShardHead) -> None:
    deadline = time.monotonic() + _WITHIN_S
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            position, _ = position_asked(replica.url, head.uid)
            own = digest_at(head.pk, position)
            if own.trouble is Trouble.PASSED:
                reason = own.reason
                continue
            if own.trouble is not None:
                _primary_is_damaged(replica, copy, own)
                return
            theirs = digest_asked(replica.url, head.uid, position, deadline=deadline)
        except (PeerError, MLVectorDBError) as error:
            reason = f"{error.code}: {error.message}"
            break
        if theirs.trouble is Trouble.PASSED:
            reason = theirs.reason
            continue
        _judge(replica, copy, position, own, theirs)
        return
    _verdict(copy, "unknown", None, {"reason": reason[:400]})


def _judge(replica: Replica, copy: ReplicaCopy, position: Position, own: Digest, theirs: Digest) -> None:
    if theirs.trouble is Trouble.FAILED:
        _verdict(copy, "unknown", position, {"reason": theirs.reason})
        return
    if theirs.trouble is Trouble.DAMAGED:
        _quarantine(copy, position, {"reason": theirs.reason, "waits_for_person": False})
        return
    pairs = enumerate(zip(own.ranges, theirs.ranges, strict=True))
    differing = [number for number, (ours, other) in pairs if ours != other]
    if not differing:
        _verdict(copy, "equal", position, {"rows": sum(rows for rows, _ in own.ranges)})
        return
    detail = {
        "ranges": differing,
        "rows": [sum(rows for rows, _ in side.ranges) for side in (own, theirs)],
        "waits_for_person": True,
    }
    _quarantine(copy, position, detail)
    alarm_raise(
        action="copies_differ",
        subject=replica.name,
        detail={
            "message": f"{replica.name} and this node differ at seq {position.seq} and the checksums of both hold:"
            f" `sync` fills {replica.name} from this node; if {replica.name} is the right one, remove it, which keeps"
            " its data, and promote it by force into a cluster of its own",
            "shard": copy.shard,
            "seq": position.seq,
            "ranges": differing,
        },
    )


def _quarantine(copy: ReplicaCopy, position: Position, detail: dict[str, Any]) -> None:
    fields = {
        "digest_verdict": "differs",
        "digest_at": timezone.now(),
        "digest_seq": position.seq,
        "digest_detail": detail,
    }
    copy_state_set(copy, CopyState.QUARANTINED, reason="contents differ", fields=fields)


def _primary_is_damaged(replica: Replica, copy: ReplicaCopy, own: Digest) -> None:
    _verdict(copy, "unknown", None, {"reason": f"this node's own copy: {own.reason}"})
    alarm_raise(
        action="primary_damaged",
        subject=replica.name,
        detail={
            "message": f"this node's own copy has lost data; promote {replica.name}, and this node is refilled from it",
            "reason": own.reason,
        },
    )


def _verdict(copy: ReplicaCopy, verdict: str, position: Position | None, detail: dict[str, Any]) -> None:
    ReplicaCopy.objects.filter(pk=copy.pk).update(
        digest_verdict=verdict,
        digest_at=timezone.now(),
        digest_seq=None if position is None else position.seq,
        digest_detail=detail,
    )
    logger.info("copy_compared replica=%s shard=%s verdict=%s", copy.replica_id, copy.shard[:8], verdict)
