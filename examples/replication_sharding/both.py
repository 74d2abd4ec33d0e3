"""Two shards in this program, each with a replica of its own on a node."""

from __future__ import annotations

from contextlib import ExitStack

from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl, ShardingManagerImpl
from replication_sharding.nodes import LocalNode, local_nodes
from replication_sharding.rows import NAMESPACE, count_at, ids, replicas_of, rows_by_shard, vectors_of
from replication_sharding.screen import heading, say, step, wait_for
from vectors.datasets import Digits
from vectors.errors import MLVectorDBError
from vectors.library import Index, StorageEngineInMemory, VectorDTO


def both(digits: Digits) -> None:
    """Two shards in this program, each with a replica of its own on a node."""
    with ExitStack() as stack:
        heading("Both: each of two shards has a replica")

        engines = {name: stack.enter_context(StorageEngineInMemory()) for name in ("shard_0", "shard_1")}
        shards = stack.enter_context(ShardingManagerImpl(shard_storages=engines, health_check_interval=1.0))
        replicas = {
            name: stack.enter_context(ReplicationManagerImpl(engine, health_check_interval=1.0))
            for name, engine in engines.items()
        }
        nodes = stack.enter_context(local_nodes("replica_of_0", "replica_of_1"))
        for manager, node in zip(replicas.values(), nodes, strict=True):
            manager.add_replica(node.name, node.url)
        wait_for(
            lambda: all(
                replica["member"] for manager in replicas.values() for replica in replicas_of(manager).values()
            ),
            "the replicas to be members",
        )
        processor = QueryProcessorWithReplication(
            engines["shard_0"],
            Index("cosine"),
            replication_manager=replicas["shard_0"],
            sharding_manager=shards,
            consistency="quorum",
            read_preference="replica",
        )

        step("Write at quorum: each shard's part is on two copies before the answer; read from the replicas")
        processor.upsert_many(vectors_of(digits), NAMESPACE)
        say(f"{len(digits):,} rows: {rows_by_shard(shards, processor)}")
        for node in nodes:
            say(f"  {node.name} holds {count_at(node.url, partial=True):,} of them")
        say(f"Most similar to a grey square are {ids(processor.find_similar([8.0] * 64, 3, NAMESPACE))}.")
        lose_one_of_the_replicas(shards, processor, nodes[1])


def lose_one_of_the_replicas(
    shards: ShardingManagerImpl, processor: QueryProcessorWithReplication, node: LocalNode
) -> None:
    """Stop the replica of one shard: only that shard misses its quorum."""
    step(f"{node.name} goes down: shard_0 has its quorum still, shard_1 has not")
    node.stop()
    # One id of each shard.
    numbered = (f"while-down-{number}" for number in range(1000))
    ids_by_shard = {shards.get_shard_for_id(row_id, NAMESPACE): row_id for row_id in numbered}
    for shard, row_id in sorted(ids_by_shard.items()):
        try:
            processor.insert(VectorDTO([3.0] * 64, {"digit": -1}, id=row_id), NAMESPACE)
            say(f"  {row_id}, of {shard}: written")
        except MLVectorDBError as error:
            say(f"  {row_id}, of {shard}: refused, {error.code}")
