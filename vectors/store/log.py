"""The log of a shard copy: append and read, in plain SQL over the tables of `vectors.models`.

Append: writers of one process queue up; the first takes everything that waits into one transaction (one fsync), so
the rate of small writes is not bound to the rate of syncs. Between processes an flock orders the appends to an SQLite
file, since SQLite's own waiting backs off to tens of milliseconds. In the transaction the head row is locked, so seqs
are committed in order and without gaps.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connection, connections, transaction
from django.utils import timezone

from vectors.engine.operations import Kind, Operation, PayloadError, decode
from vectors.errors import (
    CheckpointBehind,
    CorruptRecord,
    MLVectorDBError,
    NamespaceNotFound,
    ShardDamaged,
    StorageBusy,
)
from vectors.store.faults import storage_faults

_STAMP = struct.Struct("<qqB32s")


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


class Position(NamedTuple):
    """Where an entry was committed."""

    term: int
    seq: int


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


_HEAD_COLUMNS = "id, uid, label, term, last_seq, incarnation, manifest, tail_bytes, damage"
_READ_HEADS = f"SELECT {_HEAD_COLUMNS} FROM vectors_shardhead ORDER BY id"
_READ_HEAD = f"SELECT {_HEAD_COLUMNS} FROM vectors_shardhead WHERE id = %s"
_LOCK_HEAD = _READ_HEAD + " FOR UPDATE"
_READ_ALIVE = "SELECT 1 FROM vectors_namespace WHERE shard_id = %s AND uid = %s AND dropped_at IS NULL"
_INSERT = (
    "INSERT INTO vectors_logentry (shard_id, seq, term, namespace, kind, rows, payload, crc32, created_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_ADVANCE = "UPDATE vectors_shardhead SET last_seq = %s, tail_bytes = tail_bytes + %s WHERE id = %s"
_READ_AFTER = (
    "SELECT seq, term, namespace, kind, payload, crc32 FROM vectors_logentry"
    " WHERE shard_id = %s AND seq > %s AND seq <= %s ORDER BY seq"
)
_FETCHED_ROWS = 16
_LOOK_AGAIN_S = 0.05


@storage_faults()
def read_heads() -> list[Head]:
    """Return the heads of this node's shard copies, oldest first. Raise StorageError and the like."""
    with connection.cursor() as cursor:
        cursor.execute(_READ_HEADS)
        return [Head._make(row) for row in cursor.fetchall()]


@storage_faults()
def read_head(shard_id: int) -> Head | None:
    """Return the head of one shard copy; one short statement, since every request asks.

    Raise StorageError and the like.
    """
    row = _one(_READ_HEAD, (shard_id,))
    return None if row is None else Head._make(row)


