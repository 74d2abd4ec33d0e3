"""The app of one node's data."""

from django.apps import AppConfig


class VectorsConfig(AppConfig):
    """Namespaces, their log and segments, and the engines that search them."""

    name = "vectors"
    verbose_name = "Vectors"

    #: Periodic tasks a new node starts with: (name, task, seconds between two runs).
    beat_entries = (("checkpoint sweep", "vectors.tasks.checkpoint_sweep", 15),)
