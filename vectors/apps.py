"""The app of one node's data."""

from django.apps import AppConfig


class VectorsConfig(AppConfig):
    """Namespaces, their log and segments, and the engines that search them."""

    name = "vectors"
    verbose_name = "Vectors"

    #: What a scrape of /metrics measures here (see `mlvdb_site.http.gauges`).
    gauges = ("vectors.store.gauges.storage_gauges", "vectors.recall.gauges.recall_gauges")

    #: Sentences for the banner of the admin (see `mlvdb_site.admin_site`).
    admin_warnings = ("vectors.admin.recall.recall_warnings",)

    #: Periodic tasks a new node starts with: (name, task, seconds between two runs).
    beat_entries = (
        ("checkpoint sweep", "vectors.tasks.checkpoint_sweep", 15),
        ("recall measure", "vectors.tasks.recall_measure", 600),
    )
