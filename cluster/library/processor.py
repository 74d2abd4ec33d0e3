"""`QueryProcessorWithReplication`: the library's query processor over storage engines, their replicas and shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vectors.errors import InvalidInput
from vectors.library import Index, QueryProcessor

if TYPE_CHECKING:
    from cluster.library.manager import ReplicationManagerImpl
    from cluster.library.sharding import ShardingManagerImpl
    from vectors.library import StorageEngineInMemory

LEVELS = ("one", "quorum", "all")
PREFERENCES = ("primary", "replica", "nearest")


class QueryProcessorWithReplication(QueryProcessor):
    """Vectors of a storage engine that has replicas, or of all shards of a program. Thread-safe.

    `consistency` one, quorum or all is asked of every write and read (docs/consistency.md): a level that is not reached
    raises NotEnoughCopies, after `timeout_s` at most. `read_preference` primary, replica or nearest is where reads go;
    whichever it is, they see what was written through this object. With a sharding manager vectors are spread over its
    shards and searched in all of them; `storage_engine` is one of them then, or has nothing in it. Without a manager it
    is a `QueryProcessor`.
    """

    def __init__(
        self,
        storage_engine: StorageEngineInMemory,
        index: Index | None = None,
        replication_manager: ReplicationManagerImpl | None = None,
        sharding_manager: ShardingManagerImpl | None = None,
        *,
        consistency: str = "one",
        read_preference: str = "nearest",
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(storage_engine, index)
        _check("consistency", consistency, LEVELS)
        _check("read_preference", read_preference, PREFERENCES)
        self.replication_manager = replication_manager
        self.sharding_manager = sharding_manager
        options: dict[str, Any] = {
            "consistency": consistency,
            "read_preference": read_preference,
            "timeout_s": timeout_s,
        }
        if sharding_manager is not None:
            self._check_engines()
            from cluster.library.engines import shards_session

            self._engine = shards_session(storage_engine, check=sharding_manager.check_running, **options)
        elif replication_manager is not None:
            self._check_engines()
            from cluster.library.engines import engine_session

            self._engine = engine_session(storage_engine, **options)[1]

    def get_storage_info(self) -> dict[str, Any]:
        """Return the totals, and what the managers know: `replication` and `sharding`."""
        info = super().get_storage_info()
        if self.replication_manager is not None:
            info["replication"] = self.replication_manager.get_replica_info()
        if self.sharding_manager is not None:
            info["sharding"] = self.sharding_manager.get_shard_info()
        return info

    def _check_engines(self) -> None:
        """Raise InvalidInput where this object would answer with other rows than the engines it was given have."""
        own = self.storage_engine
        shards = [] if self.sharding_manager is None else list(self.sharding_manager.shard_storages.values())
        if self.replication_manager is not None and not any(
            self.replication_manager.primary_storage is engine for engine in (own, *shards)
        ):
            raise InvalidInput("the manager replicates another storage engine", field="replication_manager")
        if shards and not any(own is shard for shard in shards) and own.total_vectors:
            raise InvalidInput(
                "the storage engine is none of the sharding manager's shards, and its vectors would not be found",
                field="storage_engine",
            )


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{field} is one of {', '.join(allowed)}", field=field)
