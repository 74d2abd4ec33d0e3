"""Rows of other shards on their way into a log, and out of it again when they have gone elsewhere.

What brings rows says where they begin: `before` has to be the cursor that this copy holds for the move, and `after` is
the cursor once they are in, changed in the transaction that adds them. So of two that bring the same rows one is
refused, and what comes late, doubled or out of order changes nothing. Cursors are no part of the log: a copy that
becomes primary holds none, and the move begins anew there.

Rows are brought and removed only where clients may not write: a request that was on its way for longer than the whole
move cannot put an old row over a new one, nor take one away.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.db.models import F

from vectors.engine import ids
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import ClearSlots, Delete, Operation, Patch, Upsert, encode
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import (
    CheckpointBehind,
    CursorMismatch,
    DimensionMismatch,
    InvalidInput,
    SlotsOwned,
    StaleScope,
)
from vectors.models import MoveCursor, Namespace
from vectors.store import log
from vectors.store.adoption import namespace_adopt
from vectors.store.faults import storage_faults
from vectors.store.slot_rows import slots_at

_CURSOR_LENGTH = 600
_SLOTS_TOLD = 20


class Added(NamedTuple):
    """The head after rows were added or removed, and whether the senders have to be told."""

    head: log.Head
    has_knocked: bool


@dataclass(frozen=True, slots=True)
class MovedRows:
    """One operation of a move, ready for the log: encoded outside of the transaction."""

    namespace: str
    operation: Operation
    payload: bytes
    slots: SlotSet

    @classmethod
    def of(cls, namespace: str, operation: Operation) -> MovedRows:
        """Encode an operation. Raise InvalidInput for one that a move cannot bring."""
        if not isinstance(operation, (Upsert, Patch, Delete)):
            raise InvalidInput("a move brings rows, patches of rows and deletes", field="operations")
        if isinstance(operation, Delete) and operation.resolved_at is not None:
            raise InvalidInput("a delete is resolved at the seqs of another log", field="operations")
        return cls(namespace, operation, encode(operation), SlotSet.of(ids.slots_of(operation.keys)))

    @property
    def dimension(self) -> int | None:
        """Of its values, None where it has none."""
        return int(self.operation.values.shape[1]) if isinstance(self.operation, Upsert) else None


def moved_take(
    shard_id: int,
    move: str,
    *,
    before: str,
    after: str,
    operations: Sequence[MovedRows],
    namespaces: Mapping[str, NamespaceSpec],
) -> Added:
    """Add rows of a move that begin at its cursor `before`, and make `after` its cursor; again changes nothing.

    A namespace that is not known here is made as `namespaces` has it; rows of one that has ended here, that is older
    than the one of its name here, or that neither this copy nor `namespaces` knows, are passed over.

    Raise CursorMismatch, SlotsOwned when clients may write any of the slots, Conflict where another namespace of the
    same name is here and nothing says which is older, CheckpointBehind, NotPrimary, ShardDamaged, and StorageFull and
    the like.
    """
    if not after or max(len(before), len(after)) > _CURSOR_LENGTH:
        raise InvalidInput(f"a cursor has 1 to {_CURSOR_LENGTH} characters", field="after")
    with log.append_transaction(shard_id) as open_log:
        open_log.check_writable()
        cursor = _cursor(shard_id, move)
        if cursor == after != before:
            return Added(open_log.head, False)
        if cursor != before:
            raise CursorMismatch(f"rows of move {move} have to begin at {cursor!r}", detail={"cursor": cursor})
        _check_not_owned(shard_id, _all_of(operations))
        rows = sum(_add(open_log, moved, namespaces) for moved in operations)
        if not MoveCursor.objects.filter(shard_id=shard_id, move=move).update(cursor=after, rows=F("rows") + rows):
            MoveCursor.objects.create(shard_id=shard_id, move=move, cursor=after, rows=rows)
    return Added(open_log.new_head, open_log.has_knocked)


def moved_clear(shard_id: int, slots: SlotSet, *, move: str, epoch: int | None) -> Added:
    """Remove all rows of some slots.

    Raise SlotsOwned when clients may write any of the slots; CursorMismatch when rows of `move` have come in, unless it
    is empty; StaleScope when the slots were changed at a later epoch than `epoch`; and as `moved_take` does.
    """
    clear = ClearSlots(slots.packed)
    payload = encode(clear)
    with log.append_transaction(shard_id) as open_log:
        open_log.check_writable()
        check_may_clear(shard_id, slots, move=move, epoch=epoch)
        # Never refused for the length of the tail: what it adds is small, and what it frees may be what is missing.
        open_log.add("", clear.kind, clear.rows, payload, zlib.crc32(payload))
    return Added(open_log.new_head, open_log.has_knocked)


@storage_faults()
def check_may_clear(shard_id: int, slots: SlotSet, *, move: str, epoch: int | None) -> None:
    """Raise SlotsOwned, CursorMismatch or StaleScope when rows of `slots` may not be removed; see `moved_clear`."""
    _check_not_owned(shard_id, slots)
    cursor = _cursor(shard_id, move) if move else ""
    if cursor:
        raise CursorMismatch(f"rows of move {move} have come in up to {cursor!r}", detail={"cursor": cursor})
    now = None if epoch is None else slots_at(shard_id)
    if epoch is not None and now is not None and now.epoch > epoch:
        raise StaleScope(
            f"the slots of this copy were changed at epoch {now.epoch}, after {epoch}", detail={"epoch": now.epoch}
        )


@storage_faults()
def cursor_of(shard_id: int, move: str) -> str:
    """Return where the next rows of a move have to begin, "" at the beginning."""
    return _cursor(shard_id, move)


@storage_faults()
def cursor_forget(shard_id: int, move: str) -> None:
    """Let a move begin anew, or end it: the rows that came in stay."""
    MoveCursor.objects.filter(shard_id=shard_id, move=move).delete()


def _add(open_log: log.OpenLog, moved: MovedRows, namespaces: Mapping[str, NamespaceSpec]) -> int:
    if not moved.operation.rows:
        return 0
    dimension = _dimension_here(open_log, moved.namespace, namespaces)
    if dimension is None:
        return 0
    if moved.dimension not in (None, dimension):
        raise DimensionMismatch(
            f"namespace {moved.namespace} has dimension {dimension}, got {moved.dimension} values", field="operations"
        )
    if open_log.tail_bytes + len(moved.payload) > settings.MLVDB_TAIL_HARD_BYTES:
        raise CheckpointBehind("the tail has reached MLVDB_TAIL_HARD_BYTES; a checkpoint is due", retry_after_s=2)
    operation = moved.operation
    open_log.add(moved.namespace, operation.kind, operation.rows, moved.payload, zlib.crc32(moved.payload))
    return operation.rows


def _dimension_here(open_log: log.OpenLog, uid: str, namespaces: Mapping[str, NamespaceSpec]) -> int | None:
    """Return the dimension of a namespace that lives here, made if need be; None where its rows are passed over."""
    row = Namespace.objects.filter(shard_id=open_log.head.shard_id, uid=uid).first()
    if row is not None:
        return None if row.dropped_at is not None else row.dimension
    spec = namespaces.get(uid)
    if spec is None or not namespace_adopt(open_log, spec):
        return None
    return spec.dimension


def _check_not_owned(shard_id: int, slots: SlotSet) -> None:
    now = slots_at(shard_id)
    owned = slots & (ALL_SLOTS if now is None else SlotSet(now.writable))
    if owned:
        raise SlotsOwned(
            f"clients may write {len(owned)} of these slots here",
            detail={"slots": owned.numbers[:_SLOTS_TOLD].tolist(), "count": len(owned)},
        )


def _all_of(operations: Sequence[MovedRows]) -> SlotSet:
    slots = NO_SLOTS
    for moved in operations:
        slots = slots | moved.slots
    return slots


def _cursor(shard_id: int, move: str) -> str:
    found = MoveCursor.objects.filter(shard_id=shard_id, move=move).values_list("cursor", flat=True).first()
    return found or ""
