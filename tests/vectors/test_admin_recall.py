"""Recall in the admin: what the pages of a namespace say of it, the action, the history, the banner, and who may."""

from __future__ import annotations

import numpy as np
import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mlvdb_site import celery
from tests.vectors.admin_site import cells, client_of, messages_of, staff_with, text_of
from tests.vectors.blinkered import blinkers_on
from vectors import measuring, runtime
from vectors.models import IndexRequest, Namespace, RecallMeasure
from vectors.recall import requests
from vectors.recall.samples import samples_add

LIST = "/admin/vectors/namespace/"
MEASURES = "/admin/vectors/recallmeasure/"


@pytest.fixture
def admin(served, admin_user) -> Client:
    return client_of(admin_user)


@pytest.fixture
def books(served, batch) -> Namespace:
    """A namespace of 400 rows in one segment, which has no index."""
    served.queries.upsert_many(batch(0, 400), namespace="books")
    served.checkpoint()
    served.restart()
    return Namespace.objects.get(name="books")


@pytest.fixture
def indexed(books, served, monkeypatch):
    """The same with an index that sees six of every ten rows."""
    with blinkers_on(monkeypatch, sees=6):
        runtime.reset()
        yield books
    runtime.reset()


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, tuple[object, ...]]]:
    """The tasks that were published."""
    tasks: list[tuple[str, tuple[object, ...]]] = []

    def publish(task: str, *args: object) -> bool:
        tasks.append((task, args))
        return True

    monkeypatch.setattr(celery, "publish", publish)
    return tasks


def change_page(namespace: Namespace) -> str:
    return reverse("admin:vectors_namespace_change", args=[namespace.pk])


def measure(client: Client, *namespaces: Namespace):
    data = {"action": "measure_recall", "_selected_action": [str(namespace.pk) for namespace in namespaces]}
    return client.post(LIST, data, follow=True)


class TestNamespacePages:
    def test_without_an_index_every_search_is_exact(self, admin, books):
        assert cells(admin.get(LIST), "measured_recall") == ["exact"]
        page = text_of(admin.get(change_page(books)))
        assert "Rows with an index: 0 of 400" in page
        assert "Measured recall: every search is exact" in page
        assert "Recent queries kept: none yet" in page
        assert "To be tuned anew: no" in page

    def test_before_the_first_measure_it_is_what_the_index_was_tuned_to(self, admin, indexed):
        response = admin.get(LIST)
        assert cells(response, "measured_recall") == ["0.991"]
        assert b"shard-damaged" not in response.content
        page = text_of(admin.get(change_page(indexed)))
        assert "Rows with an index: 400 of 400" in page
        assert "0.9912, when the indexes were tuned; not measured since" in page

    def test_a_measure_is_shown_with_its_source_and_flagged_when_it_falls_short(self, admin, served, indexed):
        samples_add(indexed.uid, list(np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)))
        [found] = measuring.recall_measure(served.head, owner="test")
        assert found.is_short

        response = admin.get(LIST)
        assert cells(response, "measured_recall") == [f"{found.recall:.3f}"]
        assert b'<strong class="shard-damaged" title="40 recent queries">' in response.content
        page = text_of(admin.get(change_page(indexed)))
        assert f"{found.recall:.4f}, SHORT of what is promised, with 40 recent queries" in page
        assert "Recent queries kept: 40, the newest" in page
        assert "To be tuned anew: yes, the measured recall fell short" in page

    def test_a_kept_promise_is_not_flagged(self, admin, served, indexed):
        Namespace.objects.update(recall_target=0.5)
        served.queries.namespace_put("books", recall_target=0.4)
        measuring.recall_measure(served.head, owner="test")
        response = admin.get(LIST)
        assert b"shard-damaged" not in response.content
        assert "rows of its own" in text_of(admin.get(change_page(indexed)))

    def test_a_search_on_the_page_says_that_an_index_was_asked(self, admin, indexed):
        page = reverse("admin:vectors_namespace_vectors", args=[indexed.pk])
        assert "found by index" in text_of(admin.get(page, {"query": "[1, 2, 3, 4]"}))

    def test_many_namespaces_need_no_more_queries_than_one(self, admin, served, indexed):
        def count() -> int:
            with CaptureQueriesContext(connection) as captured:
                assert admin.get(LIST).status_code == 200
            return len(captured)

        measuring.recall_measure(served.head, owner="test")
        count()
        few = count()
        for number in range(10):
            served.queries.namespace_put(f"n{number}", dimension=2)
            other = Namespace.objects.get(name=f"n{number}")
            RecallMeasure.objects.create(
                namespace=other, recall=1, target=0.9, queries=1, is_real=True, is_short=False, indexed_rows=1, rows=1,
                took_s=0.1,
            )  # fmt: skip
        assert count() == few


