"""Moves of slots over HTTP, on a coordinator of two local shards: planned, asked for, steered; nobody runs them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.models import Move
from tests.api.conftest import Api, checked_error
from tests.api.documented import valid


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/sharding/shards/shard_0/redistribute/shard_1", {}, "redistribute"),
        ("/sharding/shards/redistribute-all", {}, "rebalance"),
        ("/cluster/moves", {"kind": "redistribute", "source": "shard_0", "target": "shard_1"}, "redistribute"),
        ("/cluster/moves", {"kind": "rebalance"}, "rebalance"),
    ],
)
def test_a_move_is_planned_without_a_trace_and_then_asked_for(
    coordinator: Api, path: str, body: dict[str, Any], kind: str
) -> None:
    plan = coordinator.post(f"{path}?dry_run=true", body)
    assert plan.status_code == 200, plan.content
    assert plan.json()["dry_run"] is True
    expected = [("shard_0", "shard_1", 8192)] if kind == "redistribute" else []
    steps = plan.json()["plan"]["steps"]
    assert [(step["source"], step["target"], step["slots"]) for step in steps] == expected
    assert not Move.objects.exists()

    asked = coordinator.post(path, body)

    assert asked.status_code == 202
    assert asked.json()["move"] == Move.objects.get().pk
    assert (Move.objects.get().kind, asked.json()["status"]) == (kind, "success")


def test_the_plan_of_a_drain_is_shown_and_the_drain_itself_asked_for_by_removal(coordinator: Api) -> None:
    plan = coordinator.post("/cluster/moves", {"kind": "drain", "source": "shard_1", "dry_run": True})
    refused = coordinator.post("/cluster/moves", {"kind": "drain", "source": "shard_1"})

    assert plan.json()["plan"]["slots"] == 8192
    assert (refused.status_code, checked_error(refused)["field"]) == (400, "kind")
    assert not Move.objects.exists()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/sharding/shards/nobody/redistribute/shard_0", {}, 404, "shard_not_found"),
        ("/sharding/shards/shard_0/redistribute/nobody", {}, 404, "shard_not_found"),
        ("/sharding/shards/shard_0/redistribute/shard_0", {}, 400, "invalid_input"),
        ("/sharding/shards/redistribute-all", {"dry_run": "perhaps"}, 400, "invalid_input"),
        ("/cluster/moves", {}, 400, "missing_field"),
        ("/cluster/moves", {"kind": "promotion"}, 400, "invalid_input"),
        ("/cluster/moves", {"kind": "redistribute", "source": "shard_0"}, 400, "invalid_input"),
        ("/cluster/moves", {"kind": "rebalance", "source": "shard_0"}, 400, "invalid_input"),
        ("/cluster/moves", {"kind": "redistribute", "from": "shard_0"}, 400, "unknown_field"),
        ("/cluster/moves/99/pause", {}, 404, "move_not_found"),
        ("/cluster/moves/x/cancel", {}, 404, "move_not_found"),
    ],
)
def test_a_move_that_cannot_be_is_refused(
    coordinator: Api, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    response = coordinator.post(path, body)

    assert (response.status_code, checked_error(response)["code"]) == (status, code)
    assert not Move.objects.exists()


def test_a_move_is_paused_resumed_and_cancelled_as_often_as_it_is_asked(coordinator: Api) -> None:
    move = coordinator.post("/sharding/shards/shard_0/redistribute/shard_1").json()["move"]

    def told(verb: str) -> tuple[bool, bool]:
        for _ in range(2):
            answer = coordinator.post(f"/cluster/moves/{move}/{verb}")
            assert (answer.status_code, answer.json()["move"]) == (200, move), answer.content
        shown = coordinator.get(f"/cluster/moves/{move}").json()
        valid(shown, "/cluster/moves/{move_id}")
        return shown["paused"], shown["cancelled"]

    assert told("pause") == (True, False)
    assert told("resume") == (False, False)
    assert told("cancel") == (False, True)
    assert [entry["id"] for entry in coordinator.get("/cluster/moves?limit=5").json()["moves"]] == [move]
    Move.objects.update(phase="cancelled")
    over = coordinator.post(f"/cluster/moves/{move}/resume")
    assert (over.status_code, checked_error(over)["code"]) == (409, "move_over")
