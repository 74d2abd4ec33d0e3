"""Namespaces in the admin of a coordinator: each is one, whatever the shards that have a part of it."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from cluster.query_processor import ClusterQueryProcessor
from tests.cluster.shards import Coordinator, rows
from tests.vectors.admin_site import cells, client_of, messages_of
from vectors.models import Namespace

LIST = "/admin/vectors/namespace/"


@pytest.fixture
def admin(coordinator, admin_user: User) -> Client:
    """The superuser's client, on a coordinator with a namespace of sixty rows in two shards."""
    made: Coordinator = coordinator(local=2)
    queries = ClusterQueryProcessor()
    queries.upsert_many(rows(*range(60)), namespace="books")
    assert Namespace.objects.filter(name="books").count() == len(made.shards) == 2
    return client_of(admin_user)


def act(admin: Client, action: str, **more: str):
    """Run an action on all that the list has of `books`."""
    listed = Namespace.objects.filter(pk__in=[row.pk for row in admin.get(LIST).context["cl"].result_list])
    data = {"action": action, "_selected_action": [str(row.pk) for row in listed], **more}
    return admin.post(LIST, data, follow=True)


def test_a_namespace_is_listed_once_with_the_rows_of_all_shards(admin: Client) -> None:
    response = admin.get(LIST)

    assert (cells(response, "name"), cells(response, "rows")) == (["books"], ["60"])


def test_dropping_all_that_is_listed_drops_each_namespace_once(admin: Client) -> None:
    response = act(admin, "delete_selected", post="yes")

    assert messages_of(response) == ["60 rows went with namespace books.", "Successfully deleted 1 namespace."]
    assert not Namespace.objects.filter(dropped_at=None).exists()


def test_an_action_is_for_the_parts_in_all_shards_and_names_the_namespace_once(admin: Client, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "vectors.admin.checkpoints.services.checkpoint_request", lambda uid, **_how: asked.append(uid) or True
    )

    act(admin, "checkpoint")
    [message] = messages_of(act(admin, "measure_recall"))

    assert len(set(asked)) == 2
    assert message == "books has no index: every search of it is exact."
