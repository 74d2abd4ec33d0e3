"""The apps of the site: its own rows and checks, and Django's admin with the node's admin site."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig as DjangoAdminConfig
from django.db.models.signals import post_migrate


class SiteConfig(AppConfig):
    """API keys, heartbeats, the schedule of the background tasks."""

    name = "mlvdb_site"
    verbose_name = "Node"
    default_auto_field = "django.db.models.BigAutoField"

    #: (name, task, seconds between two runs): see `mlvdb_site.schedule`.
    beat_entries = (("heartbeat", "mlvdb_site.tasks.heartbeat", 10),)

    def ready(self) -> None:
        """Register the checks and the seeding of the schedule."""
        from mlvdb_site import checks  # noqa: F401
        from mlvdb_site.schedule import schedule_seed_after_migrate

        post_migrate.connect(
            schedule_seed_after_migrate, sender=self, dispatch_uid="mlvdb_site.schedule_seed_after_migrate"
        )


class AdminConfig(DjangoAdminConfig):
    """Django's admin, with the node's admin site as the default one."""

    default_site = "mlvdb_site.admin_site.NodeAdminSite"
