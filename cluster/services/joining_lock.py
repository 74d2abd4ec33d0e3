"""One at a time: what a node becomes when others tell it, a replica or a shard.

Each of the two looks at what the node is, drops its own empty copy, makes another, and writes down who it obeys now. In
between, the copy is empty and nobody's: two that did this at once would each take the other's for the node's own.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from vectors.store.file_lock import file_locked


@contextmanager
def joining() -> Iterator[None]:
    """Be the one who has this node join something within the block; raise StorageBusy when the turn does not come."""
    path = settings.NODE_FILES.root / "joining.lock"
    with file_locked(path, fcntl.LOCK_EX, timeout_s=settings.MLVDB_DATABASE_TIMEOUT_S):
        yield
