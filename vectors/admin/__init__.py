"""The admin of a node's data: namespaces with their vectors, and its shards, log, manifests and leases to look at."""

from vectors.admin import namespaces, storage

__all__ = ["namespaces", "storage"]
