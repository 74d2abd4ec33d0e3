"""The scheduler of `celery beat`: django-celery-beat's, which works only while it holds the node's beat lease.

A second beat of the same node stands by and takes over when the first is gone. The lease is the heartbeat row `beat`:
its holder counts `beats` up, a contender takes it after seeing no change for MLVDB_LEASE_S on its own clock.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone
from django_celery_beat.schedulers import DatabaseScheduler

from mlvdb_site.heartbeats import BEAT
from mlvdb_site.models import ProcessHeartbeat

logger = logging.getLogger(__name__)

STANDBY_INTERVAL_S = 1.0


class BeatLease:
    """The lease of one process; `hold` is called again and again."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *, lease_s: float) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.held = False
        self._lease_s = lease_s
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0
        self._bumped_at = float("-inf")

    def hold(self) -> bool:
        """Bump the lease, or take it when it is free or has run out; return whether it is ours."""
        now = self.timer()
        if self.held and now - self._bumped_at < self._lease_s / 5:
            return True
        held = self._compare_and_set(now)
        if held != self.held:
            logger.info("beat lease %s owner=%s", "taken" if held else "lost", self.owner)
        self.held = held
        return held

    def release(self) -> None:
        """Let another beat begin at once."""
        if self.held:
            self._rows().filter(owner=self.owner).update(owner="")
            self.held = False

    def _rows(self) -> Any:
        return ProcessHeartbeat.objects.filter(node=settings.MLVDB_NODE_ID, name=BEAT)

    def _compare_and_set(self, now: float) -> bool:
        row, made = ProcessHeartbeat.objects.get_or_create(
            node=settings.MLVDB_NODE_ID,
            name=BEAT,
            defaults={"owner": self.owner, "beats": 1, "seen_at": timezone.now()},
        )
        if made:
            self._bumped_at = now
            return True
        state = (row.owner, row.beats)
        if row.owner not in ("", self.owner):
            if state != self._seen:
                self._seen, self._seen_at = state, now
                return False
            if now - self._seen_at < self._lease_s:
                return False
        changed = (
            self._rows()
            .filter(owner=row.owner, beats=row.beats)
            .update(
                owner=self.owner,
                beats=row.beats + 1,
                seen_at=timezone.now(),
                since=row.since if row.owner == self.owner else timezone.now(),
            )
        )
        if changed:
            self._bumped_at = now
        return bool(changed)


class LeasedScheduler(DatabaseScheduler):
    """Ticks only while it holds the lease."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lease = BeatLease(lease_s=settings.MLVDB_LEASE_S)
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due and return the seconds until the next call."""
        try:
            if not self._lease.hold():
                return STANDBY_INTERVAL_S
        except DatabaseError as error:
            logger.warning("beat lease not renewed error=%r", str(error))
            return STANDBY_INTERVAL_S
        self._forget_runs_to_come()
        return float(super().tick(*args, **kwargs))

    def _forget_runs_to_come(self) -> None:
        """Let intervals begin now where the last run lies in the future: the wall clock was set back.

        Celery measures them by that clock: nothing would be sent until it has made up for what it was set back by.
        """
        later = [entry for entry in (self._schedule or {}).values() if entry.last_run_at > entry.default_now()]
        for entry in later:
            entry.last_run_at = entry.model.last_run_at = entry.default_now()
        if later:
            logger.warning("wall clock set back; schedules begin anew entries=%d", len(later))
            self._heap = None

    def close(self) -> None:
        """Save the last runs and give the lease back."""
        super().close()
        try:
            self._lease.release()
        except DatabaseError as error:
            logger.warning("beat lease not released error=%r", str(error))
