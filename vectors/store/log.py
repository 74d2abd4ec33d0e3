"""The log of a shard copy: its head and entries, in plain SQL over the tables of `vectors.models`.

Whatever changes a log does so in an `append_transaction`: the head row is locked in it, so seqs are committed in order
and without gaps, and a promise to a newer primary keeps out every append that comes after it. Clients' writes get
there through `vectors.store.appender`, the entries of a primary through `vectors.store.receive`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from vectors.engine.operations import Kind, Operation, PayloadError, SetSlots, decode, encode
from vectors.engine.slots import SlotSet
from vectors.errors import CheckpointBehind, CorruptRecord, NamespaceNotFound, NotPrimary, ShardDamaged
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults
from vectors.store.slot_rows import slots_add
from vectors.store.statements import many, one

_STAMP = struct.Struct("<qqB32s")


class Position(NamedTuple):
    """Where an entry stands in a log, and how far a log goes: positions compare by term, then seq."""

    term: int
    seq: int


START = Position(1, 0)
"""The position of a log without entries."""


class Head(NamedTuple):
    """The head of a log, read in one statement."""

    shard_id: int
    uid: str
    label: str
    term: int
    last_seq: int
    incarnation: int
    manifest: int
    tail_bytes: int
    damage: str | None
    manifest_seq: int
    promised_term: int
    voted_for: str
    is_primary: bool
    knocked: bool
    slots_seq: int = 0

    @property
    def position(self) -> Position:
        """Of the newest entry."""
        return Position(self.term, self.last_seq)

    @property
    def takes_writes(self) -> bool:
        """Whether clients' writes may be appended: by the primary, until it has promised a higher term."""
        return self.is_primary and self.promised_term == self.term


@dataclass(frozen=True, slots=True)
class Entry:
    """A log entry as it is read; `payload` is not checked yet."""

    seq: int
    term: int
    namespace: str
    kind: int
    payload: bytes
    crc32: int

    def operation(self) -> Operation:
        """Return what it does; raise CorruptRecord when its checksum or form is wrong."""
        if checksum(self.seq, self.term, self.kind, self.namespace, zlib.crc32(self.payload)) != self.crc32:
            raise CorruptRecord(f"the checksum of log entry {self.seq} is wrong", seq=self.seq)
        try:
            return decode(self.kind, self.payload)
        except PayloadError as error:
            raise CorruptRecord(f"log entry {self.seq}: {error}", seq=self.seq) from error


def checksum(seq: int, term: int, kind: int, namespace: str, payload_crc32: int) -> int:
    """Return the CRC-32 of a record: its payload's, carried on over where it stands and what it is."""
    return zlib.crc32(_STAMP.pack(seq, term, kind, namespace.encode()), payload_crc32)


