"""JSON schemas of what the cluster's endpoints answer. Properties that are not named here may be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.models import Move
from cluster.states import CopyState, Membership, MovePhase, PeerHealth, ShardState
from mlvdb_site.http.openapi import Schema

_TEXT: Schema = {"type": "string"}
_OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}
_FLAG: Schema = {"type": "boolean"}
_OPTIONAL_FLAG: Schema = {"type": ["boolean", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OPTIONAL_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}


def component_schemas() -> Mapping[str, Schema]:
    """Return them by name."""
    return {
        "ReplicationChange": _object(
            {
                "status": {"const": "success"},
                "message": _TEXT,
                "move": {**_COUNT, "description": "The move that was started: `/cluster/moves/{id}`."},
                "last_error": {**_TEXT, "description": "Why the replica's node could not be reached yet."},
                "warning": {**_TEXT, "description": "What a forced promotion may have lost."},
            },
            required=("status", "message"),
        ),
        "Replica": _object(
            {
                "url": _TEXT,
                "is_healthy": _OPTIONAL_FLAG,
                "last_health_check": _OPTIONAL_TEXT,
                "is_primary": _FLAG,
                "state": {"type": "string", "enum": ["primary", *[state.value for state in CopyState]]},
                "member": {**_FLAG, "description": "Whether it counts in quorums."},
                "membership": {"type": "string", "enum": [state.value for state in Membership]},
                "health": {"type": "string", "enum": [state.value for state in PeerHealth]},
                "applied_seq": _OPTIONAL_COUNT,
                "lag": {**_OPTIONAL_COUNT, "description": "Operations of the primary's log that it lacks."},
                "last_error": _OPTIONAL_TEXT,
            },
            required=("url", "is_healthy", "is_primary", "state", "member", "applied_seq", "lag", "last_error"),
        ),
        "ReplicationInfo": _object(
            {
                "role": {"type": "string", "enum": ["primary", "replica", "detached"]},
                "primary_replica": _TEXT,
                "total_replicas": _COUNT,
                "healthy_replicas": _COUNT,
                "workers_alive": {**_FLAG, "description": "Whether what copies and watches, and beat, is running."},
                "warnings": {"type": "array", "items": _TEXT},
                "epoch": _COUNT,
                "replicas": {
                    "type": "object",
                    "additionalProperties": {"$ref": "#/components/schemas/Replica"},
                },
            },
            required=("primary_replica", "total_replicas", "healthy_replicas", "workers_alive", "replicas"),
        ),
        "ReplicaHealth": _object({"replica_id": _TEXT, "is_healthy": _FLAG}, required=("replica_id", "is_healthy")),
        "ReplicasHealth": _object(
            {"replicas_health": {"type": "object", "additionalProperties": _FLAG}}, required=("replicas_health",)
        ),
        "Shard": _object(
            {
                "is_healthy": _FLAG,
                "is_local": _FLAG,
                "vector_count": _COUNT,
                "slots": _COUNT,
                "weight": {"type": "number"},
                "state": {"type": "string", "enum": [state.value for state in ShardState]},
                "url": _TEXT,
                "last_health_check": _OPTIONAL_TEXT,
                "last_error": _OPTIONAL_TEXT,
            },
            required=("is_healthy", "is_local", "vector_count", "slots"),
        ),
        "ShardingInfo": _object(
            {
                "total_shards": _COUNT,
                "healthy_shards": _COUNT,
                "sharding_strategy": {"type": "string", "enum": ["hash", "round_robin"]},
                "epoch": _COUNT,
                "shards": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Shard"}},
            },
            required=("total_shards", "healthy_shards", "sharding_strategy", "epoch", "shards"),
        ),
        "ShardChange": _object(
            {
                "status": {"const": "success"},
                "message": _TEXT,
                "shard_id": _TEXT,
                "is_local": _FLAG,
                "move": {**_COUNT, "description": "The move that was started: `/cluster/moves/{id}`."},
                "last_error": {**_TEXT, "description": "Why the shard's node could not be reached yet."},
            },
            required=("status", "message"),
        ),
        "ShardHealth": _object({"shard_id": _TEXT, "is_healthy": _FLAG}, required=("shard_id", "is_healthy")),
        "ShardsHealth": _object(
            {"shards_health": {"type": "object", "additionalProperties": _FLAG}}, required=("shards_health",)
        ),
        "Location": _object(
            {
                "shard_id": _TEXT,
                "slot": _COUNT,
                "copies": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            },
            required=("shard_id", "slot", "copies"),
        ),
        "Move": _object(
            {
                "id": _COUNT,
                "kind": {"type": "string", "enum": [kind.value for kind in Move.Kind]},
                "replica_id": _OPTIONAL_TEXT,
                "shard": _TEXT,
                "phase": {"type": "string", "enum": [phase.value for phase in MovePhase]},
                "plan": {"type": "object", "additionalProperties": True},
                "rows_done": _COUNT,
                "rows_total": _COUNT,
                "bytes_done": _COUNT,
                "bytes_total": _COUNT,
                "eta_s": {"type": ["number", "null"]},
                "error": _OPTIONAL_TEXT,
                "started_at": _TEXT,
                "ended_at": _OPTIONAL_TEXT,
            },
            required=("id", "kind", "phase", "rows_done", "rows_total", "eta_s"),
        ),
        "Moves": _object(
            {"moves": {"type": "array", "items": {"$ref": "#/components/schemas/Move"}}}, required=("moves",)
        ),
        "HealthHistory": _object(
            {
                "history": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Probes"}},
                "shards": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Probes"}},
            },
            required=("history", "shards"),
        ),
        "Probes": {
            "type": "array",
            "items": _object(
                {
                    "at": _TEXT,
                    "ok": _FLAG,
                    "health": _TEXT,
                    "took_ms": {"type": "number"},
                    "error": _OPTIONAL_TEXT,
                },
                required=("at", "ok", "health"),
            ),
        },
    }


def _object(properties: Mapping[str, Schema], *, required: Sequence[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}
