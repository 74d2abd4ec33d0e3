"""Due checkpoints while nobody takes them up: the broker is down, or no worker is there.

A due checkpoint is normally asked for through Celery. When a tail stays due for longer than
MLVDB_CHECKPOINT_GRACE_S and nobody holds the shard's maintenance lease alive, `serve` runs the command itself, so that
the tail's limits never stop writes because of a broker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django.conf import settings
from django.db import Error, connection

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
RETRY_AFTER_S = 30.0
# The sweep of Celery sees a small tail grow old a little later than this process does, and is to come first.
PATIENCE = 1.5

# What is known of a due shard's lease: owner, token and the counter its holder bumps.
_Lease = tuple[str, int, int]


class CheckpointWatch:
    """Looks at the heads of the shards; `due` says whether the supervisor has to act now."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._due_since: dict[str, tuple[float, _Lease | None]] = {}
        self._not_before = 0.0

    def due(self) -> bool:
        """Return whether some shard has been due for longer than the grace, without anybody at work on it."""
        now = self.clock()
        try:
            tails = _due_tails()
        except Error as error:
            logger.warning("checkpoint watch cannot read the database: %s", error)
            connection.close()
            return False
        since: dict[str, tuple[float, _Lease | None]] = {}
        for uid, lease in tails.items():
            known = self._due_since.get(uid)
            # A lease that moves is somebody at work: the grace starts again.
            since[uid] = known if known is not None and known[1] == lease else (now, lease)
        self._due_since = since
        waited = [now - start for start, _lease in since.values()]
        return now >= self._not_before and any(wait > settings.MLVDB_CHECKPOINT_GRACE_S for wait in waited)

    def acted(self) -> None:
        """Take note that the command was started; a failing one is not repeated at once."""
        self._not_before = self.clock() + RETRY_AFTER_S
        self._due_since.clear()


def _due_tails() -> dict[str, _Lease | None]:
    """Return {shard uid: its lease} for every shard whose checkpoint is due."""
    from vectors.models import Lease, ShardHead
    from vectors.store.checkpoint import checkpoint_due
    from vectors.store.leases import checkpoint_lease

    due: dict[str, _Lease | None] = {}
    for head in ShardHead.objects.all():
        if checkpoint_due(head, patience=PATIENCE):
            lease = Lease.objects.filter(name=checkpoint_lease(head.pk)).first()
            due[head.uid] = (lease.owner, lease.token, lease.beats) if lease is not None else None
    return due
