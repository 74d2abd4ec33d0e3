"""Replication over HTTP, on a node where it is enabled; its peers are nodes that answer as the test says."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.test import Client

from cluster.models import ClusterEvent, HealthCheck, Replica, ReplicaCopy
from cluster.query_processor.means import means
from cluster.services.copies import copy_state_set
from cluster.services.registry import replication_enable
from cluster.states import CopyState
from cluster.topology import topology_forget
from cluster.transport import PROTOCOL
from mlvdb_site.heartbeats import BEAT, heartbeat_record, worker_name
from mlvdb_site.keys import key_create
from tests.api.conftest import Api, checked_error
from tests.api.documented import valid
from tests.api.routes import api_routes
from tests.cluster.standin_node import Nodes, StandInNode
from vectors.models import ShardHead


@pytest.fixture
def primary(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A node that may have replicas."""
    monkeypatch.setattr("cluster.services.registry.publish", lambda *_arguments: True)
    monkeypatch.setattr("cluster.services.placements.knock", lambda _shard: None)
    topology_forget()
    assert replication_enable(actor="test")
    yield api
    topology_forget()


def add(api: Api, node: StandInNode, name: str = "replica_1") -> Any:
    return api.post(f"/replication/replicas?replica_id={name}&replica_url={node.url}")


def test_a_replica_is_added_shown_and_removed(primary: Api, nodes: Nodes) -> None:
    node = nodes()

    added = add(primary, node)
    info = primary.get("/replication/info").json()

    assert added.status_code == 200
    assert added.json() == {"status": "success", "message": "Replica replica_1 added"}
    valid(added.json(), "/replication/replicas", "post")
    valid(info, "/replication/info")
    assert (info["primary_replica"], info["total_replicas"], info["healthy_replicas"]) == ("primary", 1, 0)
    replica = info["replicas"]["replica_1"]
    assert (replica["url"], replica["is_primary"], replica["state"], replica["member"]) == (
        node.url,
        False,
        "syncing",
        False,
    )
    removed = primary.delete("/replication/replicas/replica_1")
    assert removed.json() == {"status": "success", "message": "Replica replica_1 removed"}
    assert primary.get("/replication/info").json()["replicas"] == {}
    assert checked_error(primary.delete("/replication/replicas/replica_1"))["code"] == "replica_not_found"


def test_a_repeated_call_is_200_and_another_url_409(primary: Api, nodes: Nodes) -> None:
    node, other = nodes(), nodes()
    add(primary, node)

    again, elsewhere = add(primary, node), add(primary, other)

    assert again.status_code == 200
    assert elsewhere.status_code == 409
    assert checked_error(elsewhere)["code"] == "replica_exists"
    assert checked_error(elsewhere)["detail"] == {"url": node.url}


@pytest.mark.parametrize("form", ["json", "form", "query"])
def test_parameters_come_in_the_query_or_in_a_body(primary: Api, nodes: Nodes, form: str) -> None:
    node = nodes()
    given = {"replica_id": "replica_1", "replica_url": node.url}

    if form == "json":
        response = primary.post("/replication/replicas", {**given, "shard_id": None})
    elif form == "form":
        body = f"replica_id=replica_1&replica_url={node.url}".encode()
        response = primary.post("/replication/replicas", body, content_type="application/x-www-form-urlencoded")
    else:
        response = add(primary, node)

    assert response.status_code == 200, response.content
    assert Replica.objects.get().url == node.url


def test_the_query_wins_over_the_body(primary: Api, nodes: Nodes) -> None:
    node = nodes()

    primary.post(f"/replication/replicas?replica_id=a&replica_url={node.url}", {"replica_id": "b"})

    assert Replica.objects.get().name == "a"


@pytest.mark.parametrize(
    ("query", "body", "code", "field"),
    [
        ("", {}, "missing_field", "replica_id"),
        ("", {"replica_id": "a"}, "missing_field", "replica_url"),
        ("", {"replica_id": "a", "replica_url": "nowhere"}, "invalid_input", "replica_url"),
        ("", {"replica_id": "health", "replica_url": "http://a:1"}, "invalid_input", "replica_id"),
        ("", {"replica_id": ["a"], "replica_url": "http://a:1"}, "invalid_input", "replica_id"),
        ("", {"replica_id": "a", "replica_url": "http://a:1", "x": 1}, "unknown_field", "x"),
        ("?replica_id=a&replica_id=b", {}, "repeated_parameter", "replica_id"),
        ("?x=1", {}, "unknown_field", "x"),
        ("?shard_id=nothing", {"replica_id": "a", "replica_url": "http://a:1"}, "not_found", "shard_id"),
    ],
)
def test_a_bad_request_names_its_field_and_changes_nothing(
    primary: Api, query: str, body: object, code: str, field: str
) -> None:
    response = primary.post(f"/replication/replicas{query}", body)

    error = checked_error(response)
    assert response.status_code in (400, 404)
    assert (error["code"], error["field"]) == (code, field)
    assert not Replica.objects.exists()


