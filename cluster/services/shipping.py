"""Bringing one replica up to date: what a ship task does.

One process at a time works on a replica, under a lease. For each shard copy: the placement is brought to its node if it
lacks it; then slices are sent until the copy has the head, or a full sync where slices do not help. A sender that has
caught up stays for a moment and looks on, so that steady writes do not start a task each; then it clears the shard's
`knocked`, looks once more, and lets go. An error ends the work on that replica alone and is written into its row, with
a back-off that beat's sweep counts down.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import F, Q
from django.utils import timezone

from cluster.models import Replica, ReplicaCopy
from cluster.replication.full_sync import FullSync
from cluster.replication.knocks import SHIP_TASK
from cluster.replication.sender import Deposed, PrimaryBehind, Sender, Step, Target
from cluster.services.copies import alarm_raise, copies_of, copy_state_set
from cluster.services.membership import membership_advance
from cluster.services.placements import placement_push_now
from cluster.states import CopyState, Membership
from cluster.transport.errors import PeerError, PeerRejected
from mlvdb_site.celery import publish
from vectors.errors import LeaseLost, LogGap, MLVectorDBError
from vectors.models import ShardHead
from vectors.store import leases, log, pins
from vectors.store.checkpoint import checkpoint_run
from vectors.store.log import Position

logger = logging.getLogger(__name__)

VERIFY_TASK = "cluster.tasks.verify_replica"

_LOOK_ON_S = 0.5
_LOOK_EVERY_S = 0.01
_AT_MOST_S = 60.0
_SAVE_EVERY_S = 0.25
_PIN_EVERY_S = 2.0

_PLACEMENTS = 5
"""How often a copy is told in a row: the registry may change again, and again, while it is being told."""


def ship(replica_id: int) -> None:
    """Bring a replica up to date; nothing to do, or another process at it, is success.

    After failures nothing is done until beat's sweeps have counted the back-off down, however many writes knock.
    """
    replica = Replica.objects.filter(pk=replica_id, paused=False, sweeps_to_skip=0).first()
    if replica is None:
        return
    lease = leases.take_lease(f"ship:{replica_id}", f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}")
    if lease is None:
        return
    with lease:
        again = _Shipping(replica, lease).run()
    if again or _has_news(replica_id):
        publish(SHIP_TASK, replica_id)


@dataclass(slots=True)
class _Shipping:
    """One task's work on one replica."""

    replica: Replica
    lease: leases.Lease
    began: float = field(default_factory=time.monotonic)

    def run(self) -> bool:
        """Work on every copy; return whether the time was up before all was sent."""
        try:
            shippings = [_CopyShipping(self, copy, head) for copy, head in copies_of(self.replica)]
            self._catch_up(shippings)
            self._look_on(shippings)
        except LeaseLost:
            logger.warning("ship_ended replica=%s reason=lease lost", self.replica.name)
            return False
        except (PeerError, MLVectorDBError) as error:
            self._failed(error)
            return False
        self._succeeded()
        return self.time_is_up

    @property
    def time_is_up(self) -> bool:
        """Whether it is time to let another task go on: a worker that is told to stop must not wait for ever."""
        return time.monotonic() - self.began > _AT_MOST_S

    def check(self) -> None:
        """Raise LeaseLost when another process has taken over, or the replica was paused or removed."""
        self.lease.check()
        if not Replica.objects.filter(pk=self.replica.pk, paused=False).exists():
            raise LeaseLost(f"replica {self.replica.name} was paused or removed")

    def _look_on(self, shippings: list[_CopyShipping]) -> None:
        quiet_since = time.monotonic()
        while not self.time_is_up:
            if self._catch_up(shippings):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > _LOOK_ON_S:
                for shipping in shippings:
                    shipping.save()
                    log.knock_clear(shipping.head.pk)
                # What was written before the knock was taken back has told nobody.
                if not self._catch_up(shippings):
                    return
                quiet_since = time.monotonic()
            else:
                time.sleep(_LOOK_EVERY_S)

    def _catch_up(self, shippings: list[_CopyShipping]) -> bool:
        """Bring every copy up to date, not only the first that lags; return whether anything was sent."""
        sent = [shipping.catch_up() for shipping in shippings]
        return any(sent)

    def _succeeded(self) -> None:
        Replica.objects.filter(Q(send_failures__gt=0) | ~Q(last_error=""), pk=self.replica.pk).update(
            send_failures=0, sweeps_to_skip=0, last_error=""
        )

    def _failed(self, error: PeerError | MLVectorDBError) -> None:
        failures = self.replica.send_failures + 1
        skip = min(2 ** min(failures - 1, 16) - 1, settings.MLVDB_BACKOFF_MAX_SWEEPS)
        logger.warning("ship_failed replica=%s failures=%d error=%s", self.replica.name, failures, error.message)
        Replica.objects.filter(pk=self.replica.pk).update(
            send_failures=failures,
            sweeps_to_skip=skip,
            last_error=_words(error)[:500],
            last_error_at=timezone.now(),
        )
        if isinstance(error, (PrimaryBehind, Deposed)):
            alarm_raise(action=error.code, subject=self.replica.name, detail={"message": error.message, **error.detail})


