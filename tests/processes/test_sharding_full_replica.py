"""A replica of all shards of a coordinator, on real nodes: it reads for it, takes its place, and is followed by it."""

from __future__ import annotations

from typing import Any

from tests.processes.node import NodeProcess, wait_for
from tests.processes.sharded_cluster import COORDINATOR, ShardedCluster

FULL = "shard_b"
"""A plain node of the group that becomes the replica."""

WITHIN_S = 60.0
QUERY = [0.5, 0.25, 1.0]


class WithFullReplica(ShardedCluster):
    """A coordinator with two shards of its own and one elsewhere, and a node that keeps copies of all three."""

    def __init__(self, **settings: str) -> None:
        replicating = {COORDINATOR: {"MLVDB_ENABLE_REPLICATION": "primary"}}
        super().__init__(local=2, remote=2, added=1, settings_of=replicating, **settings)

    @property
    def full(self) -> NodeProcess:
        """The replica."""
        return self.nodes[FULL]

    def start(self) -> WithFullReplica:
        super().start()
        write(self.coordinator, range(200))
        query = {"replica_id": "full", "replica_url": self.url(FULL)}
        answer = self.coordinator.post("/replication/replicas", params=query, timeout=20)
        assert answer.status_code == 200, answer.text
        self.wait(lambda: self.is_whole(COORDINATOR), WITHIN_S, "a copy of every shard at the replica that counts")
        return self

    def is_whole(self, primary: str) -> bool:
        """Whether the other of the two has a copy of each shard that counts, `primary` being the coordinator."""
        url = self.url(FULL if primary == COORDINATOR else COORDINATOR)
        shards = [shard for name in (primary, "shard_a") for shard in self.status(name)["shards"]]
        copies = [copy for shard in shards if shard["role"] == "primary" for copy in shard["copies"]]
        mine = [(copy["state"], copy["membership"]) for copy in copies if copy["url"] == url]
        return mine == [("following", "member")] * 3

    def fail_over(self) -> None:
        """Kill the coordinator, have the replica take its place, and wait until it takes writes."""
        self.coordinator.kill()
        promoted = self.full.post("/replication/promote", timeout=30)
        assert promoted.status_code == 200, promoted.text
        wait_for(lambda: takes_writes(self.full), timeout_s=WITHIN_S, what="writes at the new coordinator")


def rows(numbers: range) -> dict[str, Any]:
    return {"vectors": [{"id": number, "values": [number % 7, number % 5, 1.0]} for number in numbers]}


def write(node: NodeProcess, numbers: range, **query: Any) -> None:
    url = f"{node.base_url}/vectors/batch?namespace=books"
    answer = node.session.put(url, json=rows(numbers), params=query, timeout=20)
    assert answer.status_code == 200, answer.text


def listed(node: NodeProcess) -> set[int]:
    answer = node.get("/namespaces/vectors?namespace=books&limit=10000", timeout=20)
    assert answer.status_code == 200, answer.text
    return {row["id"] for row in answer.json()}


def takes_writes(node: NodeProcess) -> bool:
    url = f"{node.base_url}/vectors/batch?namespace=books"
    return node.session.put(url, json=rows(range(300, 400)), timeout=20).status_code == 200


def test_a_replica_of_all_shards_reads_for_the_coordinator_and_takes_its_place() -> None:
    with WithFullReplica() as cluster:
        write(cluster.coordinator, range(200, 300), consistency="quorum")
        assert listed(cluster.full) == set(range(300)) == listed(cluster.coordinator)
        counted = cluster.full.post("/count?namespace=books&consistency=quorum", {}, timeout=20)
        assert counted.json()["count"] == 300, counted.text

        cluster.fail_over()
        write(cluster.full, range(300, 500))
        assert listed(cluster.full) == set(range(500))
        assert set(cluster.full.get("/sharding/info").json()["shards"]) == {"shard_0", "shard_1", "shard_a"}

        cluster.coordinator.start()
        cluster.wait(lambda: cluster.is_whole(FULL), WITHIN_S, "the former coordinator to be a replica of all shards")
        write(cluster.full, range(500, 550), consistency="all")
        assert listed(cluster.coordinator) == set(range(550))
        refused = cluster.coordinator.session.put(
            f"{cluster.coordinator.base_url}/vectors/batch?namespace=books", json=rows(range(1)), timeout=20
        )
        assert refused.json()["error"]["detail"]["primary_url"] == cluster.url(FULL)

        [name] = cluster.full.get("/replication/info").json()["replicas"]
        handed = cluster.full.post(f"/replication/replicas/{name}/promote", timeout=30)
        assert handed.status_code == 200, handed.text
        wait_for(lambda: takes_writes(cluster.coordinator), timeout_s=WITHIN_S, what="writes where they were before")
        write(cluster.coordinator, range(550, 600))
        assert listed(cluster.coordinator) == set(range(600))
        cluster.wait(lambda: cluster.is_whole(COORDINATOR), WITHIN_S, "a replica of all shards again")


def test_a_move_that_was_under_way_is_settled_by_what_the_shards_say() -> None:
    with WithFullReplica(MLVDB_MOVE_SLICE_BYTES="1024") as cluster:
        write(cluster.coordinator, range(200, 1000))
        number = cluster.redistribute("shard_0", "shard_a")
        cluster.wait_for_phase(number, "copying", "following", "closing", "switching", "cleaning")
        write(cluster.coordinator, range(1000, 1100), consistency="quorum")

        cluster.fail_over()

        write(cluster.full, range(1000, 1200))
        assert listed(cluster.full) == set(range(1200))
        held = cluster.full.get("/sharding/info").json()["shards"]
        assert sum(shard["slots"] for shard in held.values()) == 16384
        # What the move has left where it does not belong goes by itself.
        wait_for(lambda: rows_held(cluster) == 1200, timeout_s=WITHIN_S, what="every row once")


def rows_held(cluster: WithFullReplica) -> int:
    """How many rows the primary copies have, wherever they belong."""
    shards = [shard for name in (FULL, "shard_a") for shard in cluster.status(name)["shards"]]
    return sum(shard["rows"] for shard in shards if shard["role"] == "primary")
