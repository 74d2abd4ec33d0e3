"""The rows of the parts: handwritten digits, and where they are."""

from __future__ import annotations

from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl, ShardingManagerImpl
from replication_sharding.screen import say, wait_for
from vectors.client import Client, Conflict
from vectors.datasets import Digits
from vectors.library import VectorDTO

NAMESPACE = "digits"


def replicas_of(manager: ReplicationManagerImpl) -> dict[str, dict]:
    """Return what the manager knows of each replica."""
    return dict(manager.get_replica_info()["replicas"])


def rows_of(manager: ShardingManagerImpl) -> dict[str, int]:
    """Return how many rows each shard has; what a node has, it is asked for now."""
    manager.check_all_shards_health()
    return {name: shard["vector_count"] for name, shard in manager.get_shard_info()["shards"].items()}


def rows_by_shard(manager: ShardingManagerImpl, processor: QueryProcessorWithReplication) -> str:
    """Return the same in words, once every node has heard which slots are its own."""
    rows = processor.get_namespace_count(NAMESPACE)
    wait_for(lambda: sum(rows_of(manager).values()) == rows, f"{rows:,} rows on all shards together")
    return ", ".join(f"{name} {rows:,}" for name, rows in rows_of(manager).items())


def vectors_of(digits: Digits) -> list[VectorDTO]:
    """Return the digits as vectors to write."""
    rows = zip(digits.ids, digits.values, digits.metadata, strict=True)
    return [VectorDTO(values, metadata, id=row_id) for row_id, values, metadata in rows]


def ids(hits: list[dict]) -> str:
    """Return the ids of a search's answer."""
    return ", ".join(str(hit["id"]) for hit in hits)


def count_at(url: str, *, partial: bool = False) -> int:
    """Return how many rows a node has, asked over HTTP; `partial` allows it to leave out what it cannot ask for."""
    with Client(url) as client:
        return client.with_options(partial=partial).count(namespace=NAMESPACE)


def refused_directly(client: Client, what: str) -> None:
    """Write to a node that takes writes only from another, and print its refusal."""
    try:
        client.insert([0.0] * 64, namespace=NAMESPACE)
    except Conflict as refusal:
        say(f"A direct write to {what} is refused: {refusal.status} {refusal.code}.")
