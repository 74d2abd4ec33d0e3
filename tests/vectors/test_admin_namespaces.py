"""The admin's namespaces: list, make, change, drop, checkpoint; what is refused, and who may."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mlvdb_site import celery
from tests.vectors.admin_site import cells, client_of, messages_of, staff_with, text_of
from vectors import services
from vectors.errors import NotReady, ShardDamaged
from vectors.models import Namespace, ShardHead
from vectors.query_processor import LocalQueryProcessor

LIST = "/admin/vectors/namespace/"
ADD = "/admin/vectors/namespace/add/"
FORM = {"name": "books", "dimension": "4", "metric": "cosine", "recall_target": "0.99", "picture": ""}


@pytest.fixture
def admin(served, admin_user) -> Client:
    """The superuser's client, on an empty node."""
    return client_of(admin_user)


@pytest.fixture
def books(served, batch) -> Namespace:
    """A namespace of twelve rows."""
    served.queries.upsert_many(batch(0, 12), namespace="books")
    return Namespace.objects.get(name="books")


def page(namespace: Namespace, view: str) -> str:
    """Return the path of a namespace's page."""
    return reverse(f"admin:vectors_namespace_{view}", args=[namespace.pk])


def act(client: Client, action: str, *namespaces: Namespace, **more: str) -> Any:
    """Run an action on some namespaces."""
    data = {"action": action, "_selected_action": [str(namespace.pk) for namespace in namespaces], **more}
    return client.post(LIST, data, follow=True)


class TestList:
    def test_shows_what_the_engine_knows_of_each_namespace(self, admin, served, books, batch):
        served.checkpoint()
        served.restart()
        served.queries.upsert_many(batch(100, 3), namespace="books")
        served.queries.namespace_put("empty", dimension=8, metric="l2", recall_target=0.9)
        response = admin.get(LIST)
        assert cells(response, "name") == ["books", "empty"]
        assert cells(response, "dimension") == ["4", "8"]
        assert cells(response, "metric_word") == ["cosine", "l2"]
        assert cells(response, "recall") == ["0.99", "0.9"]
        assert cells(response, "measured_recall") == ["exact", "exact"]
        assert cells(response, "rows") == ["15", "0"]
        assert cells(response, "segments") == ["1", "0"]
        assert cells(response, "tail_rows") == ["3", "0"]

    def test_leaves_out_dropped_namespaces(self, admin, served, books):
        served.queries.namespace_drop("books")
        assert cells(admin.get(LIST), "name") == []
        assert admin.get(page(books, "change")).status_code == 302

    def test_needs_no_query_for_each_namespace(self, admin, served):
        def queries() -> int:
            with CaptureQueriesContext(connection) as captured:
                assert admin.get(LIST).status_code == 200
            return len(captured)

        served.queries.namespace_put("n0", dimension=2)
        queries()  # what is looked up once and kept
        few = queries()
        for number in range(1, 20):
            served.queries.namespace_put(f"n{number}", dimension=2)
        assert queries() == few

    def test_is_searched_by_name(self, admin, served, books):
        served.queries.namespace_put("other", dimension=2)
        assert cells(admin.get(LIST, {"q": "ook"}), "name") == ["books"]

    def test_renders_while_the_engine_is_not_open_and_says_so(self, admin, books, monkeypatch):
        def not_ready(self: Any, **_options: Any) -> None:
            raise NotReady("shard shard_0 is being opened: 40 %")

        monkeypatch.setattr(LocalQueryProcessor, "namespace_details", not_ready)
        response = admin.get(LIST)
        assert cells(response, "rows") == ["–"]
        assert messages_of(response) == ["Rows and sizes are not known now: shard shard_0 is being opened: 40 %"]

    def test_tells_loudly_of_a_damaged_shard(self, admin, books):
        ShardHead.objects.update(damage={"log": {"seq": 7}})
        assert "DATA LOST: shard shard_0 is damaged" in text_of(admin.get(LIST))


