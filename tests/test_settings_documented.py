"""The settings table, its page in the documentation, and the checks of contradicting settings."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from mlvdb_site import checks
from mlvdb_site.management.commands.settings_table import settings_page
from mlvdb_site.schedule import schedule_entries, schedule_seed
from mlvdb_site.settings_table import BY_NAME, SETTINGS, SettingError, read_all


def test_the_page_of_the_settings_is_what_the_table_says() -> None:
    page = settings.BASE_DIR / "docs" / "settings.md"

    assert page.read_text() == settings_page(), "run `manage.py settings_table --write`"


def test_every_setting_has_a_name_of_its_own_and_a_sentence() -> None:
    assert len(BY_NAME) == len(SETTINGS)
    for setting in SETTINGS:
        assert setting.name.startswith("MLVDB_") or setting.name == "DATABASE_URL"
        assert setting.help.endswith(".")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MLVDB_PORT", "http"),
        ("MLVDB_PORT", "0"),
        ("MLVDB_PORT", "70000"),
        ("MLVDB_ADVERTISE_URL", "notaurl"),
        ("MLVDB_ADVERTISE_URL", "http://host:8000/path"),
        ("MLVDB_MAX_BODY_BYTES", "64x"),
        ("MLVDB_BROKER_TIMEOUT_S", "nan"),
        ("MLVDB_DURABILITY", "sometimes"),
        ("DATABASE_URL", "sqlite:///node.sqlite3"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=name):
        read_all({name: text})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"MLVDB_TAIL_HARD_BYTES": 64 << 20, "MLVDB_TAIL_SOFT_BYTES": 64 << 20}, ["mlvdb.E001"]),
        ({"MLVDB_THREADS": 3}, ["mlvdb.E002"]),
        ({"MLVDB_READ_TIMEOUT_S": 500.0}, ["mlvdb.E003"]),
        ({"MLVDB_TRUSTED_PROXIES": ("proxy.example",)}, ["mlvdb.E004"]),
        ({"MLVDB_COMMIT_GROUP_BYTES": 1 << 40}, ["mlvdb.E005"]),
        ({"MLVDB_MAX_BODY_BYTES": 1 << 40}, ["mlvdb.W001"]),
        ({"MLVDB_BROKER_TIMEOUT_S": 10.0}, ["mlvdb.W002"]),
        ({"MLVDB_QUERY_PROCESSOR": "nothing.at.All"}, ["mlvdb.E008"]),
    ],
)
def test_contradicting_settings_are_found_by_the_system_checks(changed: dict[str, Any], expected: list[str]) -> None:
    with override_settings(**changed):
        found = [message.id for message in checks.node_settings(None)]

    assert found == expected


def test_an_old_sqlite_is_found_by_the_system_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.sqlite3, "sqlite_version_info", (3, 34, 1))

    assert [message.id for message in checks.node_settings(None)] == ["mlvdb.E007"]


def test_a_data_dir_that_cannot_be_written_is_found_by_the_system_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: path != settings.NODE_FILES.metrics)

    assert [message.id for message in checks.node_settings(None)] == ["mlvdb.E006"]


@pytest.mark.django_db
def test_an_interval_edited_in_the_admin_survives_the_next_start() -> None:
    schedule_seed()
    slower = IntervalSchedule.objects.create(every=97, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.filter(name="heartbeat").update(interval=slower, enabled=False)

    assert schedule_seed() == []

    entry = PeriodicTask.objects.get(name="heartbeat")
    assert entry.interval.every == 97
    assert not entry.enabled


@pytest.mark.django_db
def test_every_seeded_entry_expires_after_its_interval_and_has_a_task() -> None:
    from mlvdb_site.celery import app

    PeriodicTask.objects.all().delete()
    app.loader.import_default_modules()

    assert sorted(schedule_seed()) == sorted(name for name, _task, _seconds in schedule_entries())

    for entry in PeriodicTask.objects.select_related("interval"):
        assert entry.expire_seconds == entry.interval.every
        assert entry.task in app.tasks
        assert entry.queue is None
