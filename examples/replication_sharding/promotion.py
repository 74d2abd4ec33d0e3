"""A replica takes the place of this program, which is no primary of anything afterwards."""

from __future__ import annotations

from contextlib import ExitStack

import requests

from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl
from replication_sharding.nodes import LocalNode, local_nodes
from replication_sharding.replication import add_replicas
from replication_sharding.rows import NAMESPACE, count_at, vectors_of
from replication_sharding.screen import heading, say, step, wait_for
from vectors.client import Client
from vectors.datasets import Digits
from vectors.errors import NotPrimary
from vectors.library import Index, StorageEngineInMemory, VectorDTO


def promotion(digits: Digits) -> None:
    """A replica takes the place of this program, which is no primary of anything afterwards: so this comes last."""
    with ExitStack() as stack:
        heading("Promotion: a replica takes over, as one does when the primary is gone")

        storage = stack.enter_context(StorageEngineInMemory())
        manager = stack.enter_context(ReplicationManagerImpl(primary_storage=storage, health_check_interval=1.0))
        processor = QueryProcessorWithReplication(storage, Index("cosine"), replication_manager=manager)
        processor.upsert_many(vectors_of(digits), NAMESPACE)
        first, second = nodes = stack.enter_context(local_nodes("replica_1", "replica_2"))
        add_replicas(manager, nodes)
        promote_a_replica(storage, manager, first, second)


def promote_a_replica(
    storage: StorageEngineInMemory, manager: ReplicationManagerImpl, first: LocalNode, second: LocalNode
) -> None:
    """Make a replica the primary, as if this program were gone."""
    step(f"{first.name} is promoted")
    answer = requests.post(f"{first.url}/replication/promote", timeout=30)
    answer.raise_for_status()
    say(f"POST {first.url}/replication/promote")
    say(f"  {answer.json()['message']}. Two of the three members voted for it: no quorum write can be missing.")
    with Client(second.url) as client:
        client.with_options(consistency="quorum", timeout_s=10).insert([4.0] * 64, id="after", namespace=NAMESPACE)
        say(f"A client of {second.name} wrote a row: refused there, it went on to the new primary by itself.")
        say(f"  {first.name} has {count_at(first.url):,} rows, {second.name} {client.count(namespace=NAMESPACE):,}.")
    wait_for(lambda: manager.get_replica_info()["role"] == "replica", "this program to hear of it")
    try:
        QueryProcessorWithReplication(storage, replication_manager=manager).insert(VectorDTO([5.0] * 64), NAMESPACE)
    except NotPrimary as refusal:
        say(f"This program has heard of it and takes no writes any more: {refusal.message}.")
