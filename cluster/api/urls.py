"""Paths of replication, sharding and moves, and what each is for; none ends with a slash."""

from __future__ import annotations

from django.urls import path

from cluster.api.disabled import REPLICATION, SHARDING, disabled_view
from mlvdb_site.http.parameters import QueryParameter

_FLAG = {"type": "string", "enum": ["true", "false", "1", "0"]}

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

_NEW_REPLICA = {"replica_id": "replica_1", "replica_url": "http://127.0.0.1:8002"}
_NEW_SHARD = {"shard_id": "shard_1"}

urlpatterns = [
    path(
        "replication/info",
        disabled_view(REPLICATION, "Replication", "The replicas of this node and how far they are.", {"GET": ()}),
        name="replication-info",
    ),
    path(
        "replication/replicas",
        disabled_view(
            REPLICATION,
            "Replicas",
            "Add a replica; its full sync starts at once.",
            {"POST": (REPLICA_ID, REPLICA_URL, SHARD_ID)},
            examples={"POST": _NEW_REPLICA},
        ),
        name="replicas",
    ),
    path(
        "replication/replicas/health",
        disabled_view(REPLICATION, "Health of all replicas", "Whether each replica is healthy.", {"GET": ()}),
        name="replicas-health",
    ),
    path(
        "replication/replicas/<str:replica_id>",
        disabled_view(REPLICATION, "Replica", "Remove a replica.", {"DELETE": (FORCE,)}),
        name="replica",
    ),
    path(
        "replication/replicas/<str:replica_id>/health",
        disabled_view(REPLICATION, "Health of a replica", "Probe a replica now.", {"GET": ()}),
        name="replica-health",
    ),
    path(
        "replication/replicas/<str:replica_id>/sync",
        disabled_view(REPLICATION, "Sync of a replica", "Start a catch-up or full sync.", {"POST": (NAMESPACE,)}),
        name="replica-sync",
    ),
    path(
        "replication/replicas/<str:replica_id>/promote",
        disabled_view(
            REPLICATION, "Promotion of a replica", "Make a replica the primary of its shard.", {"POST": (FORCE,)}
        ),
        name="replica-promote",
    ),
    path(
        "replication/promote",
        disabled_view(REPLICATION, "Promotion", "On a replica: make this node the primary.", {"POST": (FORCE,)}),
        name="promote",
    ),
    path(
        "sharding/info",
        disabled_view(SHARDING, "Sharding", "The shards and their slots.", {"GET": ()}),
        name="sharding-info",
    ),
    path(
        "sharding/shards",
        disabled_view(
            SHARDING,
            "Shards",
            "Add a shard and fill it with its share.",
            {"POST": (SHARD_ID, SHARD_URL, WEIGHT, REBALANCE)},
            examples={"POST": _NEW_SHARD},
        ),
        name="shards",
    ),
    path(
        "sharding/shards/local",
        disabled_view(
            SHARDING,
            "Local shards",
            "Add a shard on this node.",
            {"POST": (SHARD_ID, WEIGHT, REBALANCE)},
            examples={"POST": _NEW_SHARD},
        ),
        name="shards-local",
    ),
    path(
        "sharding/shards/health",
        disabled_view(SHARDING, "Health of all shards", "Whether each shard is healthy.", {"GET": ()}),
        name="shards-health",
    ),
    path(
        "sharding/shards/redistribute-all",
        disabled_view(SHARDING, "Rebalance", "Rebalance the shards by weight.", {"POST": (DRY_RUN,)}),
        name="shards-redistribute-all",
    ),
    path(
        "sharding/shards/<str:shard_id>",
        disabled_view(SHARDING, "Shard", "Remove a shard, draining it first.", {"DELETE": (FORCE,)}),
        name="shard",
    ),
    path(
        "sharding/shards/<str:shard_id>/health",
        disabled_view(SHARDING, "Health of a shard", "Probe a shard now.", {"GET": ()}),
        name="shard-health",
    ),
    path(
        "sharding/shards/<str:source_id>/redistribute/<str:target_id>",
        disabled_view(SHARDING, "Redistribution", "Move all of one shard to another.", {"POST": (DRY_RUN,)}),
        name="shard-redistribute",
    ),
    path(
        "sharding/locate",
        disabled_view(SHARDING, "Location", "The shard and slot of an id.", {"GET": (ID, ID_TYPE, NAMESPACE)}),
        name="sharding-locate",
    ),
    path(
        "cluster/moves",
        disabled_view(SHARDING, "Moves", "Running changes of placement.", {"GET": (), "POST": (DRY_RUN,)}),
        name="moves",
    ),
    path(
        "cluster/moves/<str:move_id>",
        disabled_view(SHARDING, "Move", "A change of placement: plan, phase, progress.", {"GET": ()}),
        name="move",
    ),
    path(
        "cluster/moves/<str:move_id>/pause",
        disabled_view(SHARDING, "Pause of a move", "Pause a move.", {"POST": ()}),
        name="move-pause",
    ),
    path(
        "cluster/moves/<str:move_id>/resume",
        disabled_view(SHARDING, "Resumption of a move", "Resume a move.", {"POST": ()}),
        name="move-resume",
    ),
    path(
        "cluster/moves/<str:move_id>/cancel",
        disabled_view(SHARDING, "Cancellation of a move", "Cancel a move.", {"POST": ()}),
        name="move-cancel",
    ),
    path(
        "cluster/topology",
        disabled_view(SHARDING, "Topology", "The whole picture, for dashboards.", {"GET": ()}),
        name="cluster-topology",
    ),
    path(
        "cluster/health/history",
        disabled_view(SHARDING, "Health history", "How the peers were over time.", {"GET": ()}),
        name="cluster-health-history",
    ),
]
