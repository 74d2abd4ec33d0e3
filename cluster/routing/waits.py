"""How many threads of a worker may wait for others at the same time.

A request that waits, for another node or for its own copy to catch up, keeps a thread. Two threads of each worker are
kept from waiting, so that a node always has some for what its peers ask of it, none of which waits: whatever the number
of requests, and whoever waits for whom, waits cannot close a circle.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vectors.errors import Busy

KEPT_FREE = 2


class Waits:
    """The waiting threads of one process."""

    def __init__(self, threads: int) -> None:
        self.limit = max(1, threads - KEPT_FREE)
        self._free = threading.BoundedSemaphore(self.limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count the calling thread as waiting while the block runs; raise Busy when too many do."""
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
