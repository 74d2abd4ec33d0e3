"""`QueryProcessorWithReplication`: the library's query processor over a storage engine and its replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vectors.errors import InvalidInput
from vectors.library import Index, QueryProcessor

if TYPE_CHECKING:
    from cluster.library.manager import ReplicationManagerImpl
    from vectors.library import StorageEngineInMemory

LEVELS = ("one", "quorum", "all")
PREFERENCES = ("primary", "replica", "nearest")


class QueryProcessorWithReplication(QueryProcessor):
    """Vectors of a storage engine that has replicas: written at a level, read from whichever copy. Thread-safe.

    `consistency` one, quorum or all is asked of every write and read (docs/consistency.md): a level that is not reached
    raises NotEnoughCopies, after `timeout_s` at most. `read_preference` primary, replica or nearest is where reads go;
    whichever it is, they see what was written through this object. Without a manager it is a `QueryProcessor`.
    """

    def __init__(
        self,
        storage_engine: StorageEngineInMemory,
        index: Index | None = None,
        replication_manager: ReplicationManagerImpl | None = None,
        sharding_manager: object | None = None,
        *,
        consistency: str = "one",
        read_preference: str = "nearest",
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(storage_engine, index)
        if sharding_manager is not None:
            raise InvalidInput(
                "sharding is not part of this version: there is no ShardingManagerImpl, and nothing that would spread"
                " vectors over shards; leave sharding_manager out",
                field="sharding_manager",
            )
        _check("consistency", consistency, LEVELS)
        _check("read_preference", read_preference, PREFERENCES)
        if replication_manager is not None and replication_manager.primary_storage is not storage_engine:
            raise InvalidInput("the manager replicates another storage engine", field="replication_manager")
        self.replication_manager = replication_manager
        if replication_manager is not None:
            from cluster.library.shard import ReplicatedShard

            self._engine = storage_engine.through(
                ReplicatedShard(
                    storage_engine, consistency=consistency, read_preference=read_preference, timeout_s=timeout_s
                )
            )

    def get_storage_info(self) -> dict[str, Any]:
        """Return the totals, and what the manager knows of the replicas under `replication`."""
        info = super().get_storage_info()
        if self.replication_manager is not None:
            info["replication"] = self.replication_manager.get_replica_info()
        return info


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{field} is one of {', '.join(allowed)}", field=field)
