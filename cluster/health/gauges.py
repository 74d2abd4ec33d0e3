"""What a scrape measures of replication: health, state and lag per replica, and on a replica its own lag."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from cluster.models import Placement, Replica, ReplicaCopy, Topology
from cluster.states import CopyState, Membership, PeerHealth
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
