"""One step of a move: slots go from a shard to another, phase by phase, each of which can be resumed.

Where a step is says its row in the registry (`row`); how far rows have come in says the target's own cursor
(`carrying`), which is changed in the transaction that adds them. So whoever runs the step after a crash looks at both
and goes on. Every effect on a shard is idempotent, and refused when it comes late:

| effect | what refuses it |
| --- | --- |
| a page of rows or log | the cursor it begins at; a copy that begins again has another, and the old one is forgotten |
| which slots are written | its epoch: what says otherwise of the same shard later carries a higher one |
| cleaning | the cursor, once rows have come in; slots that are written there; a gate of a higher epoch |

See cluster/DESIGN.md for why no row is doubled or lost on the way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from django.conf import settings

from cluster.models import MoveStep, Shard, Topology
from cluster.moves.carrying import Carrier, is_in_log
from cluster.moves.ends import ShardEnd
from cluster.moves.progress import move_progress
from cluster.moves.row import StepRow
from cluster.services.changes import Change
from cluster.services.placements import placements_push
from cluster.services.sharding_gates import writable_of
from cluster.sharding.table import SlotTable
from cluster.states import INCOMING_PHASES, MovePhase, ShardState
from vectors.engine.slots import NO_SLOTS, SlotSet
from vectors.errors import (
    Conflict,
    CursorMismatch,
    LeaseLost,
    LogGap,
    LogMismatch,
    MLVectorDBError,
    Unavailable,
)
from vectors.store.leases import Lease
from vectors.store.log import Position

logger = logging.getLogger(__name__)

_ROUNDS_AT_ONCE = 3
"""How often a run begins the copy again before it leaves the step alone for a while."""

_OUT_OF_STEP = (LogGap, LogMismatch, CursorMismatch)
"""What says that the target's rows do not follow from the source's log any more."""


class StepRun:
    """A run of one step under the lease of the moves; `until` as in `StepRow`."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, step: MoveStep, lease: Lease, *, until: float | None = None) -> None:
        self.step = step
        self.row = StepRow(step, lease, until=until)
        self.slots = self.row.slots
        self.rows = Carrier(self.row)
        self._rounds = 0
        self._closed_at = 0.0
        self._cursor = ""
        self._deadline: float | None = None

    @property
    def source(self) -> ShardEnd:
        """Where the slots are."""
        return self.rows.source

    @property
    def target(self) -> ShardEnd:
        """Where the slots go."""
        return self.rows.target

    def run(self) -> None:
        """Go on until the step is over. Raise StepInterrupted, and what a shard, its node or the way to it says."""
        phases: dict[MovePhase, Callable[[], None]] = {
            MovePhase.PLANNED: self._start,
            MovePhase.COPYING: self._copy,
            MovePhase.FOLLOWING: self._follow,
            MovePhase.CLOSING: self._close,
            MovePhase.REOPENING: self._reopen,
            MovePhase.SWITCHING: self._switch,
            MovePhase.CLEANING: self._clean,
            MovePhase.UNDOING: self._undo,
        }
        try:
            while not self.row.phase.is_over:
                self.row.heed()
                try:
                    phases[self.row.phase]()
                except _OUT_OF_STEP as error:
                    self._again(error)
                self.row.write_counts()
        except LeaseLost:
            raise
        except MLVectorDBError:
            self.row.write_counts()
            raise
        move_progress(self.step.move_id)

    # -- phases --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Have reads of the target masked from here on."""
        refusal = self._refusal()
        if refusal:
            self.row.set(MovePhase.FAILED, error=refusal)
            return
        self._check_not_in_the_way()
        with self.row.change(MovePhase.COPYING, state={"round": 1}) as change:
            Shard.objects.filter(pk=self.step.target_id).update(has_foreign=True)
            change.epoch_raise()

    def _refusal(self) -> str:
        # Plans and slots change under the lease of the moves, or by a forced removal, which ends the steps it is about.
        if self.slots - _owned(self.step.source_id):
            return "slots of this step are not the source's any more"
        if not ShardState(Shard.objects.get(pk=self.step.target_id).state).is_target:
            return f"the shard {self.step.target.label} takes no slots"
        return ""

    def _check_not_in_the_way(self) -> None:
        """Raise Unavailable while an earlier move still has rows of these slots to take away at this one's target."""
        target = self.step.target_id
        leaving = MoveStep.objects.filter(source_id=target, phase=MovePhase.CLEANING)
        for other in leaving | MoveStep.objects.filter(target_id=target, phase=MovePhase.UNDOING):
            if SlotSet(bytes(other.slots)) & self.slots:
                raise Unavailable(f"move {other.move_id} has yet to clean these slots up at {self.step.target.label}")

    def _copy(self) -> None:
        """Copy the rows as they are; what changes meanwhile is in the log after the position noted first."""
        cursor = self.rows.cursor()
        if not is_in_log(cursor):
            if not cursor:
                # Reads that were planned before the mask are refused by the target from here on.
                cursor = self.rows.prepare(epoch=self._gate(self.target, self.step.target).epoch)
            self.rows.copy(cursor)
        self.row.set(MovePhase.FOLLOWING, attempts=0, error="")

    def _follow(self) -> None:
        """Bring the target so near to the source's head that the rest is a moment's work."""
        # A switch that was taken back may have opened them.
        self._gate(self.target, self.step.target)
        cursor = self.rows.catch_up(self.rows.follow_cursor())
        # What takes long is done before anything is closed: the target's copies get there, and who has to know of the
        # new epoch is told.
        if not self.target.wait_quorum(self.target.position(), timeout_s=settings.MLVDB_PEER_TIMEOUT_S):
            raise Unavailable("not enough copies of the target have what was moved: nothing is closed before they have")
        with self.row.change(MovePhase.FOLLOWING) as change:
            change.epoch_raise()
        self._cursor = self.rows.catch_up(cursor)
        with self.row.change(MovePhase.CLOSING) as change:
            self._check_ends(change)
        self._closed_at = self.timer()
        self._deadline = self._closed_at + settings.MLVDB_MOVE_CLOSE_TIMEOUT_S

    def _close(self) -> None:
        """Refuse writes to the slots at the source, and bring the target to where they end, in a moment or not."""
        with self._in_time():
            # Where this run has brought it; only another one has to ask.
            cursor, self._cursor = self._cursor or self.rows.follow_cursor(), ""
            end = self._gate(self.source, self.step.source).position
            self.rows.bring_to(end, cursor)
        self.row.set(MovePhase.SWITCHING)

    def _reopen(self) -> None:
        """Take a close back: the slots are their source's as before."""
        self._gate(self.source, self.step.source)
        self.row.set(MovePhase.FOLLOWING)
        # Only now is there time to tell who has to know of the epoch.
        placements_push()

    def _switch(self) -> None:
        """Let the target be written in the slots, then give them to it; a target that fails now does not get them."""
        with self._in_time():
            # Its gate is the last of what its copies must have: a copy that takes its place has all before it as well.
            # Where it has lost its cursor it stays shut: what is open has what was moved, for whoever looks at it.
            opened = self._gate(self.target, self.step.target, also=self.slots, cursor_of=self.rows.key).position
            # A target that had another primary in the meantime has lost its cursor, and perhaps rows.
            self.rows.follow_cursor()
            if not self.target.wait_quorum(opened, timeout_s=max(0.01, self._left_s())):
                raise Unavailable("not enough copies of the target have what was moved in time")
            closed_s = round(self.timer() - self._closed_at, 4) if self._closed_at else None
            state = {**self.row.state, "closed_s": closed_s}
            with self.row.change(MovePhase.CLEANING, state=state, attempts=0, error="") as change:
                table = SlotTable.of_bytes(bytes(change.topology.slots or b""))
                table = table.moved(self.slots, source=self.step.source_id, target=self.step.target_id)
                change.topology.slots = table.to_bytes()
                change.topology.save(update_fields=["slots"])
                Shard.objects.filter(pk=self.step.source_id).update(has_foreign=True)
                change.epoch_raise()
        logger.info("move_switched step=%s slots=%d closed_s=%s", self.step.uid, len(self.slots), closed_s)

    def _clean(self) -> None:
        """Let go of what the source still has; reads that were planned before the switch are refused by it first."""
        epoch = self._gate(self.source, self.step.source).epoch
        left = self.slots - _owned(self.step.source_id)
        if left:
            self.source.clean(left, epoch=epoch)
            self.row.check()
        self._keep(self.source)
        self.source.unpin(self.step.uid)
        with suppress(MLVectorDBError):
            # A row that nobody asks for any more: no reason to wait for a target that is away.
            self.rows.forget(before=self.row.round + 1)
        self._end(MovePhase.DONE)

    def _undo(self) -> None:
        """Let go of what the target got, as far as it does not own the slots; a source has all of its own."""
        if ShardState(Shard.objects.get(pk=self.step.target_id).state).is_shard:
            epoch = self._gate(self.target, self.step.target).epoch
            # First, so that no page comes in behind the cleaning.
            self.rows.forget(before=self.row.round + 1)
            # Those of a source that was lost may have been given to the target.
            left = self.slots - _owned(self.step.target_id)
            if left:
                self.target.clean(left, epoch=epoch)
                self.row.check()
            self._keep(self.target)
        with suppress(MLVectorDBError):
            # A pin that nobody renews is ignored after MLVDB_PIN_S.
            self.source.unpin(self.step.uid)
        self._end(MovePhase.FAILED if self.row.state.get("lost") else MovePhase.CANCELLED)

    # -- parts of phases -----------------------------------------------------------------------------------------

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Bound what is done while slots are closed to writes; when it fails they are opened at once."""
        if self._deadline is None:
            # Another run has closed them, and nobody knows when.
            self._deadline = self.timer() + settings.MLVDB_MOVE_CLOSE_TIMEOUT_S
        self.rows.limit(self._deadline)
        try:
            yield
        except LeaseLost:
            raise
        except MLVectorDBError as error:
            self.rows.limit(None)
            self._take_back(error)
            raise
        finally:
            self.rows.limit(None)

    def _left_s(self) -> float:
        assert self._deadline is not None
        return self._deadline - self.timer()

    def _take_back(self, error: MLVectorDBError) -> None:
        # A higher epoch than the close has: should the close come late, the source refuses it.
        with self.row.change(MovePhase.REOPENING, tells=False, error=error.message[:500]) as change:
            change.epoch_raise()
        self._deadline = None
        if not isinstance(error, _OUT_OF_STEP):
            self._reopen()

    def _again(self, error: MLVectorDBError) -> None:
        """Begin the copy again: what is at the target does not follow from what is at the source any more."""
        if self.row.phase not in (MovePhase.COPYING, MovePhase.FOLLOWING, MovePhase.REOPENING):
            raise error
        logger.warning("move_copies_again step=%s round=%d why=%s", self.step.uid, self.row.round, error.message)
        if self.row.phase is MovePhase.REOPENING:
            self._gate(self.source, self.step.source)
        # A higher epoch than the copy before had: should its cleaning come late, the target refuses it.
        with self.row.change(MovePhase.COPYING, state={"round": self.row.round + 1}) as change:
            change.epoch_raise()
        self._rounds += 1
        if self._rounds >= _ROUNDS_AT_ONCE:
            raise error

    def _check_ends(self, change: Change) -> None:
        """Raise Conflict when a shard is somewhere else than where this run has moved rows from or to."""
        for known in (self.step.source, self.step.target):
            now = Shard.objects.get(pk=known.pk)
            if now.url != known.url or (known.node and now.node != known.node):
                raise Conflict(f"the shard {now.label} is at {now.url or 'this node'} now, and was at {known.url}")

    def _gate(self, end: ShardEnd, shard: Shard, *, also: SlotSet = NO_SLOTS, cursor_of: str = "") -> _Gate:
        """Let a shard be written in what it owns by the registry but for what is closed, and in `also`."""
        topology = Topology.objects.get()
        writable = writable_of(shard, topology) | also
        self.row.check()
        return _Gate(end.set_slots(topology.epoch, writable, cursor_of=cursor_of), topology.epoch)

    def _keep(self, end: ShardEnd) -> None:
        """Wait until what was cleaned up at a shard stays so: a copy that takes its node's place has it as well.

        Reads are masked until then, so nobody sees what such a copy might still have. Raise Unavailable.
        """
        if not end.wait_quorum(end.position(), timeout_s=settings.MLVDB_PEER_TIMEOUT_S):
            raise Unavailable(
                "not enough copies of the shard have what was cleaned up: it may come back with another one"
            )

    def _end(self, phase: MovePhase) -> None:
        with self.row.change(phase, attempts=0) as change:
            _foreign_settle(self.step.source_id, change)
            _foreign_settle(self.step.target_id, change)
            if phase is not MovePhase.FAILED:
                MoveStep.objects.filter(pk=self.step.pk).update(error="")


def _foreign_settle(shard_id: int, change: Change) -> None:
    """Say of a shard that it holds nothing but what it owns, when no step has anything of it under way."""
    coming = MoveStep.objects.filter(target_id=shard_id, phase__in=INCOMING_PHASES)
    leaving = MoveStep.objects.filter(source_id=shard_id, phase=MovePhase.CLEANING)
    if coming.exists() or leaving.exists():
        return
    if Shard.objects.filter(pk=shard_id, has_foreign=True).update(has_foreign=False):
        change.epoch_raise()


class _Gate(NamedTuple):
    """Since when a shard is written in what it was told, and at which epoch that was."""

    position: Position
    epoch: int


def _owned(shard_id: int) -> SlotSet:
    """Return the slots of a shard by the registry as of now."""
    return SlotTable.of_bytes(bytes(Topology.objects.get().slots or b"")).owned_by(shard_id)
