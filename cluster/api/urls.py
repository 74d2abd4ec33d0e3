"""Paths of replication, sharding and moves, and what each is for; none ends with a slash. Those of nodes are apart."""

from __future__ import annotations

from django.urls import include, path

from cluster.api import moves, picture, replication, sharding

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
    path("sharding/info", sharding.ShardingInfoView.as_view(), name="sharding-info"),
    path("sharding/shards", sharding.ShardsView.as_view(), name="shards"),
    path("sharding/shards/local", sharding.LocalShardsView.as_view(), name="shards-local"),
    path("sharding/shards/health", sharding.ShardsHealthView.as_view(), name="shards-health"),
    path("sharding/shards/redistribute-all", sharding.RedistributeAllView.as_view(), name="shards-redistribute-all"),
    path("sharding/shards/<str:shard_id>", sharding.ShardView.as_view(), name="shard"),
    path("sharding/shards/<str:shard_id>/health", sharding.ShardHealthView.as_view(), name="shard-health"),
    path(
        "sharding/shards/<str:source_id>/redistribute/<str:target_id>",
        sharding.RedistributeView.as_view(),
        name="shard-redistribute",
    ),
    path("sharding/locate", sharding.LocateView.as_view(), name="sharding-locate"),
    path("cluster/moves", moves.MovesView.as_view(), name="moves"),
    path("cluster/moves/<str:move_id>", moves.MoveView.as_view(), name="move"),
    path("cluster/moves/<str:move_id>/pause", moves.MovePauseView.as_view(), name="move-pause"),
    path("cluster/moves/<str:move_id>/resume", moves.MoveResumeView.as_view(), name="move-resume"),
    path("cluster/moves/<str:move_id>/cancel", moves.MoveCancelView.as_view(), name="move-cancel"),
    path("cluster/topology", picture.TopologyView.as_view(), name="cluster-topology"),
    path("cluster/health/history", picture.HealthHistoryView.as_view(), name="cluster-health-history"),
]
