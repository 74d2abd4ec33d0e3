"""The banner of the admin: alarms of the last day, which a person should look at."""

from __future__ import annotations

from collections.abc import Sequence

from django.urls import reverse
from django.utils import timezone

from cluster.admin.history import alarm_warnings


def cluster_warnings() -> Sequence[str]:
    """Return the sentences; named in the AppConfig as `admin_warnings`."""
    url = reverse("admin:cluster_clusterevent_changelist")
    return alarm_warnings(events_url=f"{url}?alarm__exact=1", now=timezone.now())
