"""The registry and what a node has been told: topology, shards, replicas and their copies, moves, health, events.

The owner of a cluster's registry has `Topology.is_owner` and the rows of replicas, pushes, moves and health. Every
other node has the `Placement` rows it was sent. All are written by `cluster.services` and the packages below it alone.
"""

from cluster.models.history import ClusterEvent, DigestRun, HealthCheck
from cluster.models.moves import SLOT_KINDS, Move, MoveStep
from cluster.models.registry import Peer, PlacementPush, Replica, ReplicaCopy, Topology
from cluster.models.sharding import NamespaceErrand, Shard, ShardCopy, ShardedNamespace
from cluster.models.told import Assignment, Placement

__all__ = [
    "SLOT_KINDS",
    "Assignment",
    "ClusterEvent",
    "DigestRun",
    "HealthCheck",
    "Move",
    "MoveStep",
    "NamespaceErrand",
    "Peer",
    "Placement",
    "PlacementPush",
    "Replica",
    "ReplicaCopy",
    "Shard",
    "ShardCopy",
    "ShardedNamespace",
    "Topology",
]
