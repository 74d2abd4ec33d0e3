"""The app of many nodes."""

from django.apps import AppConfig


class ClusterConfig(AppConfig):
    """Registry, placement, copying and watching of shards and replicas."""

    name = "cluster"
    verbose_name = "Cluster"

    #: Periodic tasks a new node starts with: (name, task, seconds between two runs).
    beat_entries = (
        ("replica health", "cluster.tasks.health_replicas", 5),
        ("shard health", "cluster.tasks.health_shards", 5),
        ("replication sweep", "cluster.tasks.replication_sweep", 2),
        ("replication join", "cluster.tasks.replication_join", 2),
        ("moves", "cluster.tasks.moves_run", 2),
        ("sharding sweep", "cluster.tasks.sharding_sweep", 2),
        ("replica contents", "cluster.tasks.verify_replicas", 3600),
    )

    #: What a scrape of /metrics measures here (see `mlvdb_site.http.gauges`).
    gauges = ("cluster.health.gauges.replication_gauges", "cluster.health.gauges.sharding_gauges")

    #: Sentences for the banner of the admin (see `mlvdb_site.admin_site`).
    admin_warnings = ("cluster.admin.alarms.cluster_warnings",)

    #: Who is told the base URL of every peer that takes no connection (see `cluster.transport.client`).
    refused_hooks = ("cluster.health.samples.refusal_record",)