class TestAction:
    def test_asks_a_worker_to_measure_and_writes_it_into_the_history(self, admin, served, indexed, sent):
        response = measure(admin, indexed)
        assert sent == [("vectors.tasks.recall_measure_now", (served.head.uid, [indexed.uid]))]
        assert messages_of(response) == ["The broker took the request: a Celery worker measures the recall of books."]
        assert HistoryEntry.objects.get().change_message == "Asked for a measure of its recall."

    def test_says_that_there_is_nothing_to_measure(self, admin, books, sent):
        response = measure(admin, books)
        assert sent == []
        assert messages_of(response) == ["books has no index: every search of it is exact."]
        assert not HistoryEntry.objects.exists()

    def test_says_that_the_broker_is_down(self, admin, indexed, monkeypatch):
        monkeypatch.setattr(celery, "publish", lambda *_: False)
        response = measure(admin, indexed)
        assert messages_of(response) == ["The broker is down and did not take the request. Nothing was measured."]
        assert not HistoryEntry.objects.exists()

    def test_is_for_those_who_may_change_namespaces(self, indexed, sent):
        measure(staff_with("view_namespace"), indexed)
        assert sent == []
        measure(staff_with("view_namespace", "change_namespace"), indexed)
        assert len(sent) == 1


class TestHistory:
    @pytest.fixture
    def measured(self, served, indexed) -> Namespace:
        measuring.recall_measure(served.head, owner="test")
        RecallMeasure.objects.create(
            namespace=indexed, recall=0.9956, target=0.99, queries=1234, is_real=True, is_short=False,
            indexed_rows=400, rows=410, took_s=1.234,
        )  # fmt: skip
        return indexed

    def test_lists_the_measures_newest_first(self, admin, measured):
        response = admin.get(MEASURES)
        assert cells(response, "measured")[0] == "0.9956"
        assert cells(response, "promised") == ["0.99", "0.99"]
        assert cells(response, "verdict") == ["kept", "SHORT"]
        assert cells(response, "source") == ["1,234 recent queries", "100 rows of its own"]
        assert cells(response, "index") == ["400 of 410", "400 of 400"]
        assert cells(response, "took")[0] == "1.23 s"

    def test_the_link_of_the_namespace_page_leads_to_its_own(self, admin, served, measured, batch):
        other = Namespace.objects.create(shard=served.head, name="other", dimension=4)
        RecallMeasure.objects.create(
            namespace=other, recall=1, target=0.9, queries=1, is_real=True, is_short=False, indexed_rows=1, rows=1,
            took_s=0.1,
        )  # fmt: skip
        link = f"{MEASURES}?namespace__id__exact={measured.pk}"
        assert link in admin.get(change_page(measured)).content.decode()
        assert cells(admin.get(link), "namespace") == ["books", "books"]

    def test_nobody_changes_it(self, admin, measured):
        found = RecallMeasure.objects.first()
        assert admin.get(f"{MEASURES}add/").status_code == 403
        assert admin.post(f"{MEASURES}{found.pk}/delete/", {"post": "yes"}).status_code == 403
        assert RecallMeasure.objects.count() == 2

    def test_is_for_those_who_may_view_it(self, measured):
        assert staff_with("view_recallmeasure").get(MEASURES).status_code == 200
        assert staff_with("view_namespace").get(MEASURES).status_code == 403


class TestBanner:
    def test_names_the_namespaces_that_fall_short(self, admin, served, indexed):
        [found] = measuring.recall_measure(served.head, owner="test")
        said = text_of(admin.get("/admin/"))
        assert (
            f"Searches of namespace books find {found.recall:.3f} of the true neighbours, 0.99 are promised,"
            " measured with 100 rows of its own." in said
        )

    def test_names_three_and_counts_the_rest(self, admin, served):
        for number in range(5):
            other = Namespace.objects.create(shard=served.head, name=f"n{number}", dimension=4)
            RecallMeasure.objects.create(
                namespace=other, recall=0.5, target=0.99, queries=9, is_real=True, is_short=True, indexed_rows=1,
                rows=1, took_s=0.1,
            )  # fmt: skip
        said = text_of(admin.get("/admin/"))
        assert said.count("of the true neighbours") == 3
        assert "The recall of 2 more namespaces falls short." in said

    def test_is_silent_when_promises_are_kept(self, admin, served, indexed):
        measuring.recall_measure(served.head, owner="test")
        Namespace.objects.update(recall_target=0.5)
        assert "true neighbours" not in text_of(admin.get("/admin/"))

    def test_a_wish_somebody_made_is_no_alarm(self, admin, served, indexed):
        requests.ask(indexed, IndexRequest.Reason.ASKED)
        assert "true neighbours" not in text_of(admin.get("/admin/"))
