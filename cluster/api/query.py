"""The parameters of the cluster's endpoints."""

from __future__ import annotations

from mlvdb_site.http.parameters import QueryParameter

_FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000}

REPLICA_ID = QueryParameter("replica_id", "Name of the replica.", example="replica_1")
REPLICA_URL = QueryParameter("replica_url", "URL of the replica's node.", example="http://127.0.0.1:8002")
SHARD_ID = QueryParameter("shard_id", "Name of the shard.", example="shard_1")
SHARD_URL = QueryParameter("shard_url", "URL of the shard's node; a local shard has none.")
WEIGHT = QueryParameter(
    "weight",
    "Share of the slots, relative to the other shards.",
    schema={"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
)
REBALANCE = QueryParameter("rebalance", "`false` leaves a new shard empty until asked.", schema=_FLAG)
AUTO_FAILOVER = QueryParameter(
    "auto_failover",
    "Whether a replica takes the place of the shard's node by itself when that is dead; of a shard that is there it is "
    "changed. MLVDB_AUTO_FAILOVER when it is not given.",
    schema=_FLAG,
)
NAMESPACE = QueryParameter("namespace", "The namespace.")
FORCE = QueryParameter("force", "Go on where data may be lost.", schema=_FLAG)
DRY_RUN = QueryParameter("dry_run", "Only show the plan.", schema=_FLAG)
LOCATED_ID = QueryParameter(
    "id", "An id.", schema={"type": "string", "minLength": 1, "maxLength": 255}, example="7", required=True
)
HISTORY_REPLICA = QueryParameter("replica_id", "Only this replica.")
HISTORY_SHARD = QueryParameter("shard_id", "Only this shard.")
HISTORY_LIMIT = QueryParameter("limit", "Probes of each replica and shard, the newest.", schema=_COUNT)
MOVE_KIND = QueryParameter(
    "kind", "What to do.", schema={"type": "string", "enum": ["rebalance", "drain", "redistribute"]}
)
MOVE_SOURCE = QueryParameter("source", "The shard that gives its slots away.")
MOVE_TARGET = QueryParameter("target", "The shard that gets them.")
MOVES_LIMIT = QueryParameter("limit", "Moves, the newest.", schema=_COUNT)
