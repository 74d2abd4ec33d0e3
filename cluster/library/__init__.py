"""Replication inside a Python program: the program is the primary, its replicas are nodes.

    from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl
    from vectors.library import Index, StorageEngineInMemory, VectorDTO

    with StorageEngineInMemory() as storage, ReplicationManagerImpl(primary_storage=storage) as manager:
        manager.add_replica("replica_1", "http://127.0.0.1:8001")
        processor = QueryProcessorWithReplication(storage, Index(), replication_manager=manager)
        processor.insert(VectorDTO([0.1, 0.9], {"color": "red"}))

    manager      `ReplicationManagerImpl`: the replicas of a storage engine
    processor    `QueryProcessorWithReplication`: writes at a level, reads from whichever copy
    shard        a storage engine's shard behind the port of `vectors.query_processor`, over all of its copies
    background   broker, Celery worker and beat of the program

Nothing here does anything of its own: the services, the log and the senders are those of a node.
"""

from cluster.library.manager import ReplicationManagerImpl
from cluster.library.processor import QueryProcessorWithReplication

__all__ = ["QueryProcessorWithReplication", "ReplicationManagerImpl"]