@pytest.mark.parametrize(
    ("status", "http_status", "code"),
    [
        ({"protocol": PROTOCOL + 1}, 409, "incompatible"),
        ({"empty": False, "rows": 5}, 409, "not_empty"),
        ({"replicas": 1}, 409, "cycle"),
        ({"node": django_settings.MLVDB_NODE_ID}, 400, "own_url"),
    ],
)
def test_a_node_that_cannot_be_a_replica_is_refused(
    primary: Api, nodes: Nodes, status: dict[str, Any], http_status: int, code: str
) -> None:
    response = add(primary, nodes(**status))

    assert response.status_code == http_status
    assert checked_error(response)["code"] == code


def test_a_replica_that_is_not_up_is_added_with_the_reason(primary: Api, nodes: Nodes) -> None:
    node = nodes()
    node.close()

    response = add(primary, node)

    assert response.status_code == 200
    assert response.json()["last_error"].startswith("peer_refused")
    replica = primary.get("/replication/info").json()["replicas"]["replica_1"]
    assert (replica["state"], replica["is_healthy"]) == ("new", False)
    assert replica["last_error"].startswith("peer_refused")


def test_health_is_probed_when_it_is_asked_for(primary: Api, nodes: Nodes) -> None:
    up, down = nodes(), nodes()
    add(primary, up, "up")
    add(primary, down, "down")
    down.close()

    every = primary.get("/replication/replicas/health").json()
    one = primary.get("/replication/replicas/up/health").json()

    assert every == {"replicas_health": {"up": True, "down": False}}
    assert one == {"replica_id": "up", "is_healthy": True}
    valid(every, "/replication/replicas/health")
    assert primary.get("/replication/replicas/other/health").status_code == 404
    history = primary.get("/cluster/health/history?replica_id=up&limit=1").json()
    assert [check["ok"] for check in history["history"]["up"]] == [True]
    assert HealthCheck.objects.count() == 3


def test_lag_is_what_the_copy_lacks_of_the_log(primary: Api, nodes: Nodes) -> None:
    add(primary, nodes())
    primary.post("/vectors", {"id": 1, "values": [1, 2, 3]})
    ReplicaCopy.objects.update(term=1, seq=1)

    replica = primary.get("/replication/info").json()["replicas"]["replica_1"]

    head = ShardHead.objects.get()
    assert head.last_seq > 1
    assert (replica["applied_seq"], replica["lag"]) == (1, head.last_seq - 1)
    assert replica["shards"]["shard_0"]["lag"] == head.last_seq - 1


def test_a_sync_answers_its_move(primary: Api, nodes: Nodes) -> None:
    add(primary, nodes())

    response = primary.post("/replication/replicas/replica_1/sync?namespace=default")

    body = response.json()
    assert body["status"] == "success"
    valid(body, "/replication/replicas/{replica_id}/sync", "post")
    move = primary.get(f"/cluster/moves/{body['move']}").json()
    valid(move, "/cluster/moves/{move_id}")
    assert (move["replica_id"], move["kind"], move["phase"]) == ("replica_1", "full_sync", "planned")
    assert [entry["id"] for entry in primary.get("/cluster/moves").json()["moves"]] == [body["move"]]
    assert primary.get("/cluster/moves/77").status_code == 404
    assert primary.get("/cluster/moves/x").status_code == 404
    assert primary.post("/replication/replicas/replica_1/sync?namespace=a/b").status_code == 400


def test_the_topology_is_the_whole_picture(primary: Api, nodes: Nodes) -> None:
    node = nodes()
    add(primary, node)

    picture = primary.get("/cluster/topology").json()

    [shard] = picture["shards"].values()
    assert (shard["is_primary"], shard["is_local"]) == (True, True)
    assert [(copy["name"], copy["url"]) for copy in shard["copies"]] == [("replica_1", node.url)]
    assert picture["is_owner"]


def test_storage_info_has_a_section_of_replication(primary: Api, nodes: Nodes) -> None:
    assert primary.get("/storage/info").json()["replication"]["total_replicas"] == 0

    add(primary, nodes())

    section = primary.get("/storage/info").json()["replication"]
    assert (section["role"], section["total_replicas"], section["healthy_replicas"]) == ("primary", 1, 0)


