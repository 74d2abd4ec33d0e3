"""What a scrape measures of replication and sharding: health, state and lag per replica, slots and health per shard."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from cluster.health.shards import healthy_shards
from cluster.models import SLOT_KINDS, Move, MoveStep, Placement, Replica, ReplicaCopy, Shard, Topology
from cluster.sharding.table import SlotTable
from cluster.states import CopyState, Membership, MovePhase, PeerHealth, ShardState
from vectors.models import ShardHead


def replication_gauges() -> Iterator[Metric]:
    """Yield the gauges; none on a node without replicas and placement. A state is a gauge of 0 or 1 per value."""
    topology = Topology.objects.first()
    if topology is None:
        return
    epoch = GaugeMetricFamily("mlvdb_cluster_epoch", "Version of the cluster's topology, as this node knows it.")
    epoch.add_metric((), topology.epoch)
    yield epoch
    heads = {head.uid: head for head in ShardHead.objects.all()}
    if topology.is_owner:
        yield from _replicas()
        yield from _copies(heads)
    yield from _placements(heads)


def _replicas() -> Iterator[Metric]:
    health = GaugeMetricFamily(
        "mlvdb_replica_health", "1 for what the failure detector thinks of a replica.", labels=("replica", "health")
    )
    failures = GaugeMetricFamily("mlvdb_replica_failed_probes", "Failed probes in a row.", labels=("replica",))
    for replica in Replica.objects.all():
        for value in PeerHealth:
            health.add_metric((replica.name, value.value), int(replica.health == value))
        failures.add_metric((replica.name,), replica.failures)
    yield from (health, failures)


def _copies(heads: dict[str, ShardHead]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "mlvdb_replica_state", "1 for the state of a replica's copy.", labels=("replica", "shard", "state")
    )
    member = GaugeMetricFamily("mlvdb_replica_member", "1 when a copy counts in quorums.", labels=("replica", "shard"))
    lag = GaugeMetricFamily(
        "mlvdb_replica_lag_operations",
        "Operations of the primary that a copy has not acknowledged.",
        labels=("replica", "shard"),
    )
    for copy in ReplicaCopy.objects.select_related("replica"):
        head = heads.get(copy.shard)
        labels = (copy.replica.name, head.label if head else copy.shard[:8])
        for value in CopyState:
            state.add_metric((*labels, value.value), int(copy.state == value))
        member.add_metric(labels, int(copy.membership == Membership.MEMBER))
        if head is not None:
            lag.add_metric(labels, max(0, head.last_seq - copy.seq))
    yield from (state, member, lag)


def _placements(heads: dict[str, ShardHead]) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "mlvdb_replication_lag_operations",
        "On a replica: operations of the primary, when it was last heard, that this copy does not have.",
        labels=("shard",),
    )
    placements = Placement.objects.filter(role="replica")
    for placement in placements:
        head = heads.get(placement.shard)
        if head is not None:
            lag.add_metric((head.label,), max(0, placement.primary_seq - head.last_seq))
    if placements:
        yield lag


def sharding_gauges() -> Iterator[Metric]:
    """Yield the gauges of a coordinator: its shards, and the moves of slots that are not over; none elsewhere."""
    topology = Topology.objects.filter(is_owner=True, sharding_enabled=True).first()
    if topology is None:
        return
    shards = [shard for shard in Shard.objects.all() if ShardState(shard.state).is_shard]
    yield from _shards(shards, None if topology.slots is None else SlotTable.of_bytes(bytes(topology.slots)))
    yield from _moves()


def _shards(shards: list[Shard], table: SlotTable | None) -> Iterator[Metric]:
    labels = ("shard",)
    healthy = GaugeMetricFamily("mlvdb_shard_healthy", "1 while a shard's copy is whole and answers.", labels=labels)
    slots = GaugeMetricFamily("mlvdb_shard_slots", "Slots that a shard owns.", labels=labels)
    state = GaugeMetricFamily("mlvdb_shard_state", "1 for the state of a shard.", labels=("shard", "state"))
    health = GaugeMetricFamily(
        "mlvdb_shard_health", "1 for what the failure detector thinks of a shard's node.", labels=("shard", "health")
    )
    failures = GaugeMetricFamily("mlvdb_shard_failed_probes", "Failed probes of its node in a row.", labels=labels)
    rows = GaugeMetricFamily("mlvdb_shard_rows", "Rows on a shard's node, as of its last probe.", labels=labels)
    well = healthy_shards(shards)
    for shard in shards:
        healthy.add_metric((shard.label,), int(shard.label in well))
        slots.add_metric((shard.label,), 0 if table is None else len(table.owned_by(shard.pk)))
        for value in ShardState:
            if value.is_shard:
                state.add_metric((shard.label, value.value), int(shard.state == value))
        if not shard.is_local:
            for thought in PeerHealth:
                health.add_metric((shard.label, thought.value), int(shard.health == thought))
            failures.add_metric((shard.label,), shard.failures)
            rows.add_metric((shard.label,), shard.rows)
    yield from (healthy, slots, state, health, failures, rows)


def _moves() -> Iterator[Metric]:
    under_way = list(Move.objects.filter(kind__in=SLOT_KINDS, ended_at__isnull=True))
    waiting = GaugeMetricFamily("mlvdb_moves", "Moves of slots that are not over, queued ones included.")
    waiting.add_metric((), len(under_way))
    paused = GaugeMetricFamily("mlvdb_moves_paused", "Those that wait to be resumed.")
    paused.add_metric((), sum(move.paused for move in under_way))
    left = GaugeMetricFamily("mlvdb_moves_rows_left", "Rows that they have yet to copy, as far as is known.")
    left.add_metric((), sum(max(0, move.rows_total - move.rows_done) for move in under_way))
    failures = GaugeMetricFamily("mlvdb_moves_failures", "Failures in a row of the step that fails most.")
    steps = MoveStep.objects.filter(move__in=under_way)
    failures.add_metric((), max((step.attempts for step in steps if not MovePhase(step.phase).is_over), default=0))
    yield from (waiting, paused, left, failures)
