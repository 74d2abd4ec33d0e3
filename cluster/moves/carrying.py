"""How the rows of a step get from its source to its target: page by page, under a cursor that the target keeps.

First the rows as they are, under `c:<nonce>:<where the next page begins>`, then the source's log from the position that
was noted before, under `f:<term>.<seq>`. The target changes the cursor in the transaction that adds a page, and refuses
a page that begins elsewhere: so none is taken twice, left out, or taken late.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from django.conf import settings

from cluster.models import MoveStep, Shard, ShardedNamespace
from cluster.moves.ends import ShardEnd, end_of
from cluster.moves.pace import Pace
from cluster.moves.row import StepRow
from cluster.services.namespace_errands import spec_of
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Operation
from vectors.errors import CheckpointBehind, Conflict, CursorMismatch, LogMismatch
from vectors.store.log import Position

_SMALL_PAGE_BYTES = 256 * 1024
"""A page of the log that leaves so little behind it that closing will take a moment only."""

_PIN_EVERY_S = 5.0
_CHECKPOINT_WAIT_S = 10.0
_CHECKPOINT_LOOK_S = 0.25


class Carrier:
    """The rows of one step on their way, and the two shards it lies between."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, row: StepRow) -> None:
        self._row = row
        self._step = row.step
        self._slots = row.slots
        self._pace = Pace()
        self._pinned_at = -_PIN_EVERY_S
        self._deadline: float | None = None
        self._ends: list[ShardEnd] = []

    @cached_property
    def source(self) -> ShardEnd:
        """Where the slots are; looked for when it is needed, since one that is gone has nothing to undo."""
        return self._end_of(self._step.source)

    @cached_property
    def target(self) -> ShardEnd:
        """Where the slots go."""
        return self._end_of(self._step.target)

    @property
    def key(self) -> str:
        """The name under which the target keeps the cursor; a copy that begins again has another one."""
        return _key(self._step, self._row.round)

    def limit(self, deadline: float | None) -> None:
        """Let no request to a shard's node last longer than until `deadline`; None where slots are not closed."""
        self._deadline = deadline
        for end in self._ends:
            end.deadline = deadline

    def prepare(self, *, epoch: int) -> str:
        """Make the target, whose gate is of that epoch, ready for a copy from the beginning; return its cursor."""
        # First, so that no page of an earlier copy comes in behind the cleaning.
        self.forget(before=self._row.round)
        position = self.source.position()
        self.source.pin(self._step.uid, position.seq)
        self._row.note(state={**self._row.state, "source": list(position)}, rows_done=0, bytes_done=0)
        # What an earlier copy has left goes: a row that was deleted since would stay.
        self.target.clean(self._slots, move=self.key, epoch=epoch)
        self._row.heed()
        # Two beginnings are told apart, so that a page which comes late fits the one it was read for only.
        cursor = f"c:{secrets.token_hex(4)}:"
        self.target.take(self.key, before="", after=cursor, operations=[], namespaces={})
        return cursor

    def copy(self, cursor: str) -> None:
        """Copy the rows as they are from a cursor on, to the last one."""
        start = self._start_position()
        is_last = False
        while not is_last:
            self._row.heed()
            began = self.timer()
            nonce, after = cursor.removeprefix("c:").split(":", 1)
            page = self.source.rows(self._slots, after=after, max_bytes=self._pace.page_bytes())
            is_last = page.is_last
            after = _cursor(start) if is_last else f"c:{nonce}:{page.cursor}"
            namespaces = {uid: spec for uid, spec in _living().items() if uid in page.namespaces}
            self._take(cursor, after, page.operations, namespaces)
            self._pin(start.seq)
            worked_s = self.timer() - began
            self._row.count(page.rows, page.size_bytes, worked_s)
            self._pace.rest(worked_s)
            cursor = after

    def catch_up(self, cursor: str) -> str:
        """Take over the source's log so far that little is left; return the cursor."""
        while True:
            self._row.heed()
            cursor, size_bytes, is_at_head = self._follow_page(cursor)
            if is_at_head and size_bytes < _SMALL_PAGE_BYTES:
                return cursor

    def bring_to(self, end: Position, cursor: str) -> None:
        """Take over the source's log up to where it ends, its slots being closed; raise Conflict at the deadline."""
        assert self._deadline is not None
        self._check_term(end)
        while _position(cursor).seq < end.seq:
            if self.timer() >= self._deadline:
                raise Conflict("what was written until the close did not get to the target in time")
            cursor, _, _ = self._follow_page(cursor)

    def cursor(self) -> str:
        """Return the target's cursor; empty when nothing was taken."""
        return self.target.cursor(self.key)

    def follow_cursor(self) -> str:
        """Return the target's cursor in the log. Raise CursorMismatch when it has none."""
        cursor = self.cursor()
        if not is_in_log(cursor):
            # A target that was promoted, or refilled, does not know how far it was.
            raise CursorMismatch("the target has no cursor of this step", detail={"cursor": cursor})
        return cursor

    def forget(self, *, before: int) -> None:
        """Have the target forget the cursors of copies before one; what comes late of them is refused from then on."""
        for number in range(1, before):
            self.target.forget(_key(self._step, number))

    def _end_of(self, shard: Shard) -> ShardEnd:
        end = end_of(shard)
        end.deadline = self._deadline
        self._ends.append(end)
        return end

    def _follow_page(self, cursor: str) -> tuple[str, int, bool]:
        """Take over a page of the source's log; return the cursor, the bytes of rows, and if it goes to the head."""
        began = self.timer()
        # While slots are closed whoever writes them waits for all of it.
        max_bytes = self._pace.page_bytes() if self._deadline is None else settings.MLVDB_MOVE_SLICE_BYTES
        page = self.source.entries(self._slots, after=_position(cursor), max_bytes=max_bytes)
        self._check_term(page.position)
        size_bytes = page.size_bytes
        after = _cursor(page.position)
        if after != cursor:
            self._take(cursor, after, page.operations, _living())
            self._pin(page.position.seq)
            self._row.count(page.rows, size_bytes, self.timer() - began, is_extra=True)
        return after, size_bytes, page.is_at_head

    def _take(
        self, before: str, after: str, operations: Sequence[tuple[str, Operation]], namespaces: Mapping[str, Any]
    ) -> None:
        """Have the target take rows; wait a little for the checkpoint that makes room for them."""
        give_up_at = self.timer() + _CHECKPOINT_WAIT_S
        while True:
            try:
                self.target.take(self.key, before=before, after=after, operations=operations, namespaces=namespaces)
                return
            except CheckpointBehind:
                if self._deadline is not None or self.timer() > give_up_at:
                    raise
            self._row.heed()
            time.sleep(_CHECKPOINT_LOOK_S)

    def _check_term(self, position: Position) -> None:
        """Raise LogMismatch when the source has another primary than the one that was copied from."""
        start = self._start_position()
        if position.term != start.term:
            raise LogMismatch(f"the source is in term {position.term}, and was in {start.term} when the copy began")

    def _start_position(self) -> Position:
        noted = self._row.state.get("source")
        if not noted:
            raise CursorMismatch("the position at which the copy began was not noted")
        return Position(int(noted[0]), int(noted[1]))

    def _pin(self, seq: int) -> None:
        """Keep the source's log; said again every few seconds, for less would do and each time is a commit."""
        now = self.timer()
        if now - self._pinned_at >= _PIN_EVERY_S:
            self.source.pin(self._step.uid, seq)
            self._pinned_at = now


def is_in_log(cursor: str) -> bool:
    """Whether a cursor is one in the source's log: all rows have been copied as they were."""
    return cursor.startswith("f:")


def _cursor(position: Position) -> str:
    return f"f:{position.term}.{position.seq}"


def _position(cursor: str) -> Position:
    term, _, seq = cursor.removeprefix("f:").partition(".")
    return Position(int(term), int(seq))


def _key(step: MoveStep, number: int) -> str:
    return f"{step.uid}.{number}"


def _living() -> dict[str, NamespaceSpec]:
    """Return the namespaces that live, as the registry has them, by uid."""
    return {row.uid: spec_of(row) for row in ShardedNamespace.objects.filter(dropped_at__isnull=True)}
