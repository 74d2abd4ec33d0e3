"""Pages of a move: what its source gives of some slots, first the rows that are there, then what the log did to them.

Rows are read namespace by namespace in key order, each page from the state of its moment, while writes go on; then the
log after a position noted before the first page is followed. Doing again to a row what its page had seen already leads
to the same end: an upsert or delete leaves nothing of what was before it, and patches merge key by key, the last one of
each key winning.

A delete by filter says "as far as they have not changed since", by seqs that mean nothing in another log. In its place
go the states of its keys as they are now, upserts and deletes: states of later than the entry, which is to a follower
what a page of rows is. What the entries in between did is followed after it, and ends in the same.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter

import numpy as np
from django.conf import settings

from vectors.engine import ids
from vectors.engine.namespace import NamespaceSpec, NamespaceView
from vectors.engine.operations import ClearSlots, Delete, Operation, Patch, StartTerm, Upsert
from vectors.engine.packed import PackedBytes
from vectors.engine.parts import FrozenPart, PartView
from vectors.engine.shard import ShardEngine
from vectors.engine.slots import SlotSet
from vectors.errors import InvalidInput, LogMismatch
from vectors.store.log import Entry, Position

_KEY = itemgetter(0)


@dataclass(frozen=True, slots=True)
class RowsPage:
    """Rows of some slots, batch by batch with the namespace of each; the next page goes on at `cursor`."""

    batches: Sequence[tuple[NamespaceSpec, Upsert]]
    cursor: str
    is_last: bool
    rows: int
    size_bytes: int

    @property
    def operations(self) -> list[tuple[str, Operation]]:
        """The batches as `MovingCopy.take` has them, with the uid of each one's namespace."""
        return [(spec.uid, upsert) for spec, upsert in self.batches]

    @property
    def namespaces(self) -> dict[str, NamespaceSpec]:
        """The namespaces of the batches by uid, as the source has them."""
        return {spec.uid: spec for spec, _ in self.batches}


@dataclass(frozen=True, slots=True)
class EntriesPage:
    """What entries up to `position` did to rows of some slots, in order, with the uids of the namespaces."""

    operations: Sequence[tuple[str, Operation]]
    position: Position
    is_at_head: bool

    @property
    def rows(self) -> int:
        """Rows in the operations."""
        return sum(operation.rows for _, operation in self.operations)

    @property
    def size_bytes(self) -> int:
        """Their bytes, as `size_bytes_of` counts them."""
        return sum(size_bytes_of(operation) for _, operation in self.operations)


def rows_page(engine: ShardEngine, slots: SlotSet, *, after: str, max_bytes: int) -> RowsPage:
    """Return the rows of `slots` after a cursor ("": from the first), about `max_bytes` of them but at least one.

    Raise InvalidInput for what is no cursor.
    """
    begin_uid, begin_key = _read_cursor(after)
    with engine.lock:
        views = sorted((space.view() for space in engine.namespaces()), key=lambda view: view.spec.uid)
    batches: list[tuple[NamespaceSpec, Upsert]] = []
    cursor, rows, size = after, 0, 0
    for view in views:
        if view.spec.uid < begin_uid:
            continue
        key = begin_key if view.spec.uid == begin_uid else None
        masked = view.only(slots)
        more = True
        while more:
            if size >= max_bytes:
                return RowsPage(batches, cursor, False, rows, size)
            upsert, more, bytes_read = _batch(masked, after=key, max_bytes=max_bytes - size)
            if upsert is None:
                break
            batches.append((view.spec, upsert))
            key = upsert.keys[-1]
            cursor, rows, size = _cursor(view.spec.uid, key), rows + upsert.rows, size + bytes_read
    return RowsPage(batches, cursor, True, rows, size)


