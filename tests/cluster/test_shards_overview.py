"""What people are shown of shards on other nodes is what those say now."""

from __future__ import annotations

import pytest

from cluster import shards_overview
from cluster.models import Shard
from cluster.services.sharding import shard_add
from cluster.shards_overview import sharding_info
from cluster.states import PeerHealth
from tests.cluster.standin_node import StandInNode
from tests.cluster.test_shard_health import Nodes, away, held, node, published

__all__ = ["node", "published"]


@pytest.fixture(autouse=True)
def nobody_looked() -> None:
    shards_overview._looked_at.clear()


def test_a_shard_that_was_just_added_is_shown_as_it_is(published: list[str], nodes: Nodes) -> None:
    made = nodes()
    shard_add(label="away", url=made.url, rebalance=False, actor="test")
    held(made, rows=5, size_bytes=500)

    info = sharding_info()

    shown = info["shards"]["away"]
    assert (shown["is_healthy"], shown["vector_count"], shown["size_bytes"]) == (True, 5, 500)
    assert info["healthy_shards"] == 2


def test_whoever_looks_often_does_not_ask_each_time(node: StandInNode) -> None:
    held(node, rows=1)
    assert sharding_info()["shards"]["away"]["vector_count"] == 1
    held(node, rows=2)
    assert sharding_info()["shards"]["away"]["vector_count"] == 1
    shards_overview._looked_at.clear()
    assert sharding_info()["shards"]["away"]["vector_count"] == 2


@pytest.mark.parametrize("health", [PeerHealth.SUSPECT, PeerHealth.DEAD])
def test_nobody_waits_for_a_node_that_is_known_to_be_down(node: StandInNode, health: PeerHealth) -> None:
    Shard.objects.filter(pk=away().pk).update(health=health)
    held(node, rows=3)

    shown = sharding_info()["shards"]["away"]

    assert (shown["is_healthy"], shown["vector_count"]) == (False, 0)
    assert away().health == health