class _CopyShipping:
    """The work on one copy of the replica."""

    def __init__(self, whole: _Shipping, copy: ReplicaCopy, head: ShardHead) -> None:
        self._whole = whole
        self.copy = copy
        self.head = head
        self._sender = Sender(Target(whole.replica.name, whole.replica.url, head.uid, head.pk))
        self._saved = Position(copy.term, copy.seq)
        self._saved_at = self._checked_at = self._pinned_at = 0.0

    def catch_up(self) -> bool:
        """Send until the copy has the head; return whether anything was sent."""
        sent = False
        if CopyState(self.copy.state).needs_placement:
            self._place()
        while not self._whole.time_is_up:
            self._check()
            if self.copy.state == CopyState.QUARANTINED:
                if self.copy.digest_detail.get("waits_for_person"):
                    return sent
                step = Step.FULL_SYNC
            else:
                step = self._step()
            if step is Step.FULL_SYNC:
                self._full_sync()
                sent = True
                continue
            self._note_following()
            self.save(at_most_every_s=_SAVE_EVERY_S)
            if step is Step.UP_TO_DATE:
                self._note_head()
                return sent
            sent = True
        return sent

    def _step(self) -> Step:
        for _ in range(_PLACEMENTS):
            try:
                return self._sender.step(timeout_s=settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)
            except PeerRejected as rejected:
                # `not_primary`: an old primary that was not told yet that it is none.
                if rejected.peer_code not in ("need_placement", "not_primary"):
                    raise
            self._place()
        return self._sender.step(timeout_s=settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)

    def save(self, *, at_most_every_s: float = 0.0) -> None:
        """Write the answered position into the copy's row, and let the log be pruned up to it."""
        known, now = self._sender.known, time.monotonic()
        if known is None or now - self._saved_at < at_most_every_s:
            return
        if known != self._saved:
            # A newer term may have begun with fewer entries: then the seq goes back, rightly.
            ReplicaCopy.objects.filter(
                Q(term__lt=known.term) | Q(term=known.term, seq__lt=known.seq), pk=self.copy.pk
            ).update(term=known.term, seq=known.seq)
            self._saved, self._saved_at = known, now
        if now - self._pinned_at > _PIN_EVERY_S or not at_most_every_s:
            with suppress(LogGap):
                # Pruned before the first pin: the next step finds out, and a full sync follows.
                pins.pin_set(self.head.pk, pin_holder(self._whole.replica.pk), known.seq)
            self._pinned_at = now

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._checked_at > settings.MLVDB_LEASE_S / 5:
            self._whole.check()
            # Another process may have quarantined it meanwhile.
            self._look_again()
            self._checked_at = now

    def _look_again(self) -> None:
        try:
            self.copy.refresh_from_db()
        except ReplicaCopy.DoesNotExist:
            raise LeaseLost(f"replica {self._whole.replica.name} was removed") from None

    def _place(self) -> None:
        try:
            placement_push_now(url=self._whole.replica.url, shard=self.head.uid)
        except PeerRejected as rejected:
            # Another process has brought a newer one meanwhile.
            if rejected.peer_code != "stale_epoch":
                raise
        self._look_again()

    def _note_following(self) -> None:
        if self.copy.state != CopyState.FOLLOWING and self._sender.known is not None:
            copy_state_set(self.copy, CopyState.FOLLOWING, only_from=(CopyState.NEW, CopyState.SYNCING))

    def _note_head(self) -> None:
        if self.copy.membership != Membership.MEMBER:
            self.save()
            membership_advance(self.copy)
            self._look_again()

    def _full_sync(self) -> None:
        is_refill = self.copy.state == CopyState.QUARANTINED
        if is_refill:
            # Nothing of the copy's own log is to be kept, so the segments must cover all of it.
            checkpoint_run(self.head.uid, owner=self._whole.lease.owner)
        else:
            if not copy_state_set(self.copy, CopyState.SYNCING):
                # Quarantined in this moment, which asks for a full sync of another kind; or removed.
                self._whole.check()
                return
        position = self._filled(covers=self.copy.seq if is_refill else 0)
        self._sender.known = self._saved = position
        fields: dict[str, Any] = {"term": position.term, "seq": position.seq}
        if is_refill:
            fields |= {"digest_verdict": "", "digest_detail": {}}
        # One that was quarantined meanwhile has kept entries of its own: it is refilled first.
        before = tuple(CopyState) if is_refill else (CopyState.SYNCING, CopyState.FOLLOWING)
        copy_state_set(self.copy, CopyState.FOLLOWING, fields=fields, only_from=before)
        if is_refill:
            publish(VERIFY_TASK, self._whole.replica.pk)

    def _filled(self, *, covers: int) -> Position:
        """Run the full sync; a copy that is ahead of our manifest needs a newer one, which only a checkpoint makes."""
        for attempt in range(1, _PLACEMENTS + 1):
            try:
                return FullSync(
                    replica=self._whole.replica,
                    copy=self.copy,
                    head=self.head,
                    lease=self._whole.lease,
                    check=self._check,
                    covers=covers,
                ).run()
            except PeerRejected as rejected:
                if attempt == _PLACEMENTS or rejected.peer_code not in ("need_placement", "not_primary", "sync_behind"):
                    raise
                if rejected.peer_code == "sync_behind":
                    checkpoint_run(self.head.uid, owner=self._whole.lease.owner)
                else:
                    self._place()
        raise AssertionError("unreachable")


