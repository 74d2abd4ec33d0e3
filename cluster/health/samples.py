"""What one sample changes: the replica's row by compare-and-set, and the topology marker when its health changes.

Any process may bring a sample at any time: the health round, a person's check, a request whose connection was refused.
None of them holds a lock: whoever finds the row changed looks again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.conf import settings
from django.db import DatabaseError, transaction
from django.utils import timezone

from cluster.health.detector import Detection, detect
from cluster.health.probe import Probe
from cluster.models import HealthCheck, Replica
from cluster.replication.knocks import SHIP_TASK
from cluster.states import PeerHealth
from cluster.topology import topology
from mlvdb_site.celery import publish
from mlvdb_site.markers import topology_changed

logger = logging.getLogger(__name__)

_TRIES = 5
_MESSAGE = 500


class Change(NamedTuple):
    """What a sample made of a replica."""

    before: Detection
    after: Detection

    @property
    def is_recovery(self) -> bool:
        """Whether the replica is alive and was not."""
        return self.after.health is PeerHealth.ALIVE and self.before.health is not PeerHealth.ALIVE


def detection_of(replica: Replica) -> Detection:
    """Return what a replica's row says."""
    return Detection(PeerHealth(replica.health), replica.failures, replica.successes)


def sample_record(replica_id: int, *, ok: bool, error: str = "") -> Change | None:
    """Let the detector judge one more sample of a replica; None when the replica is gone.

    The row is written only when something changes. A replica that recovers is sent to at once: its back-off ends and a
    ship task is published, after the commit.
    """
    for _ in range(_TRIES):
        row = Replica.objects.filter(pk=replica_id).first()
        if row is None:
            return None
        before = detection_of(row)
        change = Change(before, detect(before, ok=ok))
        if _write(row, change, error[:_MESSAGE]):
            break
    else:
        # Others bring samples faster than this one can be written: theirs are as good.
        return None
    if change.before.health is not change.after.health:
        logger.log(
            logging.INFO if ok else logging.WARNING,
            "replica_health replica=%s health=%s before=%s error=%r",
            row.name,
            change.after.health,
            change.before.health,
            error,
        )
    if change.is_recovery:
        publish(SHIP_TASK, replica_id)
    return change


def refusal_record(url: str) -> None:
    """Note that a connection to `url` was refused: a replica there that counted as alive is suspect in all processes.

    Called by the transport for every refused connection, so the usual case writes nothing: once the row is suspect,
    the topology of this process says so too. Never raises.
    """
    if getattr(_thread, "is_probing", False) or not _refusals.acquire(blocking=False):
        return
    try:
        for replica_id in _routed_replicas(url):
            sample_record(replica_id, ok=False, error=f"{url} refused a connection")
    except DatabaseError as error:
        logger.warning("refusal_not_recorded url=%s error=%s", url, error)
    finally:
        _refusals.release()


@contextmanager
def probing() -> Iterator[None]:
    """Keep what this thread meets in the block from being noted as refusals: a probe brings its own sample."""
    _thread.is_probing = True
    try:
        yield
    finally:
        _thread.is_probing = False


def history_write(checks: list[HealthCheck]) -> None:
    """Append probes to the history, in one transaction, and cut it to MLVDB_HEALTH_HISTORY per replica."""
    if not checks:
        return
    replicas = {check.replica_id for check in checks}
    with transaction.atomic():
        alive = set(Replica.objects.filter(pk__in=replicas).values_list("pk", flat=True))
        HealthCheck.objects.bulk_create([check for check in checks if check.replica_id in alive])
        Replica.objects.filter(pk__in=alive).update(checked_at=max(check.at for check in checks))
    for replica_id in alive:
        bound = settings.MLVDB_HEALTH_HISTORY
        newest = HealthCheck.objects.filter(replica_id=replica_id).order_by("-id").values_list("pk", flat=True)
        for oldest_kept in newest[bound - 1 : bound]:
            HealthCheck.objects.filter(replica_id=replica_id, pk__lt=oldest_kept).delete()


def check_of(replica_id: int, probe: Probe, change: Change) -> HealthCheck:
    """Return the history row of one probe; not saved."""
    return HealthCheck(
        replica_id=replica_id,
        at=timezone.now(),
        ok=probe.ok,
        health=change.after.health,
        took_ms=probe.took_ms,
        error=probe.error[:_MESSAGE],
    )


def _write(row: Replica, change: Change, error: str) -> bool:
    """Write what changes, if the row is still the one that was read; return whether it was."""
    before, after = change
    fields: dict[str, object] = {}
    if after != before:
        fields |= {"health": after.health, "failures": after.failures, "successes": after.successes}
    if after.health is not before.health:
        fields["health_since"] = timezone.now()
    if error and error != row.last_error:
        fields |= {"last_error": error, "last_error_at": timezone.now()}
    if change.is_recovery:
        fields |= {"sweeps_to_skip": 0, "send_failures": 0, "last_error": ""}
    if not fields:
        return True
    with transaction.atomic():
        changed = Replica.objects.filter(
            pk=row.pk, health=before.health, failures=before.failures, successes=before.successes
        ).update(**fields)
        if changed and after.health is not before.health:
            topology_changed()
    return bool(changed)


def _routed_replicas(url: str) -> set[int]:
    """Return the replicas at a URL to which this process would still send requests."""
    return {
        copy.replica_id
        for shard in topology().shards.values()
        for copy in shard.copies
        if copy.replica_id is not None and copy.url == url and copy.health.is_routable
    }


#: One thread of a process at a time: others that are refused meanwhile have nothing to add.
_refusals = threading.Lock()
_thread = threading.local()
