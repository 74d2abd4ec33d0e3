"""The admin of many nodes: replicas and the truth about them, what this node was told, moves, health, history."""

from cluster.admin import placements, records, replicas

__all__ = ["placements", "records", "replicas"]
