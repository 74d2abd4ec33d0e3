"""Due checkpoints and merges while nobody takes them up: the broker is down, or no worker is there.

They are normally asked for through Celery. When a tail stays due for longer than MLVDB_CHECKPOINT_GRACE_S, or segments
that are to be merged stay so for some sweeps more, and nobody at work moves the shard's lease for that, `serve` runs
the command itself, so that the tail's limits never stop writes because of a broker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec

from django.conf import settings
from django.db import Error, connection

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
RETRY_AFTER_S = 30.0
# The sweep of Celery sees a small tail grow old a little later than this process does, and is to come first.
PATIENCE = 1.5
# Nothing waits for a merge but speed, and the sweep of Celery asks for it every quarter of a minute.
MERGE_GRACE_S = 40.0
MERGES_EVERY_S = 15.0
_MERGE = "merge "

# What is known of a due shard's lease: owner, token and the counter its holder bumps.
_Lease = tuple[str, int, int]


class CheckpointWatch:
    """Looks at the heads of the shards; `due` says whether the supervisor has to act now."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._due_since: dict[str, tuple[float, object]] = {}
        self._not_before = 0.0
        self._merges: list[int] = []
        self._merges_seen_at = float("-inf")

    def due(self) -> bool:
        """Return whether some shard has been due for longer than the grace, without anybody at work on it."""
        now = self.clock()
        try:
            if now - self._merges_seen_at >= MERGES_EVERY_S:
                self._merges_seen_at, self._merges = now, _merges_due()
            merges = _merge_leases() if self._merges else None
            tails = {**_due_tails(), **{f"{_MERGE}{pk}": merges for pk in self._merges}}
        except Error as error:
            logger.warning("checkpoint watch cannot read the database: %s", error)
            connection.close()
            return False
        since: dict[str, tuple[float, object]] = {}
        for uid, lease in tails.items():
            known = self._due_since.get(uid)
            # A lease that moves is somebody at work: the grace starts again.
            since[uid] = known if known is not None and known[1] == lease else (now, lease)
        self._due_since = since
        waited = [
            now - start - (MERGE_GRACE_S if name.startswith(_MERGE) else 0.0) for name, (start, _) in since.items()
        ]
        return now >= self._not_before and any(wait > settings.MLVDB_CHECKPOINT_GRACE_S for wait in waited)

    def acted(self) -> None:
        """Take note that the command was started; a failing one is not repeated at once."""
        self._not_before = self.clock() + RETRY_AFTER_S
        self._due_since.clear()


def _merges_due() -> list[int]:
    """Return the shards, by id, whose segments are to be merged or indexed."""
    from vectors.models import ShardHead
    from vectors.store.merging import merge_due

    # The library itself is not for this process, from which others are forked.
    indexing = find_spec("faiss") is not None
    return [head.pk for head in ShardHead.objects.all() if merge_due(head, indexing=indexing)]


def _merge_leases() -> object:
    """Return the merge leases of all shards: one merge is at work at a time, and the others wait for it."""
    from vectors.models import Lease

    rows = Lease.objects.filter(name__startswith="merge:").order_by("name")
    return tuple(rows.values_list("name", "owner", "token", "beats"))


def _lease_of(name: str) -> _Lease | None:
    from vectors.models import Lease

    lease = Lease.objects.filter(name=name).first()
    return None if lease is None else (lease.owner, lease.token, lease.beats)


def _due_tails() -> dict[str, object]:
    """Return {shard uid: its lease} for every shard whose checkpoint is due."""
    from vectors.models import ShardHead
    from vectors.store.checkpoint import checkpoint_due
    from vectors.store.leases import checkpoint_lease

    due: dict[str, object] = {}
    for head in ShardHead.objects.all():
        if checkpoint_due(head, patience=PATIENCE):
            due[head.uid] = _lease_of(checkpoint_lease(head.pk))
    return due
