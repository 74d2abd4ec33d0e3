"""The maintenance lease of a shard: one process at a time checkpoints it.

The holder bumps a counter; a contender takes the lease over after it has seen no bump for MLVDB_LEASE_S on its own
monotonic clock. Every effect checks the fencing token in its own transaction, so a holder that was only slow can do no
harm.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import NamedTuple

from django.conf import settings
from django.db import connection
from django.db.models import F

from vectors.errors import LeaseLost
from vectors.models import MaintenanceLease

logger = logging.getLogger(__name__)


class _Seen(NamedTuple):
    token: int
    beats: int
    since: float


_seen: dict[int, _Seen] = {}


class Lease:
    """A held lease; a context manager that lets go at the end."""

    def __init__(self, shard_id: int, owner: str, token: int) -> None:
        self.shard_id, self.owner, self.token = shard_id, owner, token
        self._stop = threading.Event()
        self._beater = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Raise LeaseLost unless the lease is still this one; inside a transaction that holds until its end."""
        held = MaintenanceLease.objects.filter(shard_id=self.shard_id, token=self.token, owner=self.owner)
        if connection.features.has_select_for_update:
            held = held.select_for_update()
        if not held.exists():
            raise LeaseLost(f"the maintenance lease of shard copy {self.shard_id} was taken over")

    def __enter__(self) -> Lease:
        self._beater.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beater.join(timeout=settings.MLVDB_LEASE_S)
        MaintenanceLease.objects.filter(shard_id=self.shard_id, token=self.token).update(owner="")

    def _beat(self) -> None:
        try:
            while not self._stop.wait(settings.MLVDB_LEASE_S / 5):
                try:
                    MaintenanceLease.objects.filter(shard_id=self.shard_id, token=self.token).update(
                        beats=F("beats") + 1
                    )
                except Exception:
                    # A missed bump is what the lease is made for; the token keeps a late effect out.
                    logger.warning("lease_bump_failed shard=%s", self.shard_id, exc_info=True)
        finally:
            connection.close()


def take_lease(shard_id: int, owner: str) -> Lease | None:
    """Take the maintenance lease of a shard; None while another holds it and is not yet seen silent for long enough.

    Silence is measured between calls of this process: a contender asks again, later.
    """
    row, _ = MaintenanceLease.objects.get_or_create(shard_id=shard_id)
    if row.owner:
        now = time.monotonic()
        seen = _seen.get(shard_id)
        if seen is None or (seen.token, seen.beats) != (row.token, row.beats):
            _seen[shard_id] = _Seen(row.token, row.beats, now)
            return None
        if now - seen.since < settings.MLVDB_LEASE_S:
            return None
        logger.warning("lease_taken_over shard=%s from=%s", shard_id, row.owner)
    taken = MaintenanceLease.objects.filter(pk=row.pk, token=row.token, owner=row.owner, beats=row.beats).update(
        owner=owner, token=row.token + 1, beats=0
    )
    _seen.pop(shard_id, None)
    return Lease(shard_id, owner, row.token + 1) if taken else None
