"""The health of shards: their nodes must answer, know what they are, and have everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.health.rounds import Round
from cluster.health.shards import healthy_shards, run_shard_round, shards_check
from cluster.models import HealthCheck, Shard
from cluster.services import sharding_assignments
from cluster.services.sharding import shard_add, sharding_enable
from cluster.services.sharding_assignments import PUSH_TASK, assignments_push
from cluster.states import PeerHealth, ShardState
from tests.cluster.standin_node import StandInNode
from vectors.models import ShardHead

Nodes = Callable[..., StandInNode]


@pytest.fixture
def published(head: ShardHead, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that would have been published; this node is the coordinator of one local shard."""
    tasks: list[str] = []
    for module in ("moves.control", "services.sharding_assignments", "health.shards", "health.samples"):
        monkeypatch.setattr(f"cluster.{module}.publish", lambda task, *_arguments: not tasks.append(str(task)))
    monkeypatch.setattr(sharding_assignments, "_has_said_url", True)
    monkeypatch.setattr(Round, "pause", staticmethod(lambda pause_s: None))
    assert sharding_enable(strategy="hash", shards=1, actor="test")
    tasks.clear()
    return tasks


@pytest.fixture
def node(published: list[str], nodes: Nodes) -> StandInNode:
    """The node of the shard `away`, which has taken its assignment and is well."""
    made = nodes()
    shard_add(label="away", url=made.url, rebalance=False, actor="test")
    run_shard_round()
    assert away().health == PeerHealth.ALIVE
    published.clear()
    return made


def away() -> Shard:
    return Shard.objects.get(label="away")


def held(node: StandInNode, **more: Any) -> None:
    """Have the node say something else of its copy."""
    node.status["shards"] = [{**node.status["shards"][0], "promised_term": 0, **more}]


@pytest.mark.parametrize("lost", [None, {"cluster": "f" * 32}, {"shard": "e" * 32}])
def test_a_node_that_does_not_know_that_it_is_the_shard_is_not_well_and_told_again(
    node: StandInNode, published: list[str], lost: dict[str, str] | None
) -> None:
    node.status["assignment"] = lost and {**node.status["assignment"], **lost}
    before = len(node.assignments)

    run_shard_round()

    assert away().health == PeerHealth.DEAD
    assert away().last_error
    if lost is not None:
        # Another coordinator's, or another shard's: that is for a person to say.
        assert PUSH_TASK not in published
        return
    assert away().last_error.startswith("assignment_lost: ")
    assert (away().acknowledged_epoch, published.count(PUSH_TASK)) == (0, 1)
    assignments_push()
    assert len(node.assignments) == before + 1
    run_shard_round()
    assert away().health == PeerHealth.ALIVE
    assert away().last_error == ""
    assert away().acknowledged_epoch > 0


def test_a_node_without_the_copy_has_lost_the_shard_and_is_not_told_to_make_a_new_one(
    node: StandInNode, published: list[str]
) -> None:
    node.status |= {"assignment": None, "shards": []}

    run_shard_round()

    assert "not the primary of the shard away any more" in away().last_error
    assert away().acknowledged_epoch > 0
    assert PUSH_TASK not in published


def test_a_damaged_copy_is_asked_on_but_not_healthy_until_it_is_whole_again(node: StandInNode) -> None:
    held(node, damage={"kind": "log"})

    assert shards_check([away()]) == {"away": False}
    assert away().health == PeerHealth.ALIVE
    assert away().last_error.startswith("shard_damaged: ")
    assert healthy_shards(Shard.objects.all()) == {"shard_0"}

    held(node, damage=None)
    assert shards_check([away()]) == {"away": True}
    assert away().last_error == ""
    assert healthy_shards(Shard.objects.all()) == {"shard_0", "away"}


def test_a_damaged_local_copy_is_not_healthy(published: list[str]) -> None:
    assert shards_check(Shard.objects.all()) == {"shard_0": True}
    ShardHead.objects.update(damage={"kind": "log"})

    assert shards_check(Shard.objects.all()) == {"shard_0": False}
    assert healthy_shards(Shard.objects.all()) == set()
    assert not HealthCheck.objects.exists()


def test_the_node_of_a_new_shard_is_not_settled_by_a_probe(published: list[str], nodes: Nodes) -> None:
    node = nodes()
    Shard.objects.create(label="away", uid="a" * 32, url=node.url, state=ShardState.NEW)

    run_shard_round()

    assert (away().health, away().node, away().version) == (PeerHealth.ALIVE, "", "0.1.0")


def test_another_node_at_the_url_is_not_the_shard(node: StandInNode) -> None:
    node.status["node"] = "9" * 32

    run_shard_round()

    assert away().health == PeerHealth.DEAD
    assert "answers as node 99999999" in away().last_error


def test_what_a_shard_has_is_noted_and_a_recovery_ends_its_pauses(node: StandInNode, published: list[str]) -> None:
    Shard.objects.filter(label="away").update(health=PeerHealth.DEAD, failures=9, successes=0, attempts=4)
    held(node, rows=70, size_bytes=900)

    run_shard_round()

    assert (away().rows, away().size_bytes, away().attempts) == (70, 900, 0)
    assert away().health == PeerHealth.ALIVE
    assert published == [PUSH_TASK, "cluster.tasks.moves_run"]


def test_one_round_is_enough_to_find_a_silent_shard_dead(node: StandInNode) -> None:
    node.close()

    run_shard_round()

    assert away().health == PeerHealth.DEAD
    assert HealthCheck.objects.filter(shard=away(), ok=False).count() == 3


def test_a_removed_shard_is_not_probed(node: StandInNode) -> None:
    Shard.objects.filter(label="away").update(state=ShardState.REMOVED)
    before = HealthCheck.objects.count()

    run_shard_round()

    assert HealthCheck.objects.count() == before
