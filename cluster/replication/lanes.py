"""Lanes: how a write that must be on several copies before it is answered gets there.

Each copy has one lane per process: a thread that sends what the copy lacks while somebody waits for it, so that writes
that wait at the same time share slices, and a copy that is slow or silent holds up only those who need it. A lane knows
the position that its copy last answered, whoever sent it there: the background task may have been faster.

A copy that refuses connections or is silent fails the wait at once where the level cannot be reached without it;
nobody waits for it again until it has answered. A copy that cannot be served by slices (it needs a full sync, or lacks
more than MLVDB_INLINE_SHIP_BYTES) is left to the background task, and the lane only asks how far it is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field

from django.conf import settings
from django.db import connection
from django.db.models import Sum
from django.db.models.functions import Length

from cluster.replication import quorum
from cluster.replication.knocks import knock
from cluster.replication.sender import Deposed, PrimaryBehind, Sender, Step, Target
from cluster.states import Membership
from cluster.topology import CopyView, ShardView, topology
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerRefused, PeerSilent
from vectors.errors import MLVectorDBError
from vectors.models import LogEntry
from vectors.store import log
from vectors.store.log import Position

logger = logging.getLogger(__name__)

_IDLE_S = 30.0
_ASK_AGAIN_S = 0.05
_LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Whether a level was reached: how many copies have the position, of how many that must; `why` not, by copy."""

    reached: bool
    acknowledged: int
    required: int
    why: dict[str, str] = field(default_factory=dict)


def wait_for(shard_uid: str, position: Position, level: str, *, deadline: float) -> Acknowledged:
    """Wait until enough members of a shard have `position`, until `deadline` (monotonic) at the latest.

    Returns early when the level cannot be reached because of copies that are known not to answer.
    """
    shard = topology().shards.get(shard_uid)
    members = {quorum.PRIMARY: Membership.MEMBER}
    others: list[CopyView] = []
    if shard is not None:
        others = [copy for copy in shard.copies if copy.membership is not Membership.NONE]
        members |= {copy.name: copy.membership for copy in others}
    required = quorum.required(level, members)
    if shard is not None and not shard.is_local_primary:
        # Deposed since the commit: PRIMARY among the members is another node now.
        return Acknowledged(False, 1, required, {quorum.PRIMARY: "this node is not the primary any more"})
    if quorum.is_reached(level, {quorum.PRIMARY}, members):
        return Acknowledged(True, 1, required)
    assert shard is not None
    lanes = [_lanes.lane(shard, copy) for copy in others if not copy.paused]
    wait = Wait(position, failed={copy.name: "it is paused" for copy in others if copy.paused})
    return _wait(wait, lanes, level, members, required, deadline)


def wait_for_each(shard_uid: str, position: Position, *, deadline: float) -> dict[str, bool]:
    """Wait until each copy of a shard has `position` or is known not to answer; return which have it, by name."""
    shard = topology().shards.get(shard_uid)
    if shard is None:
        return {}
    lanes = {copy.name: _lanes.lane(shard, copy) for copy in shard.copies if not copy.paused}
    wait = Wait(position)
    for lane in lanes.values():
        lane.join(wait)
    try:
        with wait.changed:
            while lanes.keys() - wait.acknowledged - wait.failed.keys() and (left := deadline - time.monotonic()) > 0:
                wait.changed.wait(left)
            return {copy.name: copy.name in wait.acknowledged for copy in shard.copies}
    finally:
        for lane in lanes.values():
            lane.leave(wait)


def _wait(
    wait: Wait, lanes: list[Lane], level: str, members: quorum.Members, required: int, deadline: float
) -> Acknowledged:
    try:
        for lane in lanes:
            lane.join(wait)
        with wait.changed:
            while True:
                have = {quorum.PRIMARY, *wait.acknowledged}
                if quorum.is_reached(level, have, members):
                    return Acknowledged(True, len(have), required)
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = members.keys() - have
                    late = {name: wait.passing.get(name, "it has not answered in time") for name in missing}
                    return Acknowledged(False, len(have), required, late | wait.failed)
                if not quorum.is_reachable(level, wait.failed, members):
                    return Acknowledged(False, len(have), required, dict(wait.failed))
                wait.changed.wait(left)
    finally:
        for lane in lanes:
            lane.leave(wait)


class Wait:
    """One write that waits: for which position, who has it, and who will not in time."""

    def __init__(self, position: Position, *, failed: dict[str, str] | None = None) -> None:
        self.position = position
        self.changed = threading.Condition()
        self.acknowledged: set[str] = set()
        self.failed: dict[str, str] = failed or {}
        self.passing: dict[str, str] = {}
        """What went wrong with a copy last, that may pass: it is waited for until the deadline."""

    def note(self, name: str, *, known: Position | None, failure: str | None, passing: str | None = None) -> bool:
        """Note where a copy is, or why it is of no use; return whether its lane is done with this wait."""
        # Another term than the write's own means that this primary is no longer one: such a position proves nothing.
        has_it = known is not None and known.term == self.position.term and known.seq >= self.position.seq
        with self.changed:
            if passing is not None:
                self.passing[name] = passing
            if has_it:
                self.acknowledged.add(name)
                self.failed.pop(name, None)
            elif failure is not None:
                self.failed[name] = failure
            else:
                return False
            self.changed.notify_all()
        return has_it


