"""The site's own periodic task."""

from __future__ import annotations

import os
import socket

from celery import shared_task

from mlvdb_site.heartbeats import ROUND, heartbeat_record


@shared_task(name="mlvdb_site.tasks.heartbeat")
def heartbeat() -> None:
    """Record that a task went all the way from beat through the broker to a worker's pool."""
    heartbeat_record(ROUND, owner=f"{socket.gethostname()}:{os.getpid()}")
