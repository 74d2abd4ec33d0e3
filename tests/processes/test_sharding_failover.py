"""A shard whose node is killed: a replica takes its place in seconds, and no write that a quorum had is lost.

One cluster for the module: a coordinator with a local shard, a shard on a node of its own, and two replicas of that.
Whoever was killed comes back as a replica of the one that took its place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import pytest
import requests

from tests.processes.cluster import BUSY, kill_all
from tests.processes.sharded_clients import ShardingClients
from tests.processes.sharded_cluster import ShardedCluster
from vectors.engine.ids import SLOT_COUNT

COPIES = ["shard_a", "shard_b", "shard_c"]
FIRST_WRITE_WITHIN_S = 10.0

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


class FailoverCluster(ShardedCluster):
    """A sharded cluster whose shard `shard_a` has copies on all of `COPIES`."""

    def start(self):
        """Start it, and add the replicas."""
        super().start()
        for name in COPIES[1:]:
            added = {"replica_id": name, "replica_url": self.url(name), "shard_id": "shard_a"}
            answer = self.coordinator.post("/replication/replicas", params=added, timeout=20)
            assert answer.status_code == 200, answer.text
        self.wait_until_members(2)
        return self

    def replicas(self):
        """Return what the coordinator says of the replicas."""
        return self.coordinator.get("/replication/info").json()["replicas"]

    def wait_until_members(self, number):
        """Wait until the coordinator knows of that many replicas that are healthy members."""

        def are_members():
            members = [one for one in self.replicas().values() if one["member"] and one["is_healthy"]]
            return len(members) == number and all(one["state"] == "following" for one in members)

        self.wait(are_members, 60, f"{number} members: {self.replicas()}")

    def node_of_shard(self):
        """Return the name of the node that is the shard now."""
        url = self.info()["shards"]["shard_a"]["url"]
        return next(name for name in COPIES if self.url(name) == url)

    def key_on_shard(self):
        """Return an id that leads to the shard."""
        owner = self.owners()
        return next(f"probe-{number}" for number in count() if owner(f"probe-{number}") == "shard_a")


@pytest.fixture(scope="module")
def running() -> Iterator[FailoverCluster]:
    """The cluster of this module."""
    options = {"coordinator": {"MLVDB_ENABLE_REPLICATION": "primary"}}
    with FailoverCluster(local=1, remote=3, added=1, settings_of=options, **BUSY) as cluster:
        yield cluster


def come_back(cluster, name):
    """Have a node that was killed or stopped go on, and wait until it is a replica of its successor."""
    cluster.heal()

    def is_replica():
        status = cluster.status(name)
        return status["assignment"] is None and [shard["role"] for shard in status["shards"]] == ["replica"]

    cluster.wait(is_replica, 40, f"{name} as a replica")
    cluster.wait_until_members(2)


def test_the_first_write_is_acknowledged_within_seconds_of_the_death_of_a_shards_node(cluster, recorder):
    key = cluster.key_on_shard()
    killed = cluster.node_of_shard()

    def write():
        body = {"vectors": [{"id": key, "values": [1.0] * 8, "metadata": {}}]}
        node = cluster.coordinator
        return node.session.put(f"{node.base_url}/vectors/batch", json=body, params={"namespace": "probe"}, timeout=20)

    assert write().ok
    kill_all(cluster[killed])

    def is_written():
        try:
            answer = write()
        except requests.RequestException as error:
            raise AssertionError("the coordinator, which lives, has not answered") from error
        assert answer.status_code in (200, 503), answer.text
        return answer.ok

    began = time.monotonic()
    cluster.wait(is_written, FIRST_WRITE_WITHIN_S, "the first write")
    assert time.monotonic() - began <= FIRST_WRITE_WITHIN_S, cluster.log_tail()
    assert cluster.node_of_shard() != killed
    come_back(cluster, killed)
    # All copies answer whoever asks them directly alike: from the slots of the shard.
    counts = {name: cluster[name].post("/count", {}, params={"namespace": "probe"}) for name in COPIES}
    assert [answer.json()["count"] for answer in counts.values()] == [1, 1, 1]
    for name in COPIES:
        refused = cluster[name].post("/vectors", {"values": [1.0] * 8}, params={"namespace": "probe"})
        assert refused.status_code == 409
        assert refused.json()["error"]["detail"]["primary_url"] == cluster.coordinator.base_url


@pytest.mark.parametrize("role", ["source", "target"])
def test_neither_writes_of_a_quorum_nor_a_move_are_lost_when_a_shards_node_dies(cluster, recorder, role):
    source, target = ("shard_a", "shard_0") if role == "source" else ("shard_0", "shard_a")
    if not cluster.slots()[source]:
        cluster.wait_for_move(cluster.redistribute(target, source))
    with ShardingClients(recorder, level="quorum", readers=1, seed=next(seeds)) as clients:
        clients.wait_for(writes=20)
        killed = cluster.node_of_shard()
        move = cluster.redistribute(source, target)
        cluster.wait_for_phase(move, "copying", "following")
        kill_all(cluster[killed])
        cluster.wait(lambda: cluster.node_of_shard() != killed, 20, "a successor")
        come_back(cluster, killed)
        cluster.wait_for_move(move)
        clients.wait_for(writes=20, reads=5)
    assert cluster.slots()[target] == SLOT_COUNT
    cluster.prove(recorder.history)
