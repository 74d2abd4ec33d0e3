"""Periodic tasks are edited in their own admin, under the node's admin site; what is set there stays."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.test import Client
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

from mlvdb_site.schedule import schedule_entries, schedule_seed
from tests.vectors.admin_site import cells, client_of, text_of

LIST = "/admin/django_celery_beat/periodictask/"


@pytest.fixture
def admin(transactional_db, admin_user) -> Client:
    """The superuser's client, on a node whose periodic tasks are seeded."""
    schedule_seed()
    return client_of(admin_user)


def form_of(task: PeriodicTask, /, **changed: object) -> dict[str, object]:
    """Return the change form's fields as the page sends them."""
    form: dict[str, object] = {
        "name": task.name,
        "regtask": "",
        "task": task.task,
        "enabled": "on",
        "description": task.description,
        "interval": task.interval_id,
        "args": task.args,
        "kwargs": task.kwargs,
        "expire_seconds": task.expire_seconds,
        "headers": task.headers,
    }
    form.update(changed)
    return {name: value for name, value in form.items() if value is not None}


def test_the_seeded_tasks_are_listed_and_each_has_a_form(admin):
    assert sorted(cells(admin.get(LIST), "name")) == sorted(name for name, _, _ in schedule_entries())
    for task in PeriodicTask.objects.all():
        page = admin.get(f"{LIST}{task.pk}/change/")
        assert page.status_code == 200
        assert f'<option value="{task.task}">' in page.content.decode()
        assert page.context["adminform"].form["task"].value() == task.task


def test_a_changed_interval_is_taken_over_by_beat_and_kept_over_a_restart(admin, admin_user):
    task = PeriodicTask.objects.first()
    assert task is not None
    changed_before = PeriodicTasks.last_change()
    interval = IntervalSchedule.objects.create(every=77, period=IntervalSchedule.SECONDS)
    response = admin.post(f"{LIST}{task.pk}/change/", form_of(task, interval=interval.pk))
    assert response.status_code == 302, text_of(response)
    assert PeriodicTasks.last_change() > changed_before
    assert schedule_seed() == []
    task.refresh_from_db()
    assert task.interval.every == 77
    assert HistoryEntry.objects.get().user == admin_user


def test_an_interval_edited_in_place_is_kept_over_a_restart(admin):
    task = PeriodicTask.objects.first()
    assert task is not None
    path = f"/admin/django_celery_beat/intervalschedule/{task.interval_id}/change/"
    management = {f"periodictask_set-{name}": "0" for name in ("TOTAL_FORMS", "INITIAL_FORMS")}
    assert admin.post(path, {"every": "99", "period": "seconds", **management}).status_code == 302
    assert schedule_seed() == []
    task.refresh_from_db()
    assert task.interval.every == 99


def test_a_task_disabled_in_the_admin_stays_disabled_over_a_restart(admin):
    task = PeriodicTask.objects.first()
    assert task is not None
    data = {"action": "disable_tasks", "_selected_action": [str(task.pk)]}
    assert admin.post(LIST, data).status_code == 302
    assert schedule_seed() == []
    task.refresh_from_db()
    assert not task.enabled


def test_a_task_of_no_known_name_or_bad_arguments_is_refused_in_the_form(admin):
    task = PeriodicTask.objects.first()
    assert task is not None
    response = admin.post(f"{LIST}{task.pk}/change/", form_of(task, task="", args="{"))
    assert set(response.context["adminform"].form.errors) >= {"task", "args"}
