"""Namespaces of a sharded cluster as its shards see them: made at once in two ways, dropped while a shard is away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier
from typing import Any

import pytest
import requests

from tests.processes.cluster import frozen, kill_all
from tests.processes.sharded_cluster import ShardedCluster
from vectors.engine.ids import SLOT_COUNT

QUICK = {"MLVDB_LEASE_S": "1"}
names = map("space-{}".format, count(1))


@pytest.fixture(scope="module")
def running() -> Iterator[ShardedCluster]:
    """One local and one remote shard."""
    with ShardedCluster(local=1, remote=1, **QUICK) as cluster:
        yield cluster


def put(cluster: ShardedCluster, space: str, rows: int = 40, *, dimension: int = 4) -> requests.Response:
    """Write rows that fall on both shards."""
    vectors = [{"id": number, "values": [float(number)] * dimension} for number in range(rows)]
    return requests.put(
        f"{cluster.coordinator.base_url}/vectors/batch", json={"vectors": vectors}, params={"namespace": space}
    )


def held(cluster: ShardedCluster, space: str) -> dict[str, int]:
    """Return how many rows of a namespace each shard holds."""
    return {label: sum(row.startswith(f"{space}/") for row in rows) for label, rows in cluster.held().items()}


def answers(cluster: ShardedCluster, space: str) -> list[dict[str, Any]]:
    """Return all rows of a namespace."""
    answer = cluster.coordinator.get("/namespaces/vectors", params={"namespace": space, "limit": "1000"})
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def test_of_two_first_writes_with_different_dimensions_one_wins_on_all_shards(cluster):
    for space in [next(names) for _ in range(8)]:
        together = Barrier(4)

        def write(dimension: int, space: str = space, together: Barrier = together) -> requests.Response:
            together.wait()
            return put(cluster, space, dimension=dimension)

        with ThreadPoolExecutor(4) as pool:
            results = dict(zip((3, 4, 5, 6), pool.map(write, (3, 4, 5, 6)), strict=True))
        [dimension] = [dimension for dimension, answer in results.items() if answer.ok]
        for other, answer in results.items():
            if other != dimension:
                assert answer.status_code == 400, answer.text
                assert answer.json()["error"]["code"] == "dimension_mismatch"
        rows = answers(cluster, space)
        assert len(rows) == 40
        assert {len(row["values"]) for row in rows} == {dimension}
        assert min(held(cluster, space).values()) > 0


@pytest.mark.parametrize("away", ["killed", "stopped"])
def test_a_namespace_dropped_while_a_shard_is_away_and_made_again_has_nothing_of_the_old_one(cluster, away):
    space = next(names)
    assert put(cluster, space).ok
    if away == "killed":
        kill_all(cluster["shard_a"])
        _drop_and_make_again(cluster, space)
        cluster["shard_a"].start()
    else:
        with frozen(cluster["shard_a"]):
            _drop_and_make_again(cluster, space)
    query = {"namespace": space}
    cluster.wait(lambda: cluster.coordinator.post("/count", {}, params=query).ok, 20, "answers of the shard")
    rows = answers(cluster, space)
    assert [len(row["values"]) for row in rows] == [6]
    answer = cluster.coordinator.post("/search", {"query": [1.0] * 6}, params={"namespace": space})
    assert len(answer.json()) == 1
    assert answer.headers["X-MLVDB-Complete"] == "true"
    assert put(cluster, space, dimension=6).ok
    assert len(answers(cluster, space)) == 40
    cluster.wait(lambda: sum(held(cluster, space).values()) == 40, 20, "the end of the old rows at every shard")


def _drop_and_make_again(cluster: ShardedCluster, space: str) -> None:
    here = next(number for number in range(1000) if cluster.owners()(str(number)) == "shard_0")
    dropped = cluster.coordinator.session.delete(f"{cluster.coordinator.base_url}/namespaces/{space}", timeout=10)
    assert dropped.status_code == 200, dropped.text
    assert space not in cluster.coordinator.get("/namespaces").json()["namespaces"]
    body = {"id": here, "values": [0.0] * 6}
    made = cluster.coordinator.post("/vectors", body, params={"namespace": space}, timeout=10)
    assert made.status_code == 201, made.text


def test_a_namespace_dropped_during_a_move_does_not_come_back_with_it(cluster):
    space, other = next(names), next(names)
    assert put(cluster, space, rows=3000).ok
    assert put(cluster, other).ok
    before = cluster.slots()
    move = cluster.redistribute("shard_0", "shard_a")
    dropped = cluster.coordinator.session.delete(f"{cluster.coordinator.base_url}/namespaces/{space}", timeout=10)
    assert dropped.status_code == 200, dropped.text
    cluster.wait_for_move(move)
    assert cluster.slots() == {"shard_0": 0, "shard_a": SLOT_COUNT}
    assert put(cluster, space, rows=1, dimension=9).ok
    assert len(answers(cluster, space)) == 1
    assert len(answers(cluster, other)) == 40
    cluster.wait_for_move(cluster.rebalance())
    assert sorted(cluster.slots().values()) == sorted(before.values())
    assert sum(held(cluster, space).values()) == 1


def test_metric_and_recall_target_hold_on_every_shard(cluster):
    space = next(names)
    url = f"{cluster.coordinator.base_url}/namespaces/{space}"
    made = cluster.coordinator.session.put(url, json={"dimension": 4, "metric": "l2"}, timeout=10)
    assert made.status_code in (200, 201), made.text
    assert put(cluster, space).ok
    hits = cluster.coordinator.post("/search", {"query": [7.2] * 4, "top_k": 3}, params={"namespace": space}).json()
    assert [hit["id"] for hit in hits] == [7, 8, 6]
    conflict = cluster.coordinator.session.put(url, json={"metric": "ip"}, timeout=10)
    assert conflict.status_code == 409, conflict.text
    [detail] = [
        one
        for one in cluster.coordinator.get("/namespaces", params={"detail": "1"}).json()["namespaces"]
        if one["name"] == space
    ]
    assert (detail["dimension"], detail["metric"], detail["count"]) == (4, "l2", 40)
