"""The app of many nodes."""

from django.apps import AppConfig


class ClusterConfig(AppConfig):
    """Registry, placement, copying and watching of shards and replicas."""

    name = "cluster"
    verbose_name = "Cluster"