_HEAD_COLUMNS = (
    "id, uid, label, term, last_seq, incarnation, manifest, tail_bytes, damage, manifest_seq, promised_term, voted_for,"
    " is_primary, knocked, slots_seq"
)
_READ_HEADS = f"SELECT {_HEAD_COLUMNS} FROM vectors_shardhead ORDER BY id"
_READ_HEAD = f"SELECT {_HEAD_COLUMNS} FROM vectors_shardhead WHERE id = %s"
_READ_MARK = "SELECT incarnation, last_seq FROM vectors_shardhead WHERE id = %s"
_LOCK_HEAD = _READ_HEAD + " FOR UPDATE"
_READ_ALIVE = "SELECT 1 FROM vectors_namespace WHERE shard_id = %s AND uid = %s AND dropped_at IS NULL"
_INSERT = (
    "INSERT INTO vectors_logentry (shard_id, seq, term, namespace, kind, rows, payload, crc32, created_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_ADVANCE = "UPDATE vectors_shardhead SET last_seq = %s, tail_bytes = tail_bytes + %s, knocked = TRUE WHERE id = %s"
_MOVE = (
    "UPDATE vectors_shardhead SET term = %s, last_seq = %s, tail_bytes = %s, incarnation = %s, promised_term = %s,"
    " voted_for = %s, is_primary = %s, knocked = %s WHERE id = %s"
)
_READ_KNOCKED = "SELECT knocked FROM vectors_shardhead WHERE id = %s"
_CLEAR_KNOCKED = "UPDATE vectors_shardhead SET knocked = FALSE WHERE id = %s"
_READ_AFTER = (
    "SELECT seq, term, namespace, kind, payload, crc32 FROM vectors_logentry"
    " WHERE shard_id = %s AND seq > %s AND seq <= %s ORDER BY seq"
)
_FETCHED_ROWS = 16


@storage_faults()
def read_heads() -> list[Head]:
    """Return the heads of this node's shard copies, oldest first. Raise StorageError and the like."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_HEADS)
        return [Head._make(row) for row in cursor.fetchall()]


@storage_faults()
def read_head(shard_id: int) -> Head | None:
    """Return the head of one shard copy. Raise StorageError and the like."""
    row = one(_READ_HEAD, (shard_id,))
    return None if row is None else Head._make(row)


@storage_faults()
def knock_clear(shard_id: int) -> None:
    """Let the next append tell the senders again; call it before reading the head that is to be sent.

    Raise StorageError and the like.
    """
    row = one(_READ_KNOCKED, (shard_id,))
    if row is not None and row[0]:
        with writers_in_line():
            one(_CLEAR_KNOCKED, (shard_id,))


@storage_faults()
def read_mark(shard_id: int) -> tuple[int, int] | None:
    """Return incarnation and last seq of one shard copy, of its head only what every request asks.

    Raise StorageError and the like.
    """
    row = one(_READ_MARK, (shard_id,))
    return None if row is None else (row[0], row[1])


def read_after(shard_id: int, seq: int, *, through: int) -> Iterator[Entry]:
    """Yield the entries after `seq` up to `through` in order, read in one snapshot as far as they are consumed.

    Raise StorageError and the like.
    """
    # PostgreSQL's driver takes an answer into memory as a whole: a long one stays at the server and comes in pieces.
    is_long = through - seq > _FETCHED_ROWS
    with storage_faults(), connection.chunked_cursor() if is_long else connection.cursor() as cursor:
        cursor.execute(_READ_AFTER, (shard_id, seq, through))
        while rows := cursor.fetchmany(_FETCHED_ROWS):
            for number, term, namespace, kind, payload, crc32 in rows:
                yield Entry(number, term, namespace, kind, bytes(payload), crc32)


class OpenLog:
    """A log whose head is locked, inside the transaction that changes it; `head` is what it was before."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._last_seq, self._term = head.last_seq, head.term
        self._bytes = 0
        self._alive: set[str] = set()
        self._slots_seq = head.slots_seq
        # What is seldom changed, by the field of the head; None where an append of the primary is all that happens.
        self._changes: dict[str, Any] | None = None

    def add_data(self, namespace: str, kind: Kind, rows: int, payload: bytes, payload_crc32: int) -> Position:
        """Add an entry of rows; refused also for a dropped namespace and for too long a tail."""
        self.check_writable()
        if self.tail_bytes + len(payload) > settings.MLVDB_TAIL_HARD_BYTES:
            raise CheckpointBehind("the tail has reached MLVDB_TAIL_HARD_BYTES; a checkpoint is due", retry_after_s=2)
        if namespace not in self._alive:
            if one(_READ_ALIVE, (self.head.shard_id, namespace)) is None:
                raise NamespaceNotFound("the namespace was dropped")
            self._alive.add(namespace)
        return self.add(namespace, kind, rows, payload, payload_crc32)

    def add(self, namespace: str, kind: Kind, rows: int, payload: bytes, payload_crc32: int) -> Position:
        """Add an entry as the primary; raise NotPrimary, and ShardDamaged for a shard that has lost data."""
        self.check_writable()
        check_whole(self.head)
        self._last_seq += 1
        self._bytes += len(payload)
        seq, term = self._last_seq, self._term
        crc32 = checksum(seq, term, kind, namespace, payload_crc32)
        one(_INSERT, (self.head.shard_id, seq, term, namespace, int(kind), rows, payload, crc32, timezone.now()))
        return Position(term, seq)

    def set_slots(self, epoch: int, writable: SlotSet) -> Position:
        """Say, as the primary, in which slots clients' rows may be written from here on; raise as `add` does."""
        operation = SetSlots(epoch, writable.packed)
        payload = encode(operation)
        position = self.add("", operation.kind, operation.rows, payload, zlib.crc32(payload))
        slots_add(self.head.shard_id, position.seq, operation)
        self._slots_seq = position.seq
        return position

    def copy(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """Add checked entries of the primary's log as they are, each with its number of rows; they must follow."""
        self._changes = self._changes or {}
        now = timezone.now()
        rows = []
        for entry, count in entries:
            assert entry.seq == self._last_seq + 1
            self._last_seq, self._term = entry.seq, entry.term
            self._bytes += len(entry.payload)
            rows.append(
                (
                    self.head.shard_id,
                    entry.seq,
                    entry.term,
                    entry.namespace,
                    entry.kind,
                    count,
                    entry.payload,
                    entry.crc32,
                    now,
                )
            )
        many(_INSERT, rows)

    def cut(self, to: Position, *, tail_bytes: int) -> None:
        """Move the head back to `to`, which leaves a tail of `tail_bytes`; engines of the longer log are void."""
        self._last_seq, self._term = to.seq, to.term
        self._bytes = tail_bytes - self.head.tail_bytes
        self._changes = {**(self._changes or {}), "incarnation": self.head.incarnation + 1}

    def promise(self, term: int, *, voted_for: str = "") -> None:
        """Refuse every older term from here on, this copy's own as well."""
        self._changes = {**(self._changes or {}), "promised_term": term, "voted_for": voted_for}

    def release(self) -> None:
        """Be a replica from here on."""
        self._changes = {**(self._changes or {}), "is_primary": False}

    def start(self, term: int, *, node: str) -> None:
        """Be the primary of `term` from here on: entries added are of that term."""
        self._changes = {"promised_term": term, "voted_for": node, "is_primary": True}
        self._term = term

    def check_writable(self) -> None:
        """Raise NotPrimary unless this copy orders its shard's writes and has promised nothing else."""
        head = self.head if self._changes is None else self.new_head
        if not head.is_primary or head.promised_term != self._term:
            raise NotPrimary(
                f"this copy of shard {head.label} takes no writes: another is, or becomes, its primary",
                detail={"shard": head.label, "term": head.term, "promised_term": head.promised_term},
            )

    @property
    def tail_bytes(self) -> int:
        """Payload bytes of the tail with what was added."""
        return self.head.tail_bytes + self._bytes

    @property
    def has_knocked(self) -> bool:
        """Whether what was added is the first since the senders looked."""
        return self._last_seq != self.head.last_seq and not self.head.knocked

    @property
    def new_head(self) -> Head:
        """The head as it is once this is committed."""
        head = self.head._replace(
            term=self._term,
            last_seq=self._last_seq,
            tail_bytes=self.tail_bytes,
            slots_seq=self._slots_seq,
            **(self._changes or {}),
        )
        return head._replace(knocked=head.knocked or (head.is_primary and head.last_seq != self.head.last_seq))

    def close(self) -> None:
        """Move the head over what was added."""
        if self._changes is not None:
            new = self.new_head
            one(
                _MOVE,
                (
                    new.term,
                    new.last_seq,
                    new.tail_bytes,
                    new.incarnation,
                    new.promised_term,
                    new.voted_for,
                    new.is_primary,
                    new.knocked,
                    new.shard_id,
                ),
            )
        elif self._last_seq != self.head.last_seq:
            one(_ADVANCE, (self._last_seq, self._bytes, self.head.shard_id))


def check_whole(head: Head) -> None:
    """Raise ShardDamaged for a shard that has lost data."""
    if head.damage is not None:
        raise ShardDamaged(f"shard {head.label} has lost data and is read-only", detail={"shard": head.label})


@contextmanager
def append_transaction(shard_id: int) -> Iterator[OpenLog]:
    """Open a transaction with the shard's head locked; what the block adds is committed, durably, when it ends."""
    with storage_faults(), writers_in_line(), transaction.atomic(durable=True), append_inside(shard_id) as log:
        yield log


@contextmanager
def append_inside(shard_id: int) -> Iterator[OpenLog]:
    """Lock the shard's head in a transaction of the caller's, who is in line, and add to its log there."""
    row = one(_LOCK_HEAD if connection.features.has_select_for_update else _READ_HEAD, (shard_id,))
    if row is None:
        raise ShardDamaged(f"shard copy {shard_id} is not on this node")
    log = OpenLog(Head._make(row))
    yield log
    log.close()
