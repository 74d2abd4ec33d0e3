"""Clients' writes on their way into a log, several to a commit.

Writers of one process queue up; the first takes everything that waits into one transaction (one fsync), so the rate of
small writes is not bound to the rate of syncs.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from django.conf import settings

from vectors.engine.ids import slots_of
from vectors.engine.operations import Kind
from vectors.errors import MLVectorDBError, StorageBusy
from vectors.store import log
from vectors.store.gate import check_open
from vectors.store.log import Position

_LOOK_AGAIN_S = 0.05


@dataclass(slots=True, eq=False)
class _Waiting:
    """A write in the queue, and what became of it."""

    namespace: str
    kind: Kind
    keys: Sequence[bytes]
    payload: bytes
    payload_crc32: int
    slots: np.ndarray | None
    position: Position | None = None
    error: Exception | None = None
    done: bool = False


class Appender:
    """Appends of this process to one shard's log, several waiting writes to a commit.

    `tail_bytes` is the length of the tail after the newest of them. The first append after a `knock_clear`, in
    whichever process, is the one whose process has to tell the senders: see `take_knock`.
    """

    def __init__(self, shard_id: int) -> None:
        self._shard_id = shard_id
        self.tail_bytes = 0
        self._knock_due = False
        self._has_gate = False
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._commit_lock = threading.Lock()

    def append(self, *, namespace: str, kind: Kind, keys: Sequence[bytes], payload: bytes) -> Position:
        """Commit one data entry, of the rows of `keys`, for a living namespace and return its position.

        Raise NotPrimary, NamespaceNotFound when it was dropped, SlotsClosed for rows of slots that are not to be
        written, CheckpointBehind at the hard limit of the tail,
        ShardDamaged, and StorageFull, StorageBusy or StorageError as the database fails. Then nothing was written.
        """
        # Where the log had a gate a moment ago, the slots are computed before anybody waits for the lock.
        slots = slots_of(keys) if self._has_gate else None
        waiting = _Waiting(namespace, kind, keys, payload, zlib.crc32(payload), slots)
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

    def take_knock(self) -> bool:
        """Whether an append of this process was the first since the senders looked: true once for each such append."""
        if not self._knock_due:
            return False
        with self._queue_lock:
            due, self._knock_due = self._knock_due, False
        return due

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
            with log.append_transaction(self._shard_id) as open_log:
                for waiting in group:
                    try:
                        waiting.position = self._add(open_log, waiting)
                    except MLVectorDBError as error:
                        waiting.error = error
            self.tail_bytes = open_log.tail_bytes
            if open_log.has_knocked:
                self._knock_due = True
        except Exception as error:
            for waiting in group:
                waiting.position, waiting.error = None, waiting.error or error
        finally:
            for waiting in group:
                waiting.done = True

    def _add(self, open_log: log.OpenLog, waiting: _Waiting) -> Position:
        head = open_log.head
        self._has_gate = head.slots_seq > 0
        if self._has_gate:
            open_log.check_writable()
            check_open(head, slots_of(waiting.keys) if waiting.slots is None else waiting.slots)
        return open_log.add_data(
            waiting.namespace, waiting.kind, len(waiting.keys), waiting.payload, waiting.payload_crc32
        )
