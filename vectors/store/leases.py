"""Leases: one process at a time does what a lease's name stands for (a checkpoint of a shard, sending to a replica).

The holder bumps a counter; a contender takes the lease over after it has seen no bump for MLVDB_LEASE_S on its own
monotonic clock. Every effect checks the fencing token in its own transaction, so a holder that was only slow can do no
harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from django.conf import settings
from django.db import connection
from django.db.models import F

from vectors.errors import LeaseLost
from vectors.models import Lease as LeaseRow

logger = logging.getLogger(__name__)

_MERGES = 1 << 31


class _Seen(NamedTuple):
    token: int
    beats: int
    since: float


_seen: dict[str, _Seen] = {}


class Lease:
    """A held lease; a context manager that lets go at the end."""

    def __init__(self, name: str, owner: str, token: int) -> None:
        self.name, self.owner, self.token = name, owner, token
        self._stop = threading.Event()
        self._beater = threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Raise LeaseLost unless the lease is still this one; inside a transaction that holds until its end."""
        held = LeaseRow.objects.filter(name=self.name, token=self.token, owner=self.owner)
        if connection.features.has_select_for_update and connection.in_atomic_block:
            held = held.select_for_update()
        if not held.exists():
            raise LeaseLost(f"the lease {self.name} was taken over")

    def __enter__(self) -> Lease:
        self._beater.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beater.join(timeout=settings.MLVDB_LEASE_S)
        LeaseRow.objects.filter(name=self.name, token=self.token).update(owner="")

    def _beat(self) -> None:
        try:
            while not self._stop.wait(settings.MLVDB_LEASE_S / 5):
                try:
                    LeaseRow.objects.filter(name=self.name, token=self.token).update(beats=F("beats") + 1)
                except Exception:
                    # A missed bump is what the lease is made for; the token keeps a late effect out.
                    logger.warning("lease_bump_failed lease=%s", self.name, exc_info=True)
        finally:
            connection.close()


def checkpoint_lease(shard_id: int) -> str:
    """Return the name of the lease under which a shard's manifest and segment files are changed."""
    return f"checkpoint:{shard_id}"


def merge_lease(shard_id: int) -> str:
    """Return the name of the lease under which a shard's segments are merged and indexed."""
    return f"merge:{shard_id}"


def recall_lease(shard_id: int) -> str:
    """Return the name of the lease under which a shard's recall is measured."""
    return f"recall:{shard_id}"


def leases_forget(shard_id: int) -> None:
    """Remove the leases of a shard copy that goes: a database may give its id to the next one."""
    names = (checkpoint_lease(shard_id), merge_lease(shard_id), recall_lease(shard_id))
    LeaseRow.objects.filter(name__in=names).delete()


def merge_token(lease: Lease) -> int:
    """Return the token that files written under a merge lease carry: of a range apart from that of checkpoints."""
    return _MERGES + lease.token


def tokens_over(shard_id: int, lease: Lease) -> Callable[[int], bool]:
    """Return which tokens in the names of files are of leases that are no longer at work.

    Asked by the holder of the checkpoint lease *before* it reads what manifests list: a merge that ends later than this
    is taken to be at work, and of one that has ended the manifest can be read.
    """
    row = LeaseRow.objects.filter(name=merge_lease(shard_id)).first()
    merges = 0 if row is None else row.token if not row.owner else row.token - 1

    def is_over(token: int) -> bool:
        return token < lease.token if token < _MERGES else token - _MERGES <= merges

    return is_over


def take_lease(name: str, owner: str) -> Lease | None:
    """Take a lease; None while another holds it and is not yet seen silent for long enough.

    Silence is measured between calls of this process: a contender asks again, later.
    """
    row, _ = LeaseRow.objects.get_or_create(name=name)
    if row.owner:
        now = time.monotonic()
        seen = _seen.get(name)
        if seen is None or (seen.token, seen.beats) != (row.token, row.beats):
            _seen[name] = _Seen(row.token, row.beats, now)
            return None
        if now - seen.since < settings.MLVDB_LEASE_S:
            return None
        logger.warning("lease_taken_over lease=%s from=%s", name, row.owner)
    taken = LeaseRow.objects.filter(pk=row.pk, token=row.token, owner=row.owner, beats=row.beats).update(
        owner=owner, token=row.token + 1, beats=0
    )
    _seen.pop(name, None)
    return Lease(name, owner, row.token + 1) if taken else None


def seize_lease(name: str, owner: str) -> Lease:
    """Take a lease whoever holds it, for what makes the holder's work void; the new token keeps its effects out."""
    while True:
        row, _ = LeaseRow.objects.get_or_create(name=name)
        taken = LeaseRow.objects.filter(pk=row.pk, token=row.token).update(owner=owner, token=row.token + 1, beats=0)
        if taken:
            _seen.pop(name, None)
            return Lease(name, owner, row.token + 1)
