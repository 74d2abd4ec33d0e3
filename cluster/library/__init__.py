"""Replication and sharding inside a Python program: its storage engines are shards, nodes are replicas and shards.

    from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl, ShardingManagerImpl
    from vectors.library import Index, StorageEngineInMemory, VectorDTO

    storages = {"shard_0": StorageEngineInMemory(), "shard_1": StorageEngineInMemory()}
    with ShardingManagerImpl(storages) as shards, ReplicationManagerImpl(storages["shard_0"]) as replicas:
        shards.add_shard("shard_2", "http://127.0.0.1:8001")
        replicas.add_replica("replica_1", "http://127.0.0.1:8002")
        processor = QueryProcessorWithReplication(storages["shard_0"], Index(), replicas, shards)
        processor.insert(VectorDTO([0.1, 0.9], {"color": "red"}))

    manager         `ReplicationManagerImpl`: the replicas of a storage engine
    sharding        `ShardingManagerImpl`: the shards of a program, on nodes and in the program
    processor       `QueryProcessorWithReplication`: written at a level, read from whichever copy, one engine or all
    engines         a storage engine before the port of `vectors.query_processor`: over its copies, as a shard
    session         a session with that port: one consistency, and its own writes are seen
    program_shards  storage engines in the registry of shards
    preparation     tables, periodic tasks and registry of a program
    background      broker, Celery worker and beat of the program

Nothing here does anything of its own: the services, the log and the senders are those of a node.
"""

from cluster.library.manager import ReplicationManagerImpl
from cluster.library.processor import QueryProcessorWithReplication
from cluster.library.sharding import ShardingManagerImpl

__all__ = ["QueryProcessorWithReplication", "ReplicationManagerImpl", "ShardingManagerImpl"]
