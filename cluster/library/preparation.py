"""What a program must have before it is the node of a cluster: tables, periodic tasks, a registry, an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from vectors.errors import InvalidInput
from vectors.library.environment import ensure_django, private_directory

ACTOR = "library"

_SHORTEST_INTERVAL_S = 0.1


def interval_check(seconds: float) -> None:
    """Raise InvalidInput for what is no interval of health rounds."""
    if not math.isfinite(seconds) or seconds < _SHORTEST_INTERVAL_S:
        raise InvalidInput("health_check_interval is a number of seconds, at least 0.1", field="health_check_interval")


def prepare(*, health_task: str, health_check_interval: float) -> None:
    """Make the database of this program, or of this project, one of a node that may have replicas and shards."""
    ensure_django()
    from django.apps import apps
    from django.core.management import call_command
    from django.db import transaction

    if not apps.is_installed("cluster"):
        raise ImproperlyConfigured("Django is configured without the app 'cluster', which this needs")
    from cluster.services.registry import replication_enable
    from mlvdb_site.markers import topology_changed
    from mlvdb_site.schedule import schedule_seed

    if private_directory() is not None:
        call_command("migrate", verbosity=0, interactive=False)
    schedule_seed()
    replication_enable(actor=ACTOR)
    _interval_set(health_task, health_check_interval)
    with transaction.atomic():
        # A storage engine may be newer than the picture that this process has of its shards.
        topology_changed()


def _interval_set(task_name: str, seconds: float) -> None:
    """Set the interval of health rounds, as the admin's periodic tasks do."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    is_whole = float(seconds).is_integer()
    wanted: Mapping[str, Any] = {
        "every": int(seconds) if is_whole else round(seconds * 1_000_000),
        "period": IntervalSchedule.SECONDS if is_whole else IntervalSchedule.MICROSECONDS,
    }
    interval = IntervalSchedule.objects.filter(**wanted).first() or IntervalSchedule.objects.create(**wanted)
    task = PeriodicTask.objects.get(task=task_name)
    if task.interval_id != interval.pk:
        task.interval, task.expire_seconds = interval, math.ceil(seconds)
        # Not by update(): saving tells beat that the schedule has changed.
        task.save()