def _words(error: MLVectorDBError) -> str:
    if isinstance(error, PeerRejected):
        return f"{error.peer_code}: {error.peer_message}"
    return f"{error.code}: {error.message}"


def pin_holder(replica_id: int) -> str:
    """Return the name under which the log that a replica lacks is pinned."""
    return f"replica:{replica_id}"


def _has_news(replica_id: int) -> bool:
    """Whether a copy that could be sent to lacks something and nobody was told: looked at after the lease is let go."""
    behind = ReplicaCopy.objects.filter(
        replica_id=replica_id, replica__paused=False, replica__sweeps_to_skip=0, state=CopyState.FOLLOWING
    ).values_list("shard", "seq")
    heads = dict(ShardHead.objects.filter(is_primary=True).values_list("uid", "last_seq"))
    return any(seq < heads.get(shard, 0) for shard, seq in behind)


def sweep() -> list[int]:
    """Return the replicas that lag, need a placement, or are not members yet; count the back-off of the others down."""
    heads = dict(ShardHead.objects.filter(is_primary=True).values_list("uid", "last_seq"))
    wanted = []
    for replica in Replica.objects.filter(paused=False).prefetch_related("copies"):
        copies = list(replica.copies.all())
        lags = any(copy.seq < heads.get(copy.shard, 0) or _waits(copy) for copy in copies)
        if not lags and len(copies) == (1 if replica.shard else len(heads)):
            continue
        if replica.sweeps_to_skip:
            Replica.objects.filter(pk=replica.pk, sweeps_to_skip__gt=0).update(sweeps_to_skip=F("sweeps_to_skip") - 1)
        else:
            wanted.append(replica.pk)
    return wanted


def _waits(copy: ReplicaCopy) -> bool:
    if copy.digest_detail.get("waits_for_person"):
        return False
    return copy.state != CopyState.FOLLOWING or copy.membership != Membership.MEMBER
