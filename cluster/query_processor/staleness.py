"""How far a replica's copy may be behind its primary, as far as anyone here can tell.

The primary says now and then how far its log is (with each slice, and with each probe), and each time `Placement.heard`
goes up by one. No clock is shared between nodes or processes, so a process goes by its own: it looks at `heard` every
second, and a primary was heard no earlier than at the look before the one that found it changed. After
MLVDB_STALE_AFTER_S without a change, and before a process has seen the first one, the lag is unknown.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.db import DatabaseError, connection

from vectors.store.statements import one

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_READ = "SELECT primary_seq, heard FROM cluster_placement WHERE shard = %s"


@dataclass(slots=True)
class _Heard:
    """What a process has seen of one placement."""

    count: int
    looked_at: float
    since: float | None = None
    """The earliest moment at which the primary may have been heard last; None before a change was seen."""


class Hearing:
    """When the primaries of this process's replicas were heard. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, looks_on: bool = True) -> None:
        self._clock = clock
        self._looks_on = looks_on
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def lag(self, shard_uid: str, seq: int) -> int | None:
        """Return how many operations a copy at `seq` lacks, as the primary was last heard; None when that is too long
        ago to mean anything. Raise the errors of `django.db`."""
        self._see_to_looks()
        row = one(_READ, (shard_uid,))
        if row is None:
            return None
        primary_seq, count = row
        if not self._note(shard_uid, int(count)):
            return None
        return max(0, int(primary_seq) - seq)

    def stop(self) -> None:
        """Look no more: the thread ends before this returns."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _note(self, shard_uid: str, count: int) -> bool:
        """Take in a look; return whether the primary was heard not long ago."""
        now = self._clock()
        with self._lock:
            heard = self._heard.get(shard_uid)
            if heard is None:
                self._heard[shard_uid] = _Heard(count, now)
                return False
            if count != heard.count:
                heard.count, heard.since = count, heard.looked_at
            heard.looked_at = now
            return heard.since is not None and now - heard.since <= settings.MLVDB_STALE_AFTER_S

    def _see_to_looks(self) -> None:
        if not self._looks_on or (self._thread is not None and self._thread.is_alive()):
            return
        with self._lock:
            if not self._stopped.is_set() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._look_on, name="hearing", daemon=True)
                self._thread.start()

    def _look_on(self) -> None:
        """Look at `heard` between reads, so that a change is noticed soon after it happened."""
        while not self._stopped.wait(LOOK_EVERY_S):
            try:
                for shard_uid in list(self._heard):
                    row = one(_READ, (shard_uid,))
                    if row is not None:
                        self._note(shard_uid, int(row[1]))
            except DatabaseError as error:
                logger.info("hearing_failed error=%s", error)
            finally:
                connection.close()


_hearing: Hearing | None = None


def hearing() -> Hearing:
    """Return what this process has heard; a forked child begins anew."""
    global _hearing
    if _hearing is None:
        _hearing = Hearing()
    return _hearing


def reset() -> None:
    """Forget what this process has heard, and end its thread (tests)."""
    global _hearing
    current, _hearing = _hearing, None
    if current is not None:
        current.stop()


def _forget_after_fork() -> None:
    global _hearing
    _hearing = None


os.register_at_fork(after_in_child=_forget_after_fork)
