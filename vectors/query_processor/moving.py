"""One shard copy of this node at an end of a move: its rows by slot, what its log did to them, and rows coming in.

The source gives pages (`vectors.query_processor.moving_pages`); the target takes them under a cursor that is changed in
the transaction that adds them (`vectors.store.moved_rows`). What decides about the move is not here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
from django.conf import settings

from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Operation
from vectors.engine.slots import SlotSet
from vectors.errors import LogMismatch, NotPrimary, ShardDamaged
from vectors.query_processor.moving_pages import EntriesPage, RowsPage, count_in, count_slots, entries_page, rows_page
from vectors.query_processor.opening import OpenCopy
from vectors.query_processor.port import DEFAULT_OPTIONS
from vectors.runtime import runtime
from vectors.store import adoption, log, pins, slices
from vectors.store.log import START, Position
from vectors.store.moved_rows import (
    Added,
    MovedRows,
    check_may_clear,
    cursor_forget,
    cursor_of,
    moved_clear,
    moved_take,
)
from vectors.store.namespace_rows import namespaces_alive
from vectors.store.recovery import OpenShard
from vectors.store.slots import SlotsNow, slots_history, slots_now, slots_set
from vectors.store.terms import read_terms, term_at

__all__ = ["EntriesPage", "MovingCopy", "RowsPage"]

logger = logging.getLogger(__name__)

_ASK_INTERVAL_S = 1.0
_ROW_OVERHEAD_BYTES = 160


class MovingCopy(OpenCopy):
    """A primary copy that rows of slots leave or come to. Made like every `OpenCopy`; thread-safe.

    Everything raises NotPrimary where another copy orders the shard's writes, and NotReady, StorageError and the like.
    """

    _asked_for_checkpoint_at = 0.0

    def position(self) -> Position:
        """Return how far the log goes now: what is followed from here on is whole, with the rows read afterwards."""
        return self._primary_head().position

    def pin(self, holder: str, seq: int) -> None:
        """Keep the log after `seq` for who follows it, and say so again every few seconds. Raise LogGap."""
        pins.pin_set(self._shard().shard_id, holder, seq)

    def unpin(self, holder: str) -> None:
        """Let go of what `pin` keeps."""
        pins.pin_drop(self._shard().shard_id, holder)

    def rows(self, slots: SlotSet, *, after: str, max_bytes: int) -> RowsPage:
        """Return a page of the rows of `slots`, from the beginning with `after` ""; see `rows_page`."""
        opened = self._whole()
        return rows_page(opened.engine, slots, after=after, max_bytes=max_bytes)

    def entries(self, slots: SlotSet, *, after: Position, max_bytes: int) -> EntriesPage:
        """Return what the entries after a position did to rows of `slots`, reading about `max_bytes` of them.

        Raise LogGap when they are pruned, and LogMismatch when the log has another entry at `after` or goes on in
        another term: either way the rows are to be copied anew.
        """
        after = after if after.seq else START
        head = self._primary_head()
        if after.seq > head.last_seq or term_at(read_terms(head.shard_id), after.seq) != after.term:
            raise LogMismatch(
                f"shard {head.label} does not have the entry {tuple(after)}",
                detail={"term": head.term, "seq": head.last_seq},
            )
        entries = slices.read_slice(head.shard_id, after.seq, through=head.last_seq, max_bytes=max_bytes)
        # Opened afterwards: the states of rows that a page has are never older than its entries.
        return entries_page(self._whole().engine, slots, entries, after=after, head=head.position, max_bytes=max_bytes)

    def take(
        self,
        move: str,
        *,
        before: str,
        after: str,
        operations: Sequence[tuple[str, Operation]],
        namespaces: Mapping[str, NamespaceSpec],
    ) -> Position:
        """Add what a page of the source has, with the uids of its namespaces; return where the log ends then.

        `before` has to be this copy's `cursor` of the move ("" at the beginning) and `after` is it from then on. The
        same page again changes nothing. `namespaces` are those that live, as the registry has them: what is not known
        here is made from it; rows of namespaces that have ended here, or that neither knows, are passed over.

        Raise CursorMismatch; SlotsOwned when clients may write any of the rows' slots here; Conflict while a namespace
        of the same name has not ended here yet; CheckpointBehind and MemoryLimitReached, which pass.
        """
        moved = [MovedRows.of(uid, operation) for uid, operation in operations]
        rows = sum(one.operation.rows for one in moved)
        size_bytes = sum(len(one.payload) for one in moved) + _ROW_OVERHEAD_BYTES * rows
        with runtime().reserved_memory(size_bytes):
            added = moved_take(
                self._shard().shard_id, move, before=before, after=after, operations=moved, namespaces=namespaces
            )
        return self._added(added)

    def cursor(self, move: str) -> str:
        """Return how far the rows of a move have come in, "" before the first, and on a copy that became primary."""
        return cursor_of(self._shard().shard_id, move)

    def forget(self, move: str) -> None:
        """Forget the cursor of a move, which is over or is to begin anew."""
        cursor_forget(self._shard().shard_id, move)

    def set_slots(self, epoch: int, writable: SlotSet, *, cursor_of: str = "") -> Position:
        """Say which slots clients may write from here on; return the position that says so. See `slots_set`."""
        position = slots_set(self._shard().shard_id, epoch=epoch, writable=writable, cursor_of=cursor_of)
        self._tell()
        return position

    def slots(self) -> SlotsNow | None:
        """Return which slots clients may write, None when nothing was ever said about it: all of them."""
        return slots_now(self._shard().shard_id)

    def slot_changes(self) -> list[SlotsNow]:
        """Return since when clients may write which slots, the oldest change that is known first."""
        return slots_history(self._shard().shard_id)

    def clean(self, slots: SlotSet, *, move: str = "", epoch: int | None = None) -> int:
        """Delete the rows of `slots` by one entry; return how many were there. Where there is none, none is added.

        Raise SlotsOwned when clients may write any of `slots` here. Against a request that comes late: `move` refuses,
        with CursorMismatch, once rows of that move have come in, and `epoch`, with StaleScope, once this copy's slots
        were changed at a later one.
        """
        shard_id = self._shard().shard_id
        check_may_clear(shard_id, slots, move=move, epoch=epoch)
        rows = count_in(self._whole().engine, slots)
        if rows:
            self._added(moved_clear(shard_id, slots, move=move, epoch=epoch))
        return rows

    def slot_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows alive and about their bytes in each slot: (16384,) int64 each."""
        return count_slots(self._open(self._shard(), DEFAULT_OPTIONS).engine)

    def namespaces(self) -> list[NamespaceSpec]:
        """Return the namespaces that live here, in order of their names."""
        return namespaces_alive(self._shard().shard_id)

    def namespace_adopt(self, spec: NamespaceSpec) -> None:
        """Have a namespace as the registry has it; an older one of its name that is left here ends.

        One that has ended here stays ended, and one that is older than the living one of its name stays away.
        """
        with log.append_transaction(self._shard().shard_id) as open_log:
            adoption.namespace_adopt(open_log, spec, changes=True)
        self._added(Added(open_log.new_head, open_log.has_knocked))

    def namespace_end(self, uid: str) -> None:
        """End a namespace for good, also one that this copy has not heard of yet."""
        with log.append_transaction(self._shard().shard_id) as open_log:
            adoption.namespace_end(open_log, uid)
        self._added(Added(open_log.new_head, open_log.has_knocked))

    def _primary_head(self) -> log.Head:
        head = self.head()
        log.check_whole(head)
        if not head.takes_writes:
            raise NotPrimary(
                f"this copy of shard {head.label} is no end of a move: another is, or becomes, its primary",
                detail={"shard": head.label, "term": head.term, "promised_term": head.promised_term},
            )
        return head

    def _whole(self) -> OpenShard:
        """Return the engine caught up, of a primary that has lost nothing."""
        head = self._primary_head()
        opened = self._open(self._shard(), DEFAULT_OPTIONS)
        if opened.damage:
            raise ShardDamaged(f"shard {head.label} has lost data; its rows cannot move", detail={"shard": head.label})
        return opened

    def _added(self, added: Added) -> Position:
        if added.has_knocked:
            self._tell()
        if added.head.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
            now = time.monotonic()
            if now - self._asked_for_checkpoint_at >= _ASK_INTERVAL_S:
                self._asked_for_checkpoint_at = now
                self._request_checkpoint(added.head.uid)
        return added.head.position

    def _tell(self) -> None:
        if self.on_knock is None:
            return
        try:
            self.on_knock(self.head().uid)
        except Exception:
            # The sweep finds what was not told.
            logger.exception("knock_failed shard_id=%d", self._shard().shard_id)
