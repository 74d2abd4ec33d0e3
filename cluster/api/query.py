"""The parameters of the cluster's endpoints."""

from __future__ import annotations

from mlvdb_site.http.parameters import QueryParameter

_FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000}

REPLICA_ID = QueryParameter("replica_id", "Name of the replica.", example="replica_1")
REPLICA_URL = QueryParameter("replica_url", "URL of the replica's node.", example="http://127.0.0.1:8002")
SHARD_ID = QueryParameter("shard_id", "Name of the shard.", example="shard_1")
SHARD_URL = QueryParameter("shard_url", "URL of the shard's node; a local shard has none.")
WEIGHT = QueryParameter("weight", "Share of the slots, relative to the other shards.", schema={"type": "number"})
REBALANCE = QueryParameter("rebalance", "`false` leaves a new shard empty until asked.", schema=_FLAG)
NAMESPACE = QueryParameter("namespace", "The namespace.")
FORCE = QueryParameter("force", "Go on where data may be lost.", schema=_FLAG)
DRY_RUN = QueryParameter("dry_run", "Only show the plan.", schema=_FLAG)
ID = QueryParameter("id", "An id.")
ID_TYPE = QueryParameter("id_type", "`string` reads digits as a string.")
HISTORY_REPLICA = QueryParameter("replica_id", "Only this replica.")
HISTORY_LIMIT = QueryParameter("limit", "Probes of each replica, the newest.", schema=_COUNT)
MOVES_LIMIT = QueryParameter("limit", "Moves, the newest.", schema=_COUNT)
