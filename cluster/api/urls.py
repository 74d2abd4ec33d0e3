"""Paths of replication, sharding and moves, and what each is for; none ends with a slash. Those of nodes are apart."""

from __future__ import annotations

from django.urls import include, path

from cluster.api import picture, replication
from cluster.api.disabled import SHARDING, disabled_view
from cluster.api.query import (
    DRY_RUN,
    FORCE,
    ID,
    ID_TYPE,
    NAMESPACE,
    REBALANCE,
    SHARD_ID,
    SHARD_URL,
    WEIGHT,
)

_NEW_SHARD = {"shard_id": "shard_1"}

urlpatterns = [
    path("cluster/node/", include("cluster.api.node.urls")),
    path("replication/info", replication.ReplicationInfoView.as_view(), name="replication-info"),
    path("replication/replicas", replication.ReplicasView.as_view(), name="replicas"),
    path("replication/replicas/health", replication.ReplicasHealthView.as_view(), name="replicas-health"),
    path("replication/replicas/<str:replica_id>", replication.ReplicaView.as_view(), name="replica"),
    path(
        "replication/replicas/<str:replica_id>/health", replication.ReplicaHealthView.as_view(), name="replica-health"
    ),
    path("replication/replicas/<str:replica_id>/sync", replication.ReplicaSyncView.as_view(), name="replica-sync"),
    path(
        "replication/replicas/<str:replica_id>/promote",
        replication.ReplicaPromoteView.as_view(),
        name="replica-promote",
    ),
    path("replication/promote", replication.PromoteView.as_view(), name="promote"),
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
    path("cluster/moves", picture.MovesView.as_view(), name="moves"),
    path("cluster/moves/<str:move_id>", picture.MoveView.as_view(), name="move"),
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
    path("cluster/topology", picture.TopologyView.as_view(), name="cluster-topology"),
    path("cluster/health/history", picture.HealthHistoryView.as_view(), name="cluster-health-history"),
]