def test_storage_info_of_a_single_node_is_as_it_was(api: Api) -> None:
    topology_forget()

    assert "replication" not in api.get("/storage/info").json()


def test_workers_are_alive_when_replication_health_and_beat_are(primary: Api) -> None:
    assert primary.get("/replication/info").json()["workers_alive"] is False
    for name in (worker_name("replication"), worker_name("health")):
        heartbeat_record(name, owner="test")
    info = primary.get("/replication/info").json()
    assert info["workers_alive"] is False
    assert any("beat" in warning for warning in info["warnings"])

    heartbeat_record(BEAT, owner="test")

    assert primary.get("/replication/info").json()["workers_alive"] is True


def test_slots_cannot_be_moved_on_a_node_without_shards_of_its_own_making(primary: Api) -> None:
    assert checked_error(primary.post("/cluster/moves"))["code"] == "sharding_not_enabled"
    assert primary.get("/sharding/info").json() == {"message": "Sharding is not enabled"}


PAGES = [route.path for route in api_routes() if route.path.startswith(("/replication", "/cluster"))]


@pytest.mark.parametrize("path", PAGES)
def test_every_endpoint_renders_as_a_page_where_it_is_enabled(primary: Api, nodes: Nodes, path: str) -> None:
    add(primary, nodes())
    move = primary.post("/replication/replicas/replica_1/sync").json()["move"]

    response = primary.page(path.replace("replica_id", "replica_1").replace("move_id", str(move)))

    assert response.status_code == 200, response.content
    assert "<h1>" in response.content.decode()


def test_the_example_of_the_form_is_of_what_the_endpoint_takes(primary: Api, nodes: Nodes) -> None:
    text = html.unescape(primary.page("/replication/replicas").content.decode())
    example = json.loads(re.search(r"<textarea[^>]*>(.*?)</textarea>", text, re.DOTALL)[1])

    response = primary.post("/replication/replicas", {**example, "replica_url": nodes().url})

    assert response.status_code == 200
    assert Replica.objects.get().name == example["replica_id"]


def test_a_request_that_would_wait_for_other_nodes_is_refused_when_too_many_do(primary: Api, nodes: Nodes) -> None:
    add(primary, nodes())
    with ExitStack() as waiting:
        for _ in range(means().waits.limit):
            waiting.enter_context(means().waits.slot())

        answers = [
            primary.get("/replication/replicas/health"),
            primary.get("/replication/replicas/replica_1/health"),
            primary.delete("/replication/replicas/replica_1"),
            primary.post("/replication/promote"),
        ]

        assert [checked_error(answer)["code"] for answer in answers] == ["busy"] * 4
        assert {answer.status_code for answer in answers} == {503}
        assert primary.get("/replication/info").status_code == 200
    assert primary.get("/replication/replicas/health").status_code == 200


# -- who asked ---------------------------------------------------------------------------------------------------


def test_a_change_is_in_the_history_with_its_author(primary: Api, nodes: Nodes) -> None:
    add(primary, nodes(), "by_program")
    key, text = key_create(name="ops", scopes=["read", "operate"])
    by_key = nodes()
    response = primary.post(
        f"/replication/replicas?replica_id=by_key&replica_url={by_key.url}", headers={"Authorization": f"Bearer {text}"}
    )
    assert response.status_code == 200, response.content
    user = get_user_model().objects.create_superuser("ann", password="x")
    browser = Client(raise_request_exception=False)
    browser.force_login(user)
    response = browser.post("/replication/replicas/by_key/sync", content_type="application/json", data={})
    assert response.status_code == 200, response.content

    added = ClusterEvent.objects.filter(action="replica_added").order_by("id")
    assert [event.actor for event in added] == ["local", f"key ops ({key.prefix})"]
    assert ClusterEvent.objects.get(action="replica_sync").actor == "user ann"


def test_a_key_without_the_scope_changes_nothing(primary: Api) -> None:
    _, text = key_create(name="reader", scopes=["read"])
    headers = {"Authorization": f"Bearer {text}"}

    assert primary.get("/replication/info", headers=headers).status_code == 200
    response = primary.post("/replication/replicas?replica_id=a&replica_url=http://127.0.0.1:1", headers=headers)

    assert response.status_code == 403
    assert checked_error(response)["code"] == "missing_scope"


def test_a_copy_shown_as_following_is_one(primary: Api, nodes: Nodes) -> None:
    add(primary, nodes())
    assert copy_state_set(ReplicaCopy.objects.get(), CopyState.FOLLOWING)

    assert primary.get("/replication/info").json()["replicas"]["replica_1"]["state"] == "following"
