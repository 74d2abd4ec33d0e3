"""The picture that each process keeps, and when it is read anew.

That is when the topology marker has changed, which every change of registry, placement or health sets in its own
transaction; one short statement per request finds that out. While the database cannot be read, the last picture stays.
Progress (positions, what was heard) sets no marker: a picture with copies is read anew behind requests when it is older
than a moment, and carries positions as of then.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from django.db import DatabaseError

from cluster.topology.reading import read_topology
from cluster.topology.views import TopologyView
from mlvdb_site.markers import topology_marker

logger = logging.getLogger(__name__)

_TRIES = 5
REFRESH_EVERY_S = 1.0
"""Age at which a picture with copies in it is read anew although its marker is the same."""


def topology() -> TopologyView:
    """Return the topology as committed now, or the last one known while it cannot be read."""
    return _cache.get()


def topology_committed() -> TopologyView:
    """Return the topology as committed now. Raise the errors of `django.db` while it cannot be read."""
    return _cache.get(is_strict=True)


def topology_forget() -> None:
    """Forget the picture: for tests, and for a process that was given another database."""
    _cache.forget()


class _Cache:
    """The picture of one process."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[str | None, TopologyView] | None = None
        self._read_at = 0.0

    def get(self, *, is_strict: bool = False) -> TopologyView:
        try:
            marker = topology_marker()
        except DatabaseError as error:
            if is_strict:
                raise
            return self._last(error)
        seen = self._seen
        if seen is not None and seen[0] == marker:
            if seen[1].is_single or self.timer() - self._read_at < REFRESH_EVERY_S:
                return seen[1]
            # One thread pays for the new positions; the others go on with what is right but for them.
            if not self._lock.acquire(blocking=False):
                return seen[1]
        else:
            self._lock.acquire()
        try:
            return self._read(marker)
        except DatabaseError as error:
            if is_strict:
                raise
            return self._last(error)
        finally:
            self._lock.release()

    def forget(self) -> None:
        self._seen = None

    def _read(self, marker: str | None) -> TopologyView:
        seen = self._seen
        now = self.timer()
        if seen is not None and seen[0] == marker and now - self._read_at < REFRESH_EVERY_S:
            # Read while this thread waited for the lock.
            return seen[1]
        for _ in range(_TRIES):
            # Several statements, and no transaction, which would keep writers out on SQLite. A change in between has
            # another marker: half of it would be a table of one epoch with marks of the next.
            view, before, marker = read_topology(), marker, topology_marker()
            self._seen, self._read_at = (before, view), now
            if marker == before:
                break
        return view

    def _last(self, error: DatabaseError) -> TopologyView:
        seen = self._seen
        if seen is None:
            raise error
        logger.warning("topology_not_read error=%r", str(error))
        return seen[1]


_cache = _Cache()


def _forget_after_fork() -> None:
    global _cache
    # The lock may have been held by a thread that does not exist in the child.
    _cache = _Cache()


os.register_at_fork(after_in_child=_forget_after_fork)
