"""The periodic tasks a new node starts with; afterwards the admin's periodic tasks are the truth.

Each app names its entries in its AppConfig as `beat_entries`: (name, task, seconds). They are made when they are
missing and never changed: an interval set or an entry disabled in the admin stays so across starts and upgrades.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import connections, transaction


def schedule_entries() -> Iterator[tuple[str, str, int]]:
    """Yield the entries of all installed apps."""
    for config in apps.get_app_configs():
        yield from getattr(config, "beat_entries", ())


def schedule_seed() -> list[str]:
    """Make the entries that are missing and return their names."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    made = []
    for name, task, seconds in schedule_entries():
        with transaction.atomic():
            if PeriodicTask.objects.filter(name=name).exists():
                continue
            interval = IntervalSchedule.objects.filter(every=seconds, period=IntervalSchedule.SECONDS).first()
            if interval is None:
                interval = IntervalSchedule.objects.create(every=seconds, period=IntervalSchedule.SECONDS)
            # No queue is stored: each node's beat routes to that node's own queues, also over a shared database.
            # A run that nobody took up within the interval is dropped: the next one replaces it.
            PeriodicTask.objects.create(name=name, task=task, interval=interval, expire_seconds=max(1, seconds))
            made.append(name)
    return made


def schedule_seed_after_migrate(*, using: str, **kwargs: Any) -> None:
    """Seed once the tables are there (`migrate` of a single app may come before they are)."""
    if "django_celery_beat_periodictask" in connections[using].introspection.table_names():
        schedule_seed()