def entries_page(
    engine: ShardEngine, slots: SlotSet, entries: Sequence[Entry], *, after: Position, head: Position, max_bytes: int
) -> EntriesPage:
    """Return what `entries`, which follow `after` and are applied in `engine`, did to the rows of `slots`.

    The page ends with the entry that makes it `max_bytes` long: one may bring more than it takes in the log, where
    rows that a filter had chosen are there again.

    Raise LogMismatch where they go on in another term: what was read of the states before it may be in no log any
    more, and the rows are to be read anew; likewise where rows of `slots` were cleared, of which a move is no source.
    Raise CorruptRecord.
    """
    operations: list[tuple[str, Operation]] = []
    position, counted, size_bytes = after, 0, 0
    for entry in entries:
        if size_bytes >= max_bytes:
            break
        operation = entry.operation()
        if isinstance(operation, StartTerm) or entry.term != after.term:
            raise LogMismatch(
                f"the log goes on in term {entry.term} after {tuple(after)}: another primary",
                detail={"term": entry.term, "seq": entry.seq},
            )
        if isinstance(operation, Delete) and operation.resolved_at is not None:
            keys = [key for key, inside in zip(operation.keys, _inside(operation.keys, slots), strict=True) if inside]
            operations.extend((entry.namespace, state) for state in _states(engine, entry.namespace, keys))
        elif isinstance(operation, ClearSlots) and SlotSet(operation.slots) & slots:
            raise LogMismatch(
                f"rows of the slots were cleared by entry {entry.seq}", detail={"term": entry.term, "seq": entry.seq}
            )
        elif isinstance(operation, (Upsert, Patch, Delete)):
            part = _part(operation, slots)
            if part is not None:
                operations.append((entry.namespace, part))
        position = Position(entry.term, entry.seq)
        size_bytes += sum(size_bytes_of(operation) for _, operation in operations[counted:])
        counted = len(operations)
    return EntriesPage(operations, position, position.seq >= head.seq)


def count_slots(engine: ShardEngine) -> tuple[np.ndarray, np.ndarray]:
    """Return rows alive and their bytes, as pages count them, by slot: (16384,) int64 each."""
    rows, sizes = np.zeros(ids.SLOT_COUNT, dtype=np.int64), np.zeros(ids.SLOT_COUNT, dtype=np.int64)
    with engine.lock:
        views = [space.view() for space in engine.namespaces()]
    for view in views:
        for part in view.parts:
            slots, text_bytes = part.part.slots[: part.rows], part.part.text_bytes(part.rows)
            if part.living is not None:
                slots, text_bytes = slots[part.living], text_bytes[part.living]
            counts = np.bincount(slots, minlength=ids.SLOT_COUNT)
            rows += counts
            sizes += counts * (4 * view.spec.dimension)
            sizes += np.bincount(slots, weights=text_bytes, minlength=ids.SLOT_COUNT).astype(np.int64)
    return rows, sizes


def count_in(engine: ShardEngine, slots: SlotSet) -> int:
    """Return how many living rows are in some slots."""
    with engine.lock:
        views = [space.view() for space in engine.namespaces()]
    return sum(part.only(slots).alive for view in views for part in view.parts)


def size_bytes_of(operation: Operation) -> int:
    """Return the bytes of values, keys and metadata that an operation brings: what plans and pages are measured by."""
    if isinstance(operation, Upsert):
        return operation.values.nbytes + _text_bytes(operation.keys) + _text_bytes(operation.metadata)
    if isinstance(operation, Patch):
        return _text_bytes(operation.keys) + _text_bytes(operation.patches)
    return _text_bytes(operation.keys) if isinstance(operation, Delete) else 0


