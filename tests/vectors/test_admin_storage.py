"""The admin's pages of shards, log, manifests and leases: all there, none to change, no payload read."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from mlvdb_site import celery
from tests.vectors.admin_site import cells, client_of, messages_of, staff_with, text_of
from vectors.engine.ids import key_of
from vectors.models import Lease, LogEntry, Manifest, ShardHead
from vectors.tasks import checkpoint_now, checkpoint_shard

MODELS = {"shardhead": ShardHead, "logentry": LogEntry, "manifest": Manifest, "lease": Lease}


@pytest.fixture
def admin(served, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


@pytest.fixture
def filled(served, batch) -> Any:
    """A shard with a manifest, a lease, and three operations of two namespaces after them, one of these dropped."""
    served.queries.upsert_many(batch(0, 12), namespace="books")
    served.checkpoint()
    served.queries.upsert_many(batch(100, 3), namespace="books")
    served.queries.namespace_put("gone", dimension=2)
    served.queries.namespace_drop("gone")
    return served


@pytest.mark.parametrize("name", MODELS)
def test_every_list_and_every_row_has_a_page(admin, filled, name):
    assert admin.get(f"/admin/vectors/{name}/").status_code == 200
    rows = list(MODELS[name].objects.all())
    assert rows
    for row in rows:
        assert admin.get(f"/admin/vectors/{name}/{row.pk}/change/").status_code == 200


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_to_be_made_changed_or_deleted(admin, filled, name):
    pk = MODELS[name].objects.values_list("pk", flat=True)[0]
    assert admin.get(f"/admin/vectors/{name}/add/").status_code == 403
    assert admin.post(f"/admin/vectors/{name}/add/", {}).status_code == 403
    assert admin.post(f"/admin/vectors/{name}/{pk}/change/", {}).status_code == 403
    assert admin.post(f"/admin/vectors/{name}/{pk}/delete/", {"post": "yes"}).status_code == 403
    page = text_of(admin.get(f"/admin/vectors/{name}/{pk}/change/"))
    assert "Save" not in page
    assert "Delete" not in page


def test_a_shard_shows_its_head(admin, filled):
    head = ShardHead.objects.get()
    response = admin.get("/admin/vectors/shardhead/")
    assert cells(response, "label") == ["shard_0"]
    assert cells(response, "uid") == [head.uid]
    assert cells(response, "term") == ["1"]
    assert cells(response, "last_seq") == [str(head.last_seq)]
    assert cells(response, "manifest_seq") == ["2"]
    assert cells(response, "state") == ["whole"]


def test_damage_is_shown_loudly(admin, filled):
    ShardHead.objects.update(damage={"log": {"seq": 3, "reason": "<b>torn</b>"}})
    response = admin.get("/admin/vectors/shardhead/")
    assert cells(response, "state") == ["DAMAGED, read-only"]
    assert "DATA LOST: shard shard_0 is damaged" in text_of(response)
    report = admin.get(f"/admin/vectors/shardhead/{filled.head.pk}/change/")
    assert '"reason": "<b>torn</b>"' in text_of(report)
    assert "<b>torn</b>" not in report.content.decode()


def test_the_log_is_listed_newest_first_with_names_and_sizes_and_without_payloads(admin, filled):
    with CaptureQueriesContext(connection) as captured:
        response = admin.get("/admin/vectors/logentry/")
        admin.get(f"/admin/vectors/logentry/{LogEntry.objects.defer('payload').first().pk}/change/")
    assert cells(response, "position") == [f"shard_0: (1, {seq})" for seq in (5, 4, 3)]
    assert cells(response, "namespace_title") == ["gone", "gone", "books"]
    assert cells(response, "kind") == ["namespace_drop", "namespace_put", "upsert"]
    assert cells(response, "rows") == ["0", "0", "3"]
    size = len(LogEntry.objects.get(seq=3).payload)
    assert cells(response, "payload_size")[2].replace("\xa0", " ") == f"{size} bytes"
    for query in captured:
        selected = query["sql"].partition(" FROM ")[0]
        assert '"payload"' not in selected.replace('LENGTH("vectors_logentry"."payload")', "")


def test_a_page_of_the_log_needs_no_query_for_each_entry(admin, filled):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin.get("/admin/vectors/logentry/").status_code == 200
        return len(captured)

    queries()  # what is looked up once and kept
    few = queries()
    for number in range(20):
        filled.queries.namespace_put(f"n{number}", dimension=2)
    assert queries() == few


def test_a_manifest_shows_what_it_lists(admin, filled):
    manifest = Manifest.objects.get()
    response = admin.get("/admin/vectors/manifest/")
    assert cells(response, "number") == [str(manifest.number)]
    assert (cells(response, "namespaces"), cells(response, "segments"), cells(response, "rows")) == (
        ["1"],
        ["1"],
        ["12"],
    )
    assert '"name": "books"' in text_of(admin.get(f"/admin/vectors/manifest/{manifest.pk}/change/"))


def test_a_manifest_counts_deleted_rows_out(admin, filled):
    filled.queries.delete(namespace="books", keys=[key_of(0), key_of(1)])
    filled.checkpoint()
    assert cells(admin.get("/admin/vectors/manifest/"), "rows")[0] == "13"


def test_a_lease_shows_its_holder(admin, filled):
    assert cells(admin.get("/admin/vectors/lease/"), "holder") == ["free"]
    Lease.objects.update(owner="host:17")
    assert cells(admin.get("/admin/vectors/lease/"), "holder") == ["host:17"]


def _checkpoint(client: Client, pk: int) -> Any:
    data = {"action": "checkpoint", "_selected_action": [str(pk)]}
    return client.post("/admin/vectors/shardhead/", data, follow=True)


def test_checkpoint_now_is_asked_of_the_broker_and_written_into_the_history(admin, filled, monkeypatch):
    sent: list[Any] = []
    monkeypatch.setattr(celery, "publish", lambda *task: sent.append(task) or True)
    response = _checkpoint(admin, filled.head.pk)
    assert sent == [("vectors.tasks.checkpoint_now", filled.head.uid)]
    assert "The broker took the request" in messages_of(response)[0]
    assert HistoryEntry.objects.get().change_message == "Asked for a checkpoint."


def test_checkpoint_now_says_that_the_broker_is_down(admin, filled):
    assert "The broker is down" in messages_of(_checkpoint(admin, filled.head.pk))[0]


def test_checkpoint_now_needs_the_permission_to_change_shards(filled, monkeypatch):
    sent: list[Any] = []
    monkeypatch.setattr(celery, "publish", lambda *task: sent.append(task) or True)
    viewer = staff_with("view_shardhead")
    assert viewer.get("/admin/vectors/shardhead/").status_code == 200
    _checkpoint(viewer, filled.head.pk)
    assert sent == []
    _checkpoint(staff_with("view_shardhead", "change_shardhead"), filled.head.pk)
    assert len(sent) == 1


def test_the_task_of_checkpoint_now_checkpoints_a_small_and_young_tail(filled):
    before = ShardHead.objects.get().manifest_seq
    checkpoint_shard(filled.head.uid)
    assert ShardHead.objects.get().manifest_seq == before
    checkpoint_now(filled.head.uid)
    head = ShardHead.objects.get()
    assert head.manifest_seq == head.last_seq > before
    checkpoint_now(filled.head.uid)
    checkpoint_now("no such shard")


@pytest.mark.parametrize("name", MODELS)
def test_pages_need_their_permission(filled, name):
    assert staff_with().get(f"/admin/vectors/{name}/").status_code == 403
    assert staff_with(f"view_{name}").get(f"/admin/vectors/{name}/").status_code == 200


def test_merges_and_indexes_are_shown(admin, served, batch, settings):
    settings.MLVDB_INDEX_MIN_ROWS = 300
    for start in (0, 400):
        served.queries.upsert_many(batch(start, 400, dimension=16), namespace="books")
        served.checkpoint()
    served.merge()
    head, manifest = ShardHead.objects.get(), Manifest.objects.order_by("number").last()
    assert (head.rows_flushed, head.rows_merged) == (800, 800)
    page = text_of(admin.get(f"/admin/vectors/shardhead/{head.pk}/change/"))
    assert "800 by checkpoints and 800 again by merges: 2.0 times each" in page
    listing = admin.get("/admin/vectors/manifest/")
    assert cells(listing, "origin")[0] == "a merge"
    assert cells(listing, "indexed")[0] == "1"
    page = text_of(admin.get(f"/admin/vectors/manifest/{manifest.pk}/change/"))
    assert "recall" in page
    ShardHead.objects.update(index_faults={"f" * 32: {"file": "index.1.1.bin", "reason": "the checksum is wrong"}})
    page = text_of(admin.get(f"/admin/vectors/shardhead/{head.pk}/change/"))
    assert "the checksum is wrong" in page


def test_metrics_tell_segments_rows_written_and_index_faults(admin, served, batch):
    served.queries.upsert_many(batch(0, 40), namespace="books")
    served.checkpoint()
    served.queries.upsert_many(batch(40, 40), namespace="books")
    served.checkpoint()
    served.merge()
    ShardHead.objects.update(index_faults={"f" * 32: {"file": "index.1.1.bin", "reason": "short"}})
    text = admin.get("/metrics").content.decode()
    for line in (
        'mlvdb_shard_segments{shard="shard_0"} 1.0',
        'mlvdb_rows_flushed_total{shard="shard_0"} 80.0',
        'mlvdb_rows_merged_total{shard="shard_0"} 80.0',
        'mlvdb_index_faults{shard="shard_0"} 1.0',
    ):
        assert line in text
