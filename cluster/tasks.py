"""Background work of the cluster. Tasks carry ids only, are idempotent, and treat nothing-to-do as success."""

from __future__ import annotations

import os
import socket

from celery import shared_task

from cluster.health.rounds import run_round
from cluster.replication import digests
from cluster.services import entropy, joining, promotion, shipping
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


@shared_task(name="cluster.tasks.replication_stand")
def replication_stand(shard_uid: str) -> None:
    """Win the right to write back for a shard whose primary has promised a newer term."""
    promotion.stand_if_fenced(shard_uid)


@shared_task(name="cluster.tasks.health_replicas")
def health_replicas() -> None:
    """Probe every replica of this node's registry, all at once."""
    run_round()


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
