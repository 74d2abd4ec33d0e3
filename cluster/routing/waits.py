"""How many threads of a worker may wait for others at the same time.

A request that waits, for another node or for its own copy to catch up, keeps a thread. Two threads of each worker are
kept from waiting, so that a node always has some for what its peers ask of it, none of which waits: whatever the number
of requests, and whoever waits for whom, waits cannot close a circle.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vectors.errors import Busy

KEPT_FREE = 2

_is_counted: ContextVar[bool] = ContextVar("is_counted", default=False)


class Waits:
    """The waiting threads of one process."""

    def __init__(self, threads: int) -> None:
        self.limit = max(1, threads - KEPT_FREE)
        self._free = threading.BoundedSemaphore(self.limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count the calling thread as waiting while the block runs; raise Busy when too many do."""
        if _is_counted.get():
            yield
            return
        if not self._free.acquire(blocking=False):
            raise Busy(
                f"{self.limit} requests of this worker wait for other copies already",
                detail={"waiting": self.limit},
                retry_after_s=1,
            )
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def request_slot(self) -> Iterator[None]:
        """Count a request once while the block runs, whatever it waits for in there, also in the threads that call
        others on its behalf; raise Busy."""
        with self.slot():
            token = _is_counted.set(True)
            try:
                yield
            finally:
                _is_counted.reset(token)
