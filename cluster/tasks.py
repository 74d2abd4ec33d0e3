"""Background work of the cluster. Tasks carry ids only, are idempotent, and treat nothing-to-do as success."""

from __future__ import annotations

import os
import socket

from celery import shared_task

from cluster.health.rounds import run_round
from cluster.health.shards import run_shard_round
from cluster.moves import running
from cluster.replication import digests
from cluster.services import (
    entropy,
    failover,
    joining,
    placements,
    promotion,
    sharding_assignments,
    shipping,
)
from cluster.services import sharding_sweep as sharding_sweep_service
from mlvdb_site.celery import publish


@shared_task(name="cluster.tasks.replication_ship")
def replication_ship(replica_id: int) -> None:
    """Bring one replica up to date."""
    shipping.ship(replica_id)


@shared_task(name="cluster.tasks.replication_sweep")
def replication_sweep() -> None:
    """Knock for every replica that lags: the net under lost knocks, and what counts back-offs down.

    A primary that has lost its right to write without a successor is had stand for election again.
    """
    for replica_id in shipping.sweep():
        publish(replication_ship, replica_id)
    for shard_uid in promotion.fenced_shards():
        publish(replication_stand, shard_uid)


@shared_task(name="cluster.tasks.replication_join")
def replication_join() -> None:
    """Register with the primary, while that is due; push again the placements that were not acknowledged."""
    joining.replication_look_after()


@shared_task(name="cluster.tasks.replication_push")
def replication_push() -> None:
    """Send the placements that were not acknowledged."""
    placements.placements_push()


@shared_task(name="cluster.tasks.replication_stand")
def replication_stand(shard_uid: str) -> None:
    """Win the right to write back for a shard whose primary has promised a newer term."""
    promotion.stand_if_fenced(shard_uid)


@shared_task(name="cluster.tasks.sharding_sweep")
def sharding_sweep() -> None:
    """Bring to its end what is due of shards, assignments and namespaces."""
    sharding_sweep_service.sharding_look_after()


@shared_task(name="cluster.tasks.sharding_failover")
def sharding_failover(shard_id: int) -> None:
    """Find the primary of a shard on another node, and have a copy become it where it is dead."""
    failover.shard_look(shard_id)


@shared_task(name="cluster.tasks.assignments_push")
def assignments_push() -> None:
    """Tell the nodes of shards what has changed."""
    sharding_assignments.assignments_push()


@shared_task(name="cluster.tasks.moves_run")
def moves_run() -> None:
    """Bring the moves of slots that were asked for as far as they come."""
    running.moves_run()


@shared_task(name="cluster.tasks.health_replicas")
def health_replicas() -> None:
    """Probe every replica of this node's registry, all at once."""
    run_round()


@shared_task(name="cluster.tasks.health_shards")
def health_shards() -> None:
    """Probe the nodes of all shards of this coordinator, all at once."""
    run_shard_round()


@shared_task(name="cluster.tasks.verify_replica")
def verify_replica(replica_id: int) -> None:
    """Compare the contents of a replica with this node's."""
    entropy.replica_compare(replica_id, owner=f"{socket.gethostname()}:{os.getpid()}")


@shared_task(name="cluster.tasks.verify_replicas")
def verify_replicas() -> None:
    """Have the contents of every replica compared."""
    for replica_id in entropy.replicas_to_verify():
        publish(verify_replica, replica_id)


@shared_task(name="cluster.tasks.digest_compute")
def digest_compute(run_id: int) -> None:
    """Compute a digest that another node has asked for."""
    digests.digest_compute(run_id)