class TestAdd:
    def test_makes_a_namespace_through_the_log_and_writes_its_author_into_the_history(self, admin, served, admin_user):
        response = admin.post(ADD, {**FORM, "metric": "l2", "recall_target": "0.9", "picture": "2x2"})
        assert response.status_code == 302, text_of(response)
        (info,) = served.queries.namespace_details().value
        assert (info.name, info.dimension, info.metric, info.recall_target, info.picture) == (
            "books", 4, "l2", 0.9, "2x2",
        )  # fmt: skip
        entry = HistoryEntry.objects.get()
        namespace = Namespace.objects.get()
        assert (entry.user, entry.object_id, entry.is_addition()) == (admin_user, str(namespace.pk), True)
        assert "admin" in text_of(admin.get(page(namespace, "history")))

    def test_leads_to_the_page_of_what_it_made_when_asked_to_go_on(self, admin):
        response = admin.post(ADD, {**FORM, "_continue": "1"})
        assert response.url == page(Namespace.objects.get(), "change")

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("name", "", "This field is required."),
            ("name", ".hidden", "must be 1 to 128 letters, digits"),
            ("name", "no spaces", "must be 1 to 128 letters, digits"),
            ("name", "<script>alert(1)</script>", "must be 1 to 128 letters, digits"),
            ("name", "x" * 129, "at most 128 characters"),
            ("name", "vectors", "is a word of the API's paths"),
            ("dimension", "", "This field is required."),
            ("dimension", "0", "dimension is 1 to 4096"),
            ("dimension", "4097", "dimension is 1 to 4096"),
            ("dimension", "-1", "greater than or equal to 0"),
            ("dimension", "three", "Enter a whole number."),
            ("metric", "hamming", "Select a valid choice."),
            ("recall_target", "0", "more than 0 and at most 1"),
            ("recall_target", "1.5", "more than 0 and at most 1"),
            ("recall_target", "nan", "Enter a number."),
            ("picture", "3x3", "as many points as the dimension"),
            ("picture", "round", "as many points as the dimension"),
        ],
    )
    def test_shows_what_is_refused_beside_its_field(self, admin, field, value, message):
        response = admin.post(ADD, {**FORM, field: value})
        assert response.status_code == 200
        form = response.context["adminform"].form
        assert list(form.errors) == [field]
        assert message in form.errors[field][0]
        assert "<script>alert" not in response.content.decode()
        assert not Namespace.objects.exists()
        assert not HistoryEntry.objects.exists()

    def test_refuses_a_name_that_is_taken(self, admin, books):
        response = admin.post(ADD, FORM)
        assert response.context["adminform"].form.errors == {"name": ["There is a namespace books already."]}

    def test_a_name_may_be_used_again_after_a_drop(self, admin, served, books):
        served.queries.namespace_drop("books")
        assert admin.post(ADD, FORM).status_code == 302

    def test_shows_a_refusal_that_names_no_field_above_the_form(self, admin, settings):
        settings.MLVDB_MAX_NAMESPACES = 0
        response = admin.post(ADD, FORM)
        assert response.context["adminform"].form.non_field_errors() == ["the node has MLVDB_MAX_NAMESPACES namespaces"]

    def test_shows_that_another_request_was_faster(self, admin, served, monkeypatch):
        put = LocalQueryProcessor.namespace_put

        def slower(self: LocalQueryProcessor, name: str, **wanted: Any) -> Any:
            monkeypatch.setattr(LocalQueryProcessor, "namespace_put", put)
            put(self, name, dimension=9)
            return put(self, name, **wanted)

        monkeypatch.setattr(LocalQueryProcessor, "namespace_put", slower)
        response = admin.post(ADD, FORM)
        assert "dimension 9, which cannot change" in response.context["adminform"].form.errors["dimension"][0]


class TestChange:
    def test_shows_the_state_and_keeps_name_dimension_and_metric_read_only(self, admin, books):
        response = admin.get(page(books, "change"))
        assert list(response.context["adminform"].form.fields) == ["recall_target", "picture"]
        assert "Rows: 12" in text_of(response)
        assert page(books, "vectors") in response.content.decode()

    def test_changes_recall_target_and_picture_and_nothing_else(self, admin, served, books):
        data = {"recall_target": "0.95", "picture": "4x1", "dimension": "7", "metric": "l2", "name": "stolen"}
        assert admin.post(page(books, "change"), data).status_code == 302
        (info,) = served.queries.namespace_details().value
        assert (info.name, info.dimension, info.metric, info.recall_target, info.picture, info.count) == (
            "books", 4, "cosine", 0.95, "4x1", 12,
        )  # fmt: skip
        assert HistoryEntry.objects.get().is_change()

    def test_takes_a_picture_away(self, admin, served, books):
        served.queries.namespace_put("books", picture="2x2")
        assert admin.post(page(books, "change"), {"recall_target": "0.99", "picture": ""}).status_code == 302
        assert served.queries.namespace_details().value[0].picture == ""

    @pytest.mark.parametrize(("field", "value"), [("recall_target", "2"), ("picture", "5x5")])
    def test_shows_what_is_refused_and_changes_nothing(self, admin, served, books, field, value):
        before = served.queries.namespace_details().value
        response = admin.post(page(books, "change"), {"recall_target": "0.99", "picture": "", field: value})
        assert list(response.context["adminform"].form.errors) == [field]
        assert served.queries.namespace_details().value == before
        assert not HistoryEntry.objects.exists()


