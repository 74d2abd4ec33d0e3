"""What one sample changes: the peer's row by compare-and-set, and the topology marker when its health changes.

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
from django.db.models import Q
from django.utils import timezone

from cluster.health.detector import Detection, detect
from cluster.health.probe import Probe
from cluster.models import HealthCheck, MoveStep, Peer, Replica, Shard
from cluster.replication.knocks import SHARD_HEALTH_TASK, SHIP_TASK
from cluster.states import PeerHealth
from cluster.topology import topology
from mlvdb_site.celery import publish
from mlvdb_site.markers import topology_changed

logger = logging.getLogger(__name__)

#: What waits for a shard's node: being told what it is, and moves.
_TASKS_OF_SHARDS = ("cluster.tasks.assignments_push", "cluster.tasks.moves_run")
_TRIES = 5
_MESSAGE = 500


class Change(NamedTuple):
    """What a sample made of a peer."""

    before: Detection
    after: Detection

    @property
    def is_recovery(self) -> bool:
        """Whether the peer is alive and was not."""
        return self.after.health is PeerHealth.ALIVE and self.before.health is not PeerHealth.ALIVE


def detection_of(peer: Peer) -> Detection:
    """Return what a peer's row says."""
    return Detection(PeerHealth(peer.health), peer.failures, peer.successes)


def sample_record(
    peer_id: int, *, ok: bool, error: str = "", kind: type[Replica] | type[Shard] = Replica, url: str | None = None
) -> Change | None:
    """Let the detector judge one more sample of a replica, or of a shard's node; None when the peer is gone.

    With `url`, also when it is at another one by now: of the node of before nobody wants to know.

    The row is written only when something changes. For a peer that recovers what waited for it goes on at once, after
    the commit: its back-off ends.
    """
    for _ in range(_TRIES):
        row: Replica | Shard | None = kind._default_manager.filter(pk=peer_id).first()
        if row is None or url not in (None, row.url):
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
            "peer_health peer=%s health=%s before=%s error=%r",
            row,
            change.after.health,
            change.before.health,
            error,
        )
    if change.is_recovery:
        _go_on(row)
    return change


def _go_on(row: Replica | Shard) -> None:
    if isinstance(row, Replica):
        publish(SHIP_TASK, row.pk)
        return
    MoveStep.objects.filter(Q(source=row) | Q(target=row)).update(attempts=0)
    for task in _TASKS_OF_SHARDS:
        publish(task)


def refusal_record(url: str) -> None:
    """Note that a connection to `url` was refused: a peer there that counted as alive is suspect in all processes.

    Called by the transport for every refused connection, so the usual case writes nothing: once the row is suspect,
    the topology of this process says so too. Never raises.
    """
    if getattr(_thread, "is_probing", False) or not _refusals.acquire(blocking=False):
        return
    try:
        for replica_id in _routed_replicas(url):
            sample_record(replica_id, ok=False, error=f"{url} refused a connection")
        for shard_id in _routed_shards(url):
            sample_record(shard_id, ok=False, error=f"{url} refused a connection", kind=Shard, url=url)
            # Once for each node that goes: from then on it is not routed to. Whether it is dead is to be known soon,
            # since a copy may take its place.
            publish(SHARD_HEALTH_TASK)
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
    """Append probes to the history, in one transaction, and cut it to MLVDB_HEALTH_HISTORY per peer."""
    if not checks:
        return
    at = max(check.at for check in checks)
    replicas = {check.replica_id for check in checks if check.replica_id is not None}
    shards = {check.shard_id for check in checks if check.shard_id is not None}
    with transaction.atomic():
        replicas = set(Replica.objects.filter(pk__in=replicas).values_list("pk", flat=True))
        shards = set(Shard.objects.filter(pk__in=shards).values_list("pk", flat=True))
        HealthCheck.objects.bulk_create(
            [check for check in checks if check.replica_id in replicas or check.shard_id in shards]
        )
        Replica.objects.filter(pk__in=replicas).update(checked_at=at)
        Shard.objects.filter(pk__in=shards).update(checked_at=at)
    for history in (
        *(HealthCheck.objects.filter(replica_id=pk) for pk in replicas),
        *(HealthCheck.objects.filter(shard_id=pk) for pk in shards),
    ):
        bound = settings.MLVDB_HEALTH_HISTORY
        for oldest_kept in history.order_by("-id").values_list("pk", flat=True)[bound - 1 : bound]:
            history.filter(pk__lt=oldest_kept).delete()


def check_of(peer: Replica | Shard, probe: Probe, change: Change) -> HealthCheck:
    """Return the history row of one probe; not saved."""
    return HealthCheck(
        replica_id=peer.pk if isinstance(peer, Replica) else None,
        shard_id=peer.pk if isinstance(peer, Shard) else None,
        at=timezone.now(),
        ok=probe.ok,
        health=change.after.health,
        took_ms=probe.took_ms,
        error=probe.error[:_MESSAGE],
    )


def _write(row: Replica | Shard, change: Change, error: str) -> bool:
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
        fields |= {"last_error": ""}
        fields |= {"sweeps_to_skip": 0, "send_failures": 0} if isinstance(row, Replica) else {"attempts": 0}
    if not fields:
        return True
    with transaction.atomic():
        changed = (
            type(row)
            ._default_manager.filter(
                pk=row.pk, health=before.health, failures=before.failures, successes=before.successes
            )
            .update(**fields)
        )
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


def _routed_shards(url: str) -> set[int]:
    """Return the shards at a URL to which this process would still send requests, by number."""
    sharding = topology().sharding
    if sharding is None:
        return set()
    return {member.number for member in sharding.members if member.url == url and member.health.is_routable}


#: One thread of a process at a time: others that are refused meanwhile have nothing to add.
_refusals = threading.Lock()
_thread = threading.local()
