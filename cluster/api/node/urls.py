"""Paths of the routes between nodes, below `/cluster/node/`."""

from __future__ import annotations

from django.urls import path

from cluster.api.node.assignment import AssignmentView, NamespacesView
from cluster.api.node.digest import DigestView
from cluster.api.node.failover import LendView, PromoteShardView
from cluster.api.node.log import CutBackView, PositionView, SliceView
from cluster.api.node.placement import PlacementView
from cluster.api.node.read import ReadView, WriteView
from cluster.api.node.replicas import ShardReplicasView
from cluster.api.node.slots import SlotsView
from cluster.api.node.status import AliveView, StatusView
from cluster.api.node.sync import FileView, InstallView, OfferView
from cluster.api.node.votes import HandOverView, PlacementOfShardView, TakeOverView, VoteView

urlpatterns = [
    path("alive", AliveView.as_view(), name="node-alive"),
    path("status", StatusView.as_view(), name="node-status"),
    path("assignment", AssignmentView.as_view(), name="node-assignment"),
    path("placement", PlacementView.as_view(), name="node-placement"),
    path("shards/<str:uid>/namespaces", NamespacesView.as_view(), name="node-namespaces"),
    path("shards/<str:uid>/position", PositionView.as_view(), name="node-position"),
    path("shards/<str:uid>/read", ReadView.as_view(), name="node-read"),
    path("shards/<str:uid>/write", WriteView.as_view(), name="node-write"),
    path("shards/<str:uid>/lend", LendView.as_view(), name="node-shard-lend"),
    path("shards/<str:uid>/promote", PromoteShardView.as_view(), name="node-shard-promote"),
    path("shards/<str:uid>/replicas", ShardReplicasView.as_view(), name="node-shard-replicas"),
    path("shards/<str:uid>/slots/<str:operation>", SlotsView.as_view(), name="node-slots"),
    path("shards/<str:uid>/slice", SliceView.as_view(), name="node-slice"),
    path("shards/<str:uid>/cut-back", CutBackView.as_view(), name="node-cut-back"),
    path("shards/<str:uid>/digest", DigestView.as_view(), name="node-digest"),
    path("shards/<str:uid>/sync", OfferView.as_view(), name="node-sync"),
    path("shards/<str:uid>/sync/file", FileView.as_view(), name="node-sync-file"),
    path("shards/<str:uid>/sync/install", InstallView.as_view(), name="node-sync-install"),
    path("shards/<str:uid>/placement", PlacementOfShardView.as_view(), name="node-shard-placement"),
    path("shards/<str:uid>/vote", VoteView.as_view(), name="node-vote"),
    path("shards/<str:uid>/hand-over", HandOverView.as_view(), name="node-hand-over"),
    path("shards/<str:uid>/take-over", TakeOverView.as_view(), name="node-take-over"),
]