class TestDrop:
    def test_asks_first_and_says_how_many_rows_go(self, admin, books):
        assert "Namespace books with 12 rows" in text_of(admin.get(page(books, "delete")))
        assert Namespace.objects.get().dropped_at is None

    def test_drops_through_the_log_and_writes_its_author_into_the_history(self, admin, served, books, admin_user):
        response = admin.post(page(books, "delete"), {"post": "yes"}, follow=True)
        assert "12 rows went with namespace books." in messages_of(response)
        assert served.queries.list_namespaces().value == []
        assert Namespace.objects.get().dropped_at is not None
        entry = HistoryEntry.objects.get()
        assert (entry.user, entry.object_repr, entry.is_deletion()) == (admin_user, "books", True)

    def test_drops_several_after_asking(self, admin, served, books):
        served.queries.namespace_put("other", dimension=2)
        namespaces = Namespace.objects.all()
        asked = text_of(act(admin, "delete_selected", *namespaces))
        assert "Namespace books with 12 rows" in asked
        assert "Namespace other with 0 rows" in asked
        assert served.queries.list_namespaces().value == ["books", "other"]
        act(admin, "delete_selected", *namespaces, post="yes")
        assert served.queries.list_namespaces().value == []
        assert HistoryEntry.objects.count() == 2

    @pytest.mark.parametrize("way", ["page", "action"])
    def test_shows_a_refusal_and_writes_no_history(self, admin, served, books, monkeypatch, way):
        def refuse(self: Any, name: str, **_options: Any) -> None:
            raise ShardDamaged("shard shard_0 has lost data and is read-only")

        monkeypatch.setattr(LocalQueryProcessor, "namespace_drop", refuse)
        if way == "page":
            response = admin.post(page(books, "delete"), {"post": "yes"}, follow=True)
        else:
            response = act(admin, "delete_selected", books, post="yes")
        assert messages_of(response) == ["Refused: shard shard_0 has lost data and is read-only"]
        assert served.queries.list_namespaces().value == ["books"]
        assert not HistoryEntry.objects.exists()


class TestCheckpointNow:
    def test_asks_the_broker_once_for_each_shard_and_says_that_it_was_taken(self, admin, served, books, monkeypatch):
        sent: list[Any] = []
        monkeypatch.setattr(celery, "publish", lambda *task: sent.append(task) or True)
        served.queries.namespace_put("other", dimension=2)
        response = act(admin, "checkpoint", *Namespace.objects.all())
        assert sent == [("vectors.tasks.checkpoint_now", served.head.uid)]
        assert "The broker took the request" in messages_of(response)[0]
        assert [entry.change_message for entry in HistoryEntry.objects.all()] == ["Asked for a checkpoint."] * 2

    def test_says_so_when_the_broker_is_down(self, admin, books):
        response = act(admin, "checkpoint", books)
        assert "The broker is down and did not take the request to checkpoint shard_0" in messages_of(response)[0]
        assert not HistoryEntry.objects.exists()

    def test_says_so_when_there_is_nothing_to_write(self, admin, served, books):
        served.checkpoint()
        assert "has nothing to write" in messages_of(act(admin, "checkpoint", books))[0]

    def test_does_not_ask_for_a_damaged_shard(self, admin, books, monkeypatch):
        monkeypatch.setattr(services, "checkpoint_request", lambda *_, **__: pytest.fail("asked"))
        ShardHead.objects.update(damage={"log": {"seq": 1}})
        assert any("no checkpoint is made" in message for message in messages_of(act(admin, "checkpoint", books)))


class TestPermissions:
    def test_pages_are_for_staff(self, served, books):
        for path in (LIST, ADD, page(books, "change"), page(books, "delete"), page(books, "vectors")):
            assert Client().get(path).url.startswith("/admin/login/")

    def test_view_shows_and_changes_nothing(self, served, books):
        client = staff_with("view_namespace")
        assert client.get(LIST).status_code == 200
        assert client.get(page(books, "vectors")).status_code == 200
        assert "Save" not in text_of(client.get(page(books, "change")))
        assert client.post(page(books, "change"), {"recall_target": "0.5", "picture": ""}).status_code == 403
        assert client.get(ADD).status_code == 403
        assert client.post(page(books, "delete"), {"post": "yes"}).status_code == 403
        assert "Checkpoint now" not in text_of(act(client, "checkpoint", books))
        assert not HistoryEntry.objects.exists()
        assert served.queries.namespace_details().value[0].recall_target == 0.99

    def test_nothing_without_a_permission(self, served, books):
        client = staff_with()
        for path in (LIST, ADD, page(books, "change"), page(books, "delete"), page(books, "vectors")):
            assert client.get(path).status_code == 403

    def test_each_change_needs_its_own(self, served, books):
        assert staff_with("add_namespace").post(ADD, {**FORM, "name": "more"}).status_code == 302
        changer = staff_with("view_namespace", "change_namespace")
        assert changer.post(page(books, "change"), {"recall_target": "0.5", "picture": ""}).status_code == 302
        assert changer.get(page(books, "delete")).status_code == 403
        dropper = staff_with("view_namespace", "delete_namespace")
        assert dropper.post(page(books, "delete"), {"post": "yes"}).status_code == 302
        assert served.queries.list_namespaces().value == ["more"]

    def test_forms_need_their_token(self, served, books, admin_user):
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        for path, data in (
            (ADD, FORM),
            (page(books, "change"), {"picture": ""}),
            (page(books, "delete"), {"post": "y"}),
        ):
            assert client.post(path, data).status_code == 403
        assert served.queries.list_namespaces().value == ["books"]
