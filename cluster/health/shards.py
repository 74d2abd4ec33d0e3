"""The health of shards: their nodes are probed as replicas are, and must say that they are what they were made.

A node that has the shard's copy but not its assignment, of this cluster and for this shard, takes writes from anybody:
its probe fails, and it is told again at once. A copy that says it is damaged answers with what it has left, as a
damaged copy on this node does, so it is asked on; but the shard is not healthy, and its last error says why.

A node that is not the primary of its shard any more, or is dead, has the shard looked for among its copies
(`cluster.services.failover`); what the node tells of these copies is kept for that moment.

A shard on this node has no node to probe: it is healthy while its copy has lost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from cluster.health.probe import Probe, ShardStatus, probe
from cluster.health.rounds import Round, probe_each
from cluster.models import Shard, ShardCopy, Topology
from cluster.replication.knocks import FAILOVER_TASK
from cluster.services.shard_replicas import copies_note, copies_read
from cluster.services.sharding_assignments import PUSH_TASK
from cluster.services.sharding_candidates import Coordinator, ShardLost, check_shard_candidate, coordinator_now
from cluster.states import PeerHealth, ShardState
from mlvdb_site.celery import publish
from vectors.errors import Conflict
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

_DAMAGED = "shard_damaged: "


class AssignmentLost(Conflict):
    """Raised when the node of a shard does not know any more that it is one."""

    code = "assignment_lost"


class ShardPatient:
    """A shard on another node."""

    def __init__(self, row: Shard, asks: Coordinator) -> None:
        self.row = row
        self._asks = asks

    def probe(self) -> Probe:
        """Ask its node how it is; the error begins with its code, as do those of assignments in the same column."""
        found = probe(self.row.url, {"heads": {}}, check=self._check, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S)
        return found if found.ok else replace(found, error=f"{found.code}: {found.error}")

    def heed(self, found: Probe) -> None:
        """Note how much the shard has, and whether that is all; have a node told again that has forgotten."""
        if found.code == ShardLost.code:
            publish(FAILOVER_TASK, self.row.pk)
        told = Shard.objects.filter(pk=self.row.pk, acknowledged_epoch__gt=0)
        if found.code == AssignmentLost.code and told.update(acknowledged_epoch=0):
            publish(PUSH_TASK)
        if found.status is None or not found.ok:
            return
        held = found.status.shards.get(self.row.uid)
        self._note_damage(is_damaged=held is not None and held.damage)
        if held is not None:
            self._note_copies(held)
        fields = {"version": found.status.version[:32]}
        if not self.row.node and ShardState(self.row.state).may_own:
            # Which node a new shard is on is settled when one takes its assignment.
            fields["node"] = found.status.node
        if ShardState(self.row.state).may_own:
            fields["copies_cluster"] = found.status.cluster_of(self.row.uid)[:32]
        known = {name: getattr(self.row, name) for name in ("rows", "size_bytes", "head_seq")}
        now = known
        if held is not None:
            now = {"rows": held.rows, "size_bytes": held.size_bytes, "head_seq": held.seq}
        changed = {name: value for name, value in (fields | now).items() if getattr(self.row, name) != value}
        if changed:
            Shard.objects.filter(pk=self.row.pk).update(**changed)

    def _check(self, status: Mapping[str, Any]) -> None:
        check_shard_candidate(
            self._asks,
            self.row.url,
            status,
            label=self.row.label,
            uid=self.row.uid,
            expected_node=self.row.node,
        )
        if not ShardState(self.row.state).may_own:
            return
        held = {shard.get("uid"): shard for shard in status.get("shards", ()) if isinstance(shard, dict)}
        own = held.get(self.row.uid)
        if own is None or own.get("role") != "primary":
            raise ShardLost(f"the node at {self.row.url} is not the primary of the shard {self.row.label} any more")
        told = status.get("assignment")
        if not isinstance(told, dict) or (told.get("cluster"), told.get("shard")) != (self._asks.cluster, self.row.uid):
            raise AssignmentLost(
                f"the node at {self.row.url} does not know any more that it is the shard {self.row.label}; "
                "it is told again"
            )

    def _note_copies(self, held: ShardStatus) -> None:
        try:
            copies_note(self.row, copies_read(held.copies), head_seq=held.seq)
        except ValueError as error:
            logger.warning("copies_not_told shard=%s error=%s", self.row.label, error)

    def _note_damage(self, *, is_damaged: bool) -> None:
        """Keep what is wrong with the copy in the shard's last error, and take it back when it is whole again."""
        row = Shard.objects.filter(pk=self.row.pk)
        if is_damaged:
            words = f"{_DAMAGED}the copy on its node has lost rows; the log of that node says which"
            row.exclude(last_error=words).update(last_error=words, last_error_at=timezone.now())
        elif self.row.last_error.startswith(_DAMAGED):
            row.filter(last_error=self.row.last_error).update(last_error="")


def run_shard_round() -> None:
    """Probe the nodes of all shards of this coordinator; a node without any does nothing."""
    remote = Shard.objects.exclude(url="").exclude(state=ShardState.REMOVED)
    Round(_patients(remote)).run()
    # Until it is settled: a look that was cut short is gone on with from here. And where there are copies, one of them
    # may have been made the primary while the node, cut off from them, answers as if nothing had happened.
    due = Q(health=PeerHealth.DEAD) | ~Q(failover="") | Exists(ShardCopy.objects.filter(shard=OuterRef("pk")))
    for number in remote.filter(due).values_list("pk", flat=True):
        publish(FAILOVER_TASK, number)


def shards_check(shards: Iterable[Shard]) -> dict[str, bool]:
    """Probe some shards once, now, and return {label: whether it is as it should be}; each probe is a sample."""
    rows = list(shards)
    answered = probe_each(_patients(shard for shard in rows if not shard.is_local))
    now = Shard.objects.filter(pk__in=[shard.pk for shard in rows])
    whole = whole_copies()
    return {
        shard.label: shard.uid in whole if shard.is_local else answered.get(shard.label, False) and not _damage(shard)
        for shard in now
    }


def healthy_shards(shards: Iterable[Shard]) -> set[str]:
    """Return the labels of the shards that count as healthy: their copies are whole, their nodes answer, as is known.

    Nobody is asked now.
    """
    whole = whole_copies()
    return {
        shard.label
        for shard in shards
        if (shard.uid in whole if shard.is_local else PeerHealth(shard.health).is_routable and not _damage(shard))
    }


def whole_copies() -> set[str]:
    """Return the uids of this node's copies that have lost nothing."""
    return set(ShardHead.objects.filter(damage__isnull=True).values_list("uid", flat=True))


def _damage(shard: Shard) -> bool:
    return shard.last_error.startswith(_DAMAGED)


def _patients(shards: Iterable[Shard]) -> list[ShardPatient]:
    rows = list(shards)
    topology = Topology.objects.filter(is_owner=True, sharding_enabled=True).first()
    if not rows or topology is None:
        return []
    asks = coordinator_now(topology.cluster)
    return [ShardPatient(row, asks) for row in rows]
