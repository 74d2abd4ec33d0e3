"""The admin's copies, moves, probes, events, placements on their way, topology; and the alarms in its banner."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from cluster.models import (
    Assignment,
    ClusterEvent,
    HealthCheck,
    Move,
    MoveStep,
    NamespaceErrand,
    PlacementPush,
    Replica,
    ReplicaCopy,
    ShardedNamespace,
    Topology,
)
from cluster.services.changes import event_write
from tests.cluster.admin_pages import log_grows, probes, queries_of, staff_with
from tests.cluster.registry import Registry
from tests.cluster.shard_rows import move_of_slots, remote_shard
from tests.vectors.admin_site import cells, client_of, text_of
from vectors.engine.slots import NO_SLOTS

MODELS: dict[str, Any] = {
    "replicacopy": ReplicaCopy,
    "move": Move,
    "healthcheck": HealthCheck,
    "clusterevent": ClusterEvent,
    "placementpush": PlacementPush,
    "topology": Topology,
    "assignment": Assignment,
    "movestep": MoveStep,
    "namespaceerrand": NamespaceErrand,
    "shardednamespace": ShardedNamespace,
}
EVENTS = "/admin/cluster/clusterevent/"


@pytest.fixture
def admin(head, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


def add_rows(owner: Registry) -> Replica:
    """Add a replica with one more row of everything."""
    number = Replica.objects.count() + 1
    replica = owner.replica(f"replica_{number}")
    probes(replica, True)
    Move.objects.create(kind=Move.Kind.FULL_SYNC, replica=replica, replica_name=replica.name, shard=owner.head.uid)
    PlacementPush.objects.create(url=replica.url, shard=owner.head.uid, epoch=number, document={"epoch": number})
    event_write(actor="user ada", action="replica_added", subject=replica.name, after={"url": replica.url})
    add_shard_rows(number)
    return replica


def add_shard_rows(number: int) -> None:
    """Add two shards with a namespace that one has to be told of, and slots on their way between them."""
    shards = [remote_shard(f"shard_{number}_{end}") for end in ("from", "to")]
    move_of_slots(*shards, "copying")
    HealthCheck.objects.create(shard=shards[0], ok=True, health="alive", took_ms=1)
    namespace = ShardedNamespace.objects.create(
        uid=f"{number:032x}", name=f"space_{number}", dimension=3, metric="cosine", recall_target=0.9
    )
    NamespaceErrand.objects.create(shard=shards[1], namespace=namespace, attempts=2, last_error="refused")
    Assignment.objects.create(
        shard=f"{number:032x}",
        label=f"shard_{number}",
        cluster="c" * 32,
        epoch=number,
        coordinator_node="d" * 32,
        coordinator_url="http://coordinator.test:8000",
        slots=NO_SLOTS.packed,
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_list_and_every_row_has_a_page_and_nothing_is_to_be_changed(admin, owner: Registry, name: str):
    add_rows(owner)
    path = f"/admin/cluster/{name}/"
    pk = MODELS[name].objects.values_list("pk", flat=True)[0]
    assert admin.get(path).status_code == 200
    page = admin.get(f"{path}{pk}/change/")
    assert page.status_code == 200
    assert "Save" not in text_of(page)
    assert admin.get(f"{path}add/").status_code == 403
    assert admin.post(f"{path}{pk}/change/", {}).status_code == 403
    assert admin.post(f"{path}{pk}/delete/", {"post": "yes"}).status_code == 403


@pytest.mark.parametrize("name", [name for name in MODELS if name != "topology"])
def test_a_list_needs_as_many_queries_for_many_rows_as_for_one(admin, owner: Registry, name: str):
    add_rows(owner)
    path = f"/admin/cluster/{name}/"
    queries_of(admin, path)
    few = queries_of(admin, path)
    for _ in range(20):
        add_rows(owner)
    assert queries_of(admin, path) == few


def test_a_copy_shows_its_lag(admin, owner: Registry):
    owner.replica("replica_1")
    log_grows(owner.head, 600.0, 500.0)
    response = admin.get("/admin/cluster/replicacopy/")
    assert cells(response, "shard_name") == ["shard_0"]
    assert cells(response, "lag") == ["2", "10 min"]


def test_a_move_shows_its_progress_and_its_end(admin, owner: Registry):
    replica = owner.replica("replica_1")
    common = {"replica": replica, "replica_name": replica.name, "shard": owner.head.uid}
    Move.objects.create(kind="catch_up", phase="following", rows_done=3, rows_total=4, **common)
    Move.objects.create(kind="full_sync", phase="done", ended_at=timezone.now(), **common)
    response = admin.get("/admin/cluster/move/")
    assert [words.split()[0] for words in cells(response, "progress")] == ["done", "following"]
    assert [words.partition(" s ")[2] for words in cells(response, "progress")] == ["100 %", "75 % 3 of 4 operations"]


def test_a_step_shows_where_its_slots_go_and_how_far_they_are(admin, owner: Registry):
    move_of_slots(remote_shard("shard_1"), remote_shard("shard_2"), "following", slots=7)
    response = admin.get("/admin/cluster/movestep/")
    assert cells(response, "name") == ["shard_1 to shard_2"]
    assert (cells(response, "slot_count"), cells(response, "rows")) == (["7"], ["250 of 1,000 rows"])


def test_a_probe_says_whether_it_was_of_a_replica_or_of_a_shard(admin, owner: Registry):
    probes(owner.replica("replica_1"), True)
    HealthCheck.objects.create(shard=remote_shard("shard_1"), ok=False, health="dead", took_ms=1, error="refused")
    assert cells(admin.get("/admin/cluster/healthcheck/"), "peer") == ["shard shard_1", "replica replica_1"]


def test_the_history_shows_who_did_what_and_is_filtered_by_alarm(admin, owner: Registry):
    event_write(actor="user ada", action="replica_paused", subject="replica_1", after={"paused": True})
    event_write(actor="task", action="copy_quarantined", subject="replica_2", after={"reason": "differs"}, alarm=True)
    response = admin.get(EVENTS)
    assert cells(response, "author")[:2] == ["task", "user ada"]
    assert cells(response, "what")[:2] == ["copy quarantined", "replica paused"]
    assert cells(response, "words")[:2] == ["differs", "paused True"]
    alarms = admin.get(f"{EVENTS}?alarm__exact=1")
    assert cells(alarms, "concerns") == ["replica_2"]


def test_before_and_after_are_shown_as_text(admin, owner: Registry):
    event = event_write(actor="<b>x</b>", action="a", subject="s", before={"x": "<script>"}, after={"y": 2})
    page = admin.get(f"{EVENTS}{event.pk}/change/")
    assert '"x": "<script>"' in text_of(page)
    assert '<script>"' not in page.content.decode()


class TestBanner:
    def test_has_the_alarms_of_the_last_day_on_every_page_of_the_admin(self, admin, owner: Registry):
        event_write(actor="task", action="deposed", subject="shard_0", after={"message": "a <newer> term"}, alarm=True)
        old = event_write(actor="task", action="set_aside", subject="shard_1", alarm=True)
        ClusterEvent.objects.filter(pk=old.pk).update(at=timezone.now() - timedelta(days=2))
        event_write(actor="task", action="harmless", subject="shard_2")
        for path in ("/admin/", "/admin/vectors/namespace/"):
            page = admin.get(path)
            text = text_of(page)
            assert "ago: deposed shard_0: a <newer> term ( all alarms )" in text
            assert "set aside" not in text
            assert "harmless" not in text
            assert f'<a href="{EVENTS}?alarm__exact=1">' in page.content.decode()

    def test_says_the_same_alarm_once_and_counts_the_rest(self, admin, owner: Registry):
        for number in (1, 2, 3, 4, 5):
            for _ in range(10):
                event_write(actor="task", action="set_aside", subject=f"shard_{number}", alarm=True)
        text = text_of(admin.get("/admin/"))
        assert text.count("Alarm,") == 3
        assert "and 2 more alarms" in text

    def test_is_quiet_without_alarms(self, admin, owner: Registry):
        assert "Alarm" not in text_of(admin.get("/admin/"))


def test_who_may_view_one_kind_of_rows_sees_no_other(owner: Registry):
    client = staff_with("cluster.view_move")
    assert client.get("/admin/cluster/move/").status_code == 200
    assert client.get(EVENTS).status_code == 403