def _one(statement: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Run a statement of the hot path and return its first row.

    On SQLite it goes to the driver directly: Django's cursor costs three times the statement.
    """
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            found: tuple[Any, ...] | None = database.connection.execute(_for_sqlite(statement), parameters).fetchone()
            return found
    with database.cursor() as cursor:
        cursor.execute(statement, parameters)
        row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description is not None else None
        return row


@cache
def _for_sqlite(statement: str) -> str:
    return statement.replace("%s", "?")


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


@dataclass(slots=True, eq=False)
class _Waiting:
    """A write in the queue, and what became of it."""

    namespace: str
    kind: Kind
    rows: int
    payload: bytes
    payload_crc32: int
    position: Position | None = None
    error: Exception | None = None
    done: bool = False


class Appender:
    """Appends of this process to one shard's log, several waiting writes to a commit.

    `tail_bytes` is the length of the tail after the newest of them.
    """

    def __init__(self, shard_id: int) -> None:
        self._shard_id = shard_id
        self.tail_bytes = 0
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._commit_lock = threading.Lock()

    def append(self, *, namespace: str, kind: Kind, rows: int, payload: bytes) -> Position:
        """Commit one data entry for a living namespace and return its position.

        Raise NamespaceNotFound when it was dropped, CheckpointBehind at the hard limit of the tail, ShardDamaged, and
        StorageFull, StorageBusy or StorageError as the database fails. Then nothing was written.
        """
        waiting = _Waiting(namespace, kind, rows, payload, zlib.crc32(payload))
        with self._queue_lock:
            self._queue.append(waiting)
        deadline = time.monotonic() + settings.MLVDB_DATABASE_TIMEOUT_S
        # Whoever holds the lock may be committing this write along with its own.
        while not waiting.done:
            if self._commit_lock.acquire(timeout=_LOOK_AGAIN_S):
                try:
                    while not waiting.done:
                        self._commit(self._take())
                finally:
                    self._commit_lock.release()
            elif time.monotonic() > deadline and self._withdraw(waiting):
                raise StorageBusy("other writes hold the log for too long", retry_after_s=1)
        if waiting.error is not None:
            raise waiting.error
        assert waiting.position is not None
        return waiting.position

    def _withdraw(self, waiting: _Waiting) -> bool:
        with self._queue_lock:
            if waiting in self._queue:
                self._queue.remove(waiting)
                return True
        return False

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        total = 0
        with self._queue_lock:
            while self._queue and (
                not taken or total + len(self._queue[0].payload) <= settings.MLVDB_COMMIT_GROUP_BYTES
            ):
                total += len(self._queue[0].payload)
                taken.append(self._queue.pop(0))
        return taken

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            with append_transaction(self._shard_id) as log:
                for waiting in group:
                    try:
                        waiting.position = log.add_data(
                            waiting.namespace, waiting.kind, waiting.rows, waiting.payload, waiting.payload_crc32
                        )
                    except MLVectorDBError as error:
                        waiting.error = error
            self.tail_bytes = log.tail_bytes
        except Exception as error:
            for waiting in group:
                waiting.position, waiting.error = None, waiting.error or error
        finally:
            for waiting in group:
                waiting.done = True


class OpenLog:
    """A log whose head is locked, inside the transaction that appends to it."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._last_seq = head.last_seq
        self._bytes = 0
        self._alive: set[str] = set()

    def add_data(self, namespace: str, kind: Kind, rows: int, payload: bytes, payload_crc32: int) -> Position:
        """Add an entry of rows; refused also for a dropped namespace and for too long a tail."""
        if self.tail_bytes + len(payload) > settings.MLVDB_TAIL_HARD_BYTES:
            raise CheckpointBehind("the tail has reached MLVDB_TAIL_HARD_BYTES; a checkpoint is due", retry_after_s=2)
        if namespace not in self._alive:
            if _one(_READ_ALIVE, (self.head.shard_id, namespace)) is None:
                raise NamespaceNotFound("the namespace was dropped")
            self._alive.add(namespace)
        return self.add(namespace, kind, rows, payload, payload_crc32)

    def add(self, namespace: str, kind: Kind, rows: int, payload: bytes, payload_crc32: int) -> Position:
        """Add an entry; raise ShardDamaged for a shard that has lost data."""
        if self.head.damage is not None:
            raise ShardDamaged(
                f"shard {self.head.label} has lost data and is read-only", detail={"shard": self.head.label}
            )
        self._last_seq += 1
        self._bytes += len(payload)
        seq, term = self._last_seq, self.head.term
        crc32 = checksum(seq, term, kind, namespace, payload_crc32)
        _one(_INSERT, (self.head.shard_id, seq, term, namespace, int(kind), rows, payload, crc32, timezone.now()))
        return Position(term, seq)

    @property
    def tail_bytes(self) -> int:
        """Payload bytes of the tail with what was added."""
        return self.head.tail_bytes + self._bytes

    def close(self) -> None:
        """Move the head over what was added."""
        if self._last_seq != self.head.last_seq:
            _one(_ADVANCE, (self._last_seq, self._bytes, self.head.shard_id))


@contextmanager
def append_transaction(shard_id: int) -> Iterator[OpenLog]:
    """Open a transaction with the shard's head locked; what the block adds is committed, durably, when it ends."""
    with storage_faults(), _writers_in_line(), transaction.atomic(durable=True):
        row = _one(_LOCK_HEAD if connection.features.has_select_for_update else _READ_HEAD, (shard_id,))
        if row is None:
            raise ShardDamaged(f"shard copy {shard_id} is not on this node")
        log = OpenLog(Head._make(row))
        yield log
        log.close()


class _LockFile:
    """An open lock file; closed when its thread ends and lets go of it."""

    def __init__(self, path: Path) -> None:
        self.opened = (os.getpid(), path)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.descriptor)


class _Line(threading.local):
    """The lock file of each thread: flock belongs to an open file, so threads must not share one."""

    file: _LockFile | None = None


_line = _Line()


@contextmanager
def _writers_in_line() -> Iterator[None]:
    if connection.vendor != "sqlite":
        yield
        return
    path = settings.NODE_FILES.append_lock
    file = _line.file
    if file is None or file.opened != (os.getpid(), path):
        file = _line.file = _LockFile(path)
    deadline = time.monotonic() + settings.MLVDB_DATABASE_TIMEOUT_S
    pause_s = 0.00005
    while True:
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # A lock with a deadline: flock itself would wait for a stopped process for ever.
            if time.monotonic() > deadline:
                raise StorageBusy("another process holds the log for too long", retry_after_s=1) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.001)
    try:
        yield
    finally:
        fcntl.flock(file.descriptor, fcntl.LOCK_UN)
