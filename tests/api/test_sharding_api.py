"""Sharding over HTTP, on a coordinator of two local shards; nodes of other shards are ones that answer as told."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from django.conf import settings as django_settings

from cluster.models import Move, Shard
from cluster.query_processor.means import means
from cluster.topology import topology_forget
from cluster.transport import PROTOCOL
from tests.api.conftest import Api, checked_error
from tests.api.documented import valid
from tests.api.routes import api_routes
from tests.cluster.standin_node import Nodes, StandInNode
from vectors.models import ShardHead

FORM = "application/x-www-form-urlencoded"
SLOTS = 16384


def add(api: Api, node: StandInNode, label: str = "shard_r") -> Any:
    return api.post(f"/sharding/shards?shard_id={label}&shard_url={node.url}")


def shards_of(api: Api) -> dict[str, Any]:
    shards: dict[str, Any] = api.get("/sharding/info").json()["shards"]
    return shards


# -- what is there -----------------------------------------------------------------------------------------------


def test_the_information_has_every_shard_with_its_slots_and_rows(coordinator: Api) -> None:
    rows = [{"id": number, "values": [number, 1.0]} for number in range(200)]
    assert coordinator.put("/vectors/batch", {"vectors": rows}).status_code == 200

    info = coordinator.get("/sharding/info").json()

    valid(info, "/sharding/info")
    assert (info["total_shards"], info["healthy_shards"], info["sharding_strategy"]) == (2, 2, "hash")
    assert sum(shard["slots"] for shard in info["shards"].values()) == SLOTS
    assert sum(shard["vector_count"] for shard in info["shards"].values()) == 200
    assert all(shard["is_local"] and shard["vector_count"] for shard in info["shards"].values())


def test_storage_info_and_sharding_info_agree_about_damage(coordinator: Api) -> None:
    ShardHead.objects.filter(label="shard_1").update(damage={"kind": "log"})

    info, storage = coordinator.get("/sharding/info").json(), coordinator.get("/storage/info?partial=true").json()

    assert info["shards"]["shard_1"]["is_healthy"] is False
    assert (info["total_shards"], info["healthy_shards"]) == (2, 1)
    section = storage["sharding"]
    assert (section["role"], section["total_shards"], section["healthy_shards"]) == ("coordinator", 2, 1)


def test_an_id_is_located_where_its_row_is(coordinator: Api) -> None:
    found = coordinator.get("/sharding/locate?id=7").json()
    as_text = coordinator.get("/sharding/locate?id=7&id_type=string&namespace=books").json()

    valid(found, "/sharding/locate")
    assert found["shard_id"] in ("shard_0", "shard_1")
    assert [copy["is_primary"] for copy in found["copies"]] == [True]
    # What an id is written as says where it is.
    assert as_text == found
    coordinator.post("/vectors", {"id": 7, "values": [1.0]})
    assert {
        label: shard["vector_count"] for label, shard in shards_of(coordinator).items() if shard["vector_count"]
    } == {found["shard_id"]: 1}


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("", "missing_field", "id"),
        ("?id=", "missing_field", "id"),
        ("?id=7&id_type=uuid", "invalid_input", "id_type"),
        ("?id=7&namespace=", "invalid_input", "namespace"),
    ],
)
def test_a_location_needs_an_id(coordinator: Api, query: str, code: str, field: str) -> None:
    response = coordinator.get(f"/sharding/locate{query}")

    error = checked_error(response)
    assert (response.status_code, error["code"], error["field"]) == (400, code, field)


# -- adding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sharding/shards", "/sharding/shards/local"])
def test_a_local_shard_is_added_with_the_move_that_fills_it(coordinator: Api, path: str) -> None:
    added = coordinator.post(f"{path}?shard_id=shard_2")

    assert added.status_code == 200, added.content
    body = added.json()
    valid(body, path, "post")
    assert body["move"] == Move.objects.get().pk
    assert {**body, "move": 0} == {
        "status": "success", "message": "Shard shard_2 added", "shard_id": "shard_2", "is_local": True, "move": 0
    }  # fmt: skip
    assert (shards_of(coordinator)["shard_2"]["slots"], Move.objects.get().kind) == (0, "rebalance")


def test_a_shard_that_is_not_to_be_filled_asks_for_no_move(coordinator: Api) -> None:
    added = coordinator.post("/sharding/shards/local", {"shard_id": "shard_2", "rebalance": False})

    assert "move" not in added.json()
    assert not Move.objects.exists()


def test_a_remote_shard_is_told_what_it_is_and_shown(coordinator: Api, nodes: Nodes) -> None:
    node = nodes()

    added = add(coordinator, node)

    assert (added.status_code, added.json()["is_local"]) == (200, False)
    assert node.assignments[0]["shard"]["label"] == "shard_r"
    shard = shards_of(coordinator)["shard_r"]
    assert (shard["url"], shard["node"], shard["state"], shard["is_local"]) == (node.url, node.node, "active", False)


def test_a_repeated_call_is_200_and_changes_nothing_and_another_url_or_label_is_409(
    coordinator: Api, nodes: Nodes
) -> None:
    node, other = nodes(), nodes()
    add(coordinator, node)
    epoch, moves = coordinator.get("/sharding/info").json()["epoch"], Move.objects.count()

    again, elsewhere, renamed = add(coordinator, node), add(coordinator, other), add(coordinator, node, "shard_s")

    assert again.status_code == 200
    assert "move" not in again.json()
    assert [answer.status_code for answer in (elsewhere, renamed)] == [409, 409]
    assert checked_error(elsewhere)["code"] == checked_error(renamed)["code"] == "shard_exists"
    assert coordinator.get("/sharding/info").json()["epoch"] == epoch
    assert (Move.objects.count(), Shard.objects.count()) == (moves, 3)


@pytest.mark.parametrize("form", ["json", "form", "query"])
def test_parameters_come_in_the_query_or_in_a_body(coordinator: Api, form: str) -> None:
    if form == "json":
        response = coordinator.post("/sharding/shards", {"shard_id": "s", "weight": 0.00012345678901234567})
    elif form == "form":
        response = coordinator.post("/sharding/shards", b"shard_id=s&weight=2.5", content_type=FORM)
    else:
        response = coordinator.post("/sharding/shards?shard_id=s&weight=2.5", {"weight": 3})

    assert response.status_code == 200, response.content
    assert Shard.objects.get(label="s").weight == (0.00012345678901234567 if form == "json" else 2.5)


@pytest.mark.parametrize(
    ("query", "body", "code", "field"),
    [
        ("", {}, "missing_field", "shard_id"),
        ("", {"shard_id": "health"}, "invalid_input", "shard_id"),
        ("", {"shard_id": "a/b"}, "invalid_input", "shard_id"),
        ("", {"shard_id": ["a"]}, "invalid_input", "shard_id"),
        ("", {"shard_id": "a", "shard_url": "nowhere"}, "invalid_input", "shard_url"),
        ("", {"shard_id": "a", "x": 1}, "unknown_field", "x"),
        ("?shard_id=a&shard_id=b", {}, "repeated_parameter", "shard_id"),
        ("?shard_id=a&rebalance=perhaps", {}, "invalid_input", "rebalance"),
        ("", {"shard_id": "a", "weight": True}, "invalid_input", "weight"),
        ("", {"shard_id": "a", "weight": -0.5}, "invalid_input", "weight"),
        *(
            (f"?shard_id=a&weight={weight}", {}, "invalid_input", "weight")
            for weight in ("", "0", "-1", "1_0", "nan", "inf", "1e7", "%D9%A1", "0x1")
        ),
    ],
)
def test_a_bad_request_names_its_field_and_changes_nothing(
    coordinator: Api, query: str, body: object, code: str, field: str
) -> None:
    response = coordinator.post(f"/sharding/shards{query}", body)

    error = checked_error(response)
    assert (response.status_code, error["code"], error["field"]) == (400, code, field)
    assert Shard.objects.count() == 2


@pytest.mark.parametrize(
    ("status", "http_status", "code"),
    [
        ({"protocol": PROTOCOL + 1}, 409, "incompatible"),
        ({"empty": False, "rows": 5}, 409, "not_empty"),
        ({"replicas": 1}, 409, "cycle"),
        ({"is_coordinator": True}, 409, "cycle"),
        ({"assignment": {"cluster": "f" * 32, "shard": "e" * 32, "label": "x"}}, 409, "wrong_cluster"),
        ({"node": django_settings.MLVDB_NODE_ID}, 400, "own_url"),
    ],
)
def test_a_node_that_cannot_be_a_shard_is_refused(
    coordinator: Api, nodes: Nodes, status: dict[str, Any], http_status: int, code: str
) -> None:
    response = add(coordinator, nodes(**status))

    assert (response.status_code, checked_error(response)["code"]) == (http_status, code)
    assert Shard.objects.count() == 2


def test_a_shard_that_is_not_up_is_added_with_the_reason_and_owns_nothing(coordinator: Api, nodes: Nodes) -> None:
    node = nodes()
    node.close()

    response = add(coordinator, node)

    assert response.status_code == 200
    assert response.json()["last_error"].startswith("peer_refused")
    shard = shards_of(coordinator)["shard_r"]
    assert (shard["state"], shard["slots"], shard["is_healthy"]) == ("new", 0, False)


# -- removing ----------------------------------------------------------------------------------------------------


def test_an_empty_shard_is_removed_at_once(coordinator: Api) -> None:
    coordinator.post("/sharding/shards/local?shard_id=shard_2&rebalance=false")

    removed = coordinator.delete("/sharding/shards/shard_2")

    assert removed.status_code == 200
    assert removed.json() == {"status": "success", "message": "Shard shard_2 removed", "shard_id": "shard_2"}
    assert set(shards_of(coordinator)) == {"shard_0", "shard_1"}
    assert checked_error(coordinator.delete("/sharding/shards/shard_2"))["code"] == "shard_not_found"


def test_a_shard_with_slots_is_drained_by_one_move_however_often_it_is_asked(coordinator: Api) -> None:
    first, again = coordinator.delete("/sharding/shards/shard_1"), coordinator.delete("/sharding/shards/shard_1")

    assert [answer.status_code for answer in (first, again)] == [202, 202]
    assert first.json()["move"] == again.json()["move"] == Move.objects.get().pk
    assert shards_of(coordinator)["shard_1"]["state"] == "draining"
    last = coordinator.delete("/sharding/shards/shard_0")
    assert (last.status_code, checked_error(last)["code"]) == (409, "last_shard")


def test_a_shard_that_does_not_answer_is_removed_by_force_only(coordinator: Api, nodes: Nodes) -> None:
    node = nodes()
    add(coordinator, node)
    node.close()
    Shard.objects.filter(label="shard_r").update(rows=12, has_foreign=True)

    refused = coordinator.delete("/sharding/shards/shard_r")
    forced = coordinator.delete("/sharding/shards/shard_r", {"force": True})

    error = checked_error(refused)
    assert (refused.status_code, error["code"], error["detail"]["rows"]) == (409, "shard_unreachable", 12)
    assert forced.status_code == 200
    assert "shard_r" not in shards_of(coordinator)


# -- health ------------------------------------------------------------------------------------------------------


def test_health_is_probed_when_it_is_asked_for_and_kept(coordinator: Api, nodes: Nodes) -> None:
    up, down = nodes(), nodes()
    add(coordinator, up, "up")
    add(coordinator, down, "down")
    down.close()

    every = coordinator.get("/sharding/shards/health").json()
    one = coordinator.get("/sharding/shards/up/health").json()

    valid(every, "/sharding/shards/health")
    assert every == {"shards_health": {"shard_0": True, "shard_1": True, "up": True, "down": False}}
    assert one == {"shard_id": "up", "is_healthy": True}
    assert coordinator.get("/sharding/shards/nobody/health").status_code == 404
    history = coordinator.get("/cluster/health/history").json()
    valid(history, "/cluster/health/history")
    assert {label: [check["ok"] for check in checks] for label, checks in history["shards"].items()} == {
        "shard_0": [], "shard_1": [], "up": [True, True], "down": [False]
    }  # fmt: skip
    one_shard = coordinator.get("/cluster/health/history?shard_id=up&limit=1").json()
    assert (one_shard["history"], [len(checks) for checks in one_shard["shards"].values()]) == ({}, [1])
    assert coordinator.get("/cluster/health/history?shard_id=nobody").status_code == 404


def test_the_gauges_tell_of_shards_and_moves(coordinator: Api, nodes: Nodes) -> None:
    add(coordinator, nodes())
    ShardHead.objects.filter(label="shard_1").update(damage={"kind": "log"})

    lines = coordinator.get("/metrics").content.decode().splitlines()

    for line in (
        'mlvdb_shard_healthy{shard="shard_0"} 1.0',
        'mlvdb_shard_healthy{shard="shard_1"} 0.0',
        'mlvdb_shard_slots{shard="shard_0"} 8192.0',
        'mlvdb_shard_state{shard="shard_r",state="active"} 1.0',
        'mlvdb_shard_health{health="unknown",shard="shard_r"} 1.0',
        "mlvdb_moves 1.0",
        "mlvdb_moves_paused 0.0",
    ):
        assert line in lines


# -- everywhere --------------------------------------------------------------------------------------------------

PAGES = [route.path for route in api_routes() if route.path.startswith(("/sharding", "/cluster"))]


@pytest.mark.parametrize("path", PAGES)
def test_every_endpoint_renders_as_a_page_where_it_is_enabled(coordinator: Api, path: str) -> None:
    move = coordinator.post("/sharding/shards/redistribute-all").json()["move"]
    for name, value in (("source_id", "shard_0"), ("target_id", "shard_1"), ("shard_id", "shard_0")):
        path = path.replace(name, value)

    response = coordinator.page(path.replace("move_id", str(move)) + ("?id=7" if path.endswith("/locate") else ""))

    assert response.status_code in (200, 405), response.content
    assert "<h1>" in response.content.decode()


def test_a_request_that_would_wait_for_other_nodes_is_refused_when_too_many_do(coordinator: Api) -> None:
    with ExitStack() as waiting:
        for _ in range(means().waits.limit):
            waiting.enter_context(means().waits.slot())

        answers = [
            coordinator.get("/sharding/shards/health"),
            coordinator.get("/sharding/shards/shard_0/health"),
            coordinator.post("/sharding/shards/local?shard_id=shard_2"),
            coordinator.delete("/sharding/shards/shard_0"),
            coordinator.post("/sharding/shards/redistribute-all"),
        ]

        assert [checked_error(answer)["code"] for answer in answers] == ["busy"] * 5
        assert coordinator.get("/sharding/info").status_code == 200
    assert (Move.objects.count(), Shard.objects.count()) == (0, 2)


def test_a_node_without_sharding_says_so(api: Api) -> None:
    topology_forget()

    for path in ("/sharding/info", "/sharding/shards/health", "/sharding/locate?id=1"):
        assert api.get(path).json() == {"message": "Sharding is not enabled"}
    for path in ("/sharding/shards?shard_id=a", "/sharding/shards/redistribute-all", "/cluster/moves?kind=rebalance"):
        refused = api.post(path)
        assert (refused.status_code, checked_error(refused)["code"]) == (400, "sharding_not_enabled")
    assert "sharding" not in api.get("/storage/info").json()
