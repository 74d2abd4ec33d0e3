"""The admin of many nodes: the picture of them, shards, replicas, moves, what this node was told, health, history."""

from cluster.admin import cluster_page, moves, placements, records, replicas, sharding_records, shards

__all__ = ["cluster_page", "moves", "placements", "records", "replicas", "sharding_records", "shards"]