class Lane:
    """The thread that serves the waits for one copy; it ends after a while without any."""

    def __init__(self, target: Target, *, takes_slices: bool, clock: float) -> None:
        self.target = target
        self.used_at = clock
        self._takes_slices = takes_slices
        self._sender = Sender(target)
        self._waits: list[Wait] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pause_s = 0.0
        self._stopped = False

    def stop(self) -> None:
        """Serve nobody any more: the thread ends before this returns."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def join(self, wait: Wait) -> None:
        """Serve a wait from now on."""
        with self._changed:
            self.used_at = time.monotonic()
            silent = "it is silent" if peer_client().is_silent(self.target.url) else None
            if wait.note(self.target.replica, known=self._sender.known, failure=silent):
                return
            if self._stopped:
                wait.note(self.target.replica, known=None, failure="this process sends no more")
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"lane-{self.target.replica}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    wait.note(self.target.replica, known=None, failure=str(error))
                    return
                self._thread = thread
            self._waits.append(wait)
            self._changed.notify()

    def leave(self, wait: Wait) -> None:
        """Serve a wait no longer."""
        with self._changed:
            if wait in self._waits:
                self._waits.remove(wait)

    def _run(self) -> None:
        try:
            while self._next():
                self._serve()
        finally:
            connection.close()
            with self._changed:
                # A wait may have come since `_next` gave up, and have its own thread by now.
                if self._thread is threading.current_thread():
                    self._thread = None

    def _next(self) -> bool:
        """Wait for work; False when there was none for a long time, or never will be."""
        with self._changed:
            if self._pause_s and not self._stopped:
                self._changed.wait(self._pause_s)
            while not self._waits and not self._stopped:
                connection.close_if_unusable_or_obsolete()
                if not self._changed.wait(_IDLE_S):
                    self._thread = None
                    return False
            return not self._stopped

    def _serve(self) -> None:
        failure: str | None = None
        passing: str | None = None
        pause_s = 0.0
        was_at_head = False
        try:
            found = self._step()
            was_at_head = found is Step.UP_TO_DATE
            pause_s = _ASK_AGAIN_S if found is Step.FULL_SYNC else 0.0
        except (PeerRefused, PeerSilent) as error:
            failure, pause_s = error.message, _LONGEST_PAUSE_S
        except (Deposed, PrimaryBehind) as error:
            failure, pause_s = error.message, _LONGEST_PAUSE_S
        except (PeerError, MLVectorDBError) as error:
            # It may pass within the deadline of those who wait; the background task looks into it as well.
            logger.info("lane_failed replica=%s error=%s", self.target.replica, error.message)
            passing = error.message
            pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s or _ASK_AGAIN_S)
            self._sender.known = None
            knock(self.target.shard)
        except Exception:
            logger.exception("lane_failed replica=%s", self.target.replica)
            failure, pause_s = "internal error, see the log", _LONGEST_PAUSE_S
            self._sender.known = None
        with self._changed:
            self._pause_s = pause_s
            known = self._sender.known
            self._waits = [
                wait
                for wait in self._waits
                if not wait.note(self.target.replica, known=known, failure=failure, passing=passing)
            ]
            if self._waits and was_at_head:
                # The copy has all there is, and yet not what is waited for: the term of the write is over.
                self._pause_s = _ASK_AGAIN_S

    def _step(self) -> Step:
        """Bring the copy forward; FULL_SYNC: that is left to the background task, and only its position was asked."""
        timeout_s = settings.MLVDB_PEER_TIMEOUT_S
        if self._takes_slices and not self._is_far_behind():
            step = self._sender.step(timeout_s=timeout_s)
            if step is not Step.FULL_SYNC:
                return step
        knock(self.target.shard)
        position = self._sender.ask(timeout_s=timeout_s)
        self._sender.known = Position(position.term, position.seq)
        return Step.FULL_SYNC

    def _is_far_behind(self) -> bool:
        known = self._sender.known
        if known is None:
            return False
        head = log.read_head(self.target.shard_id)
        if head is None or head.last_seq - known.seq <= 1:
            return False
        lacking = LogEntry.objects.filter(shard_id=self.target.shard_id, seq__gt=known.seq)
        total = lacking.aggregate(size=Sum(Length("payload")))["size"] or 0
        return bool(total > settings.MLVDB_INLINE_SHIP_BYTES)


class Lanes:
    """The lanes of this process."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[Target, bool], Lane] = {}
        self._lock = threading.Lock()

    def lane(self, shard: ShardView, copy: CopyView) -> Lane:
        """Return the lane of a copy; another one when anything that is known of it has changed."""
        assert shard.shard_id is not None
        # By name too: after a promotion and back, another name may stand for the URL, and votes are counted by name.
        target = Target(copy.name, copy.url, shard.uid, shard.shard_id)
        key = (target, copy.state.takes_slices)
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None:
                self._forget_unused()
                lane = self._lanes[key] = Lane(target, takes_slices=copy.state.takes_slices, clock=time.monotonic())
            return lane

    def stop(self) -> None:
        """End all of them."""
        with self._lock:
            lanes = list(self._lanes.values())
            self._lanes.clear()
        for lane in lanes:
            lane.stop()

    def _forget_unused(self) -> None:
        now = time.monotonic()
        for key in [key for key, lane in self._lanes.items() if now - lane.used_at > 2 * _IDLE_S]:
            del self._lanes[key]


_lanes = Lanes()


def reset() -> None:
    """End the lanes of this process; those who ask next get others (tests)."""
    _lanes.stop()


def _forget_after_fork() -> None:
    global _lanes
    _lanes = Lanes()


os.register_at_fork(after_in_child=_forget_after_fork)
