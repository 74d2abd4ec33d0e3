"""Locks on files between the processes of a node, always asked for with a deadline."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vectors.errors import StorageBusy


@contextmanager
def file_locked(path: Path, mode: int, *, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, in `mode` (fcntl.LOCK_SH or LOCK_EX). Raise StorageBusy.

    Threads of one process exclude each other too: every call opens the file for itself.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_descriptor(descriptor, mode, timeout_s=timeout_s)
        yield
    finally:
        os.close(descriptor)


def lock_descriptor(descriptor: int, mode: int, *, timeout_s: float) -> None:
    """Lock an open file until it is closed; raise StorageBusy when others hold it for `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # flock itself would wait for a stopped process for ever.
            if time.monotonic() >= deadline:
                raise StorageBusy("another request of this kind is at work", retry_after_s=1) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
