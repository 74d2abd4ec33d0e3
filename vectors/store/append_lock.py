"""The line in which the processes of a node wait to write its SQLite file; on PostgreSQL there is none.

SQLite's own waiting backs off to tens of milliseconds; an flock is handed on at once. It is asked for with a deadline,
so that a stopped process delays the others by at most MLVDB_DATABASE_TIMEOUT_S, and then they are refused.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.conf import settings
from django.db import connection

from vectors.errors import StorageBusy


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
def writers_in_line() -> Iterator[None]:
    """Be the one writer of the node's processes within the block; raise StorageBusy when the turn does not come."""
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
