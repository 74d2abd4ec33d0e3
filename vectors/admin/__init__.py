"""The admin of a node's data: namespaces, vectors, recall, and shards, log, manifests and leases to look at."""

from vectors.admin import namespaces, recall, storage

__all__ = ["namespaces", "recall", "storage"]
