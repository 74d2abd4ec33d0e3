"""Which background processes of this node are alive, as far as their last signs of life tell."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from mlvdb_site.models import ProcessHeartbeat

logger = logging.getLogger(__name__)

BEAT = "beat"
ROUND = "round"
QUEUES = ("replication", "health", "maintenance")

HEARTBEAT_INTERVAL_S = 10.0
ALIVE_WITHIN_S = 35.0


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The last sign of life of a process; `age_s` is None when there never was one, `for_s` how long it gives them."""

    name: str
    alive: bool
    seen_at: datetime | None
    age_s: float | None
    for_s: float = 0.0


def worker_name(queue: str) -> str:
    """Return the name under which workers of `queue` are recorded."""
    return f"worker:{queue}"


def heartbeat_record(name: str, *, owner: str) -> None:
    """Record a sign of life of `name`, whoever gave the one before."""
    now = timezone.now()
    rows = ProcessHeartbeat.objects.filter(node=settings.MLVDB_NODE_ID, name=name)
    if rows.update(owner=owner, seen_at=now, beats=F("beats") + 1):
        return
    with transaction.atomic():
        rows.get_or_create(
            node=settings.MLVDB_NODE_ID, name=name, defaults={"owner": owner, "seen_at": now, "beats": 1}
        )


def process_states() -> dict[str, ProcessState]:
    """Return {name: state} of beat, of the worker of each queue, and of the round from beat to a worker's pool."""
    now = timezone.now()
    rows = {row.name: row for row in ProcessHeartbeat.objects.filter(node=settings.MLVDB_NODE_ID)}
    states = {}
    for name in (BEAT, ROUND, *map(worker_name, QUEUES)):
        row = rows.get(name)
        if row is None:
            states[name] = ProcessState(name, alive=False, seen_at=None, age_s=None)
            continue
        age = max(0.0, (now - row.seen_at).total_seconds())
        lasting = max(0.0, (now - row.since).total_seconds())
        states[name] = ProcessState(name, age <= ALIVE_WITHIN_S, row.seen_at, age, lasting)
    return states


def process_warnings(states: dict[str, ProcessState] | None = None) -> list[str]:
    """Return a sentence for each thing that a person should look after, none when all is well."""
    states = process_states() if states is None else states
    warnings = []
    dead = [queue for queue in QUEUES if not states[worker_name(queue)].alive]
    if dead:
        queues = " and ".join((", ".join(dead[:-1]), dead[-1])) if len(dead) > 1 else dead[0]
        warnings.append(
            f"No Celery worker serves the queue{'s' if len(dead) > 1 else ''} {queues}: is it running, and the broker?"
        )
    if not states[BEAT].alive:
        warnings.append("Celery beat is not running: nothing is started by schedule.")
    # A beat that has just started has not sent anything yet.
    settled = states[BEAT].alive and states[BEAT].for_s > ALIVE_WITHIN_S
    if settled and states[worker_name("health")].alive and not states[ROUND].alive:
        warnings.append("Celery beat and workers are running, but what beat sends is not being executed.")
    return warnings