def _batch(view: NamespaceView, *, after: bytes | None, max_bytes: int) -> tuple[Upsert | None, bool, int]:
    """Return rows of a view after a key, if there are more, and the bytes of those returned."""
    dimension = view.spec.dimension
    found = _first_rows(view, after=after, limit=1 + min(settings.MLVDB_MAX_BATCH, max_bytes // (4 * dimension) + 1))
    if not found:
        return None, False, 0
    numbers = {part: number for number, part in enumerate(view.parts)}
    owners = np.array([numbers[part] for _, part, _ in found])
    rows = np.array([row for _, _, row in found])
    sizes = np.full(len(found), 4 * dimension, dtype=np.int64)
    for number in np.unique(owners).tolist():
        mine = owners == number
        sizes[mine] += view.parts[number].part.text_bytes(view.parts[number].rows)[rows[mine]]
    sums = np.cumsum(sizes)
    # The row that reaches the size is the last, at most one batch.
    count = min(len(found), settings.MLVDB_MAX_BATCH, int(np.searchsorted(sums, max_bytes)) + 1)
    values = np.empty((count, dimension), dtype=np.float32)
    metadata = [b""] * count
    for number in np.unique(owners[:count]).tolist():
        part, places = view.parts[number].part, np.flatnonzero(owners[:count] == number)
        chosen = rows[places]
        values[places] = part.matrix[chosen]
        texts = part.metadata
        there = texts.take(chosen) if isinstance(texts, PackedBytes) else [texts[row] for row in chosen.tolist()]
        for place, text in zip(places.tolist(), there, strict=True):
            metadata[place] = text
    keys = [key for key, _, _ in found[:count]]
    return Upsert(keys, values, metadata), count < len(found), int(sums[count - 1])


def _first_rows(view: NamespaceView, *, after: bytes | None, limit: int) -> list[tuple[bytes, PartView, int]]:
    """Return the first `limit` rows after a key, in key order: of each part its first, and of those the first."""
    found: list[tuple[bytes, PartView, int]] = []
    for frozen in view.frozen:
        part = frozen.part
        assert isinstance(part, FrozenPart)
        start = 0 if after is None else part.keys.position(after, after=True)
        if frozen.living is None:
            rows = np.arange(start, min(frozen.rows, start + limit))
        else:
            rows = start + np.flatnonzero(frozen.living[start:])[:limit]
        found.extend(zip(part.keys.take(rows), repeat(frozen), rows.tolist()))
    tail = view.sorted_tail
    begin = 0 if after is None else bisect_right(tail, after, key=_KEY)
    found.extend(tail[begin : begin + limit])
    found.sort(key=_KEY)
    return found[:limit]


def _text_bytes(texts: Sequence[bytes]) -> int:
    return sum(map(len, texts))


def _part(operation: Upsert | Patch | Delete, slots: SlotSet) -> Operation | None:
    inside = _inside(operation.keys, slots)
    if inside.all():
        return operation
    chosen = np.flatnonzero(inside).tolist()
    if not chosen:
        return None
    keys = [operation.keys[row] for row in chosen]
    if isinstance(operation, Upsert):
        return Upsert(keys, operation.values[chosen], [operation.metadata[row] for row in chosen])
    if isinstance(operation, Patch):
        return Patch(keys, [operation.patches[row] for row in chosen])
    return Delete(keys)


def _states(engine: ShardEngine, uid: str, keys: Sequence[bytes]) -> Iterator[Operation]:
    """Yield what makes rows of `keys` what they are in the engine now; nothing when the namespace has ended."""
    with engine.lock:
        space = next((space for space in engine.namespaces() if space.spec.uid == uid), None)
        if space is None or not keys:
            return
        places = space.find_many(keys)
    there = [(key, *place) for key, place in zip(keys, places, strict=True) if place is not None]
    gone = [key for key, place in zip(keys, places, strict=True) if place is None]
    if gone:
        yield Delete(gone)
    if there:
        values = np.stack([part.matrix[row] for _, part, row in there])
        yield Upsert([key for key, _, _ in there], values, [part.metadata[row] for _, part, row in there])


def _inside(keys: Sequence[bytes], slots: SlotSet) -> np.ndarray:
    return slots.has(ids.slots_of(keys))


def _cursor(uid: str, key: bytes) -> str:
    return f"{uid}.{urlsafe_b64encode(key).decode()}"


def _read_cursor(text: str) -> tuple[str, bytes | None]:
    if not text:
        return "", None
    uid, dot, key = text.partition(".")
    try:
        if not dot:
            raise ValueError("no key")
        return uid, urlsafe_b64decode(key)
    except ValueError:
        # Read as one it could be behind all rows, and nothing would be copied.
        raise InvalidInput("this is no cursor of rows", field="after") from None
