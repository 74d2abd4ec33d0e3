"""What a sharded cluster refuses, over HTTP: nodes that cannot be a shard, circles, and clients at the wrong door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests.processes.node import NodeProcess, free_port
from tests.processes.sharded_cluster import ShardedCluster

QUICK = {"MLVDB_LEASE_S": "1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ShardedCluster]:
    """One local shard, one remote one, and an empty node."""
    with ShardedCluster(local=1, remote=2, added=1, **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(cluster: ShardedCluster) -> Iterator[NodeProcess]:
    """A node with rows of its own."""
    with NodeProcess() as node:
        assert node.post("/vectors", {"id": "own", "values": [1.0, 2.0]}).status_code == 201
        yield node


def add(node: NodeProcess, label: str, url: str) -> requests.Response:
    """Ask a node to take another one as its shard."""
    return node.post("/sharding/shards", params={"shard_id": label, "shard_url": url}, timeout=20)


def refusal(answer: requests.Response, status: int = 409) -> str:
    """Return the code of a refusal; it must be of that status, and say why."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    return str(error["code"])


def test_the_same_shard_again_changes_nothing_and_another_url_or_label_is_a_conflict(cluster, stranger):
    before = cluster.info()
    again = add(cluster.coordinator, "shard_a", cluster.url("shard_a"))
    assert again.status_code == 200, again.text
    assert "move" not in again.json()
    assert refusal(add(cluster.coordinator, "shard_a", cluster.url("shard_b"))) == "shard_exists"
    assert refusal(add(cluster.coordinator, "another", cluster.url("shard_a"))) == "shard_exists"
    assert cluster.info()["epoch"] == before["epoch"]
    assert cluster.info()["shards"].keys() == before["shards"].keys()


def test_a_node_with_rows_of_its_own_does_not_become_a_shard(cluster, stranger):
    before = cluster.info()["shards"].keys()
    assert refusal(add(cluster.coordinator, "stranger", stranger.base_url)) == "not_empty"
    assert cluster.info()["shards"].keys() == before
    assert stranger.get("/vectors/own").status_code == 200


def test_a_coordinator_does_not_become_its_own_shard_and_shards_make_no_circle(cluster, stranger):
    before = cluster.info()["shards"].keys()
    assert refusal(add(cluster.coordinator, "itself", cluster.coordinator.base_url), 400) == "own_url"
    # Neither a shard nor an empty coordinator can be told to be another's shard, and a shard cannot be a coordinator.
    with NodeProcess(options=("--enable-sharding", "--shards", "1")) as other:
        assert refusal(add(other, "stolen", cluster["shard_a"].base_url)) == "wrong_cluster"
        assert refusal(add(other, "upwards", cluster.coordinator.base_url)) == "cycle"
        assert refusal(add(cluster.coordinator, "other", other.base_url)) == "cycle"
    assert refusal(add(cluster["shard_a"], "backwards", cluster.coordinator.base_url), 400) == "sharding_not_enabled"
    assert cluster.info()["shards"].keys() == before


def test_what_is_no_node_is_not_a_shard_and_a_url_must_be_one(cluster):
    assert add(cluster.coordinator, "words", "not a url").status_code == 400
    assert add(cluster.coordinator, "vectors/x", cluster.url("shard_b")).status_code == 400
    missing = cluster.coordinator.post("/sharding/shards", timeout=20)
    assert missing.status_code == 400
    assert missing.json()["error"]["field"] == "shard_id"


def test_a_client_that_writes_to_a_shard_directly_is_sent_to_the_coordinator(cluster):
    shard = cluster["shard_a"]
    for answer in (
        shard.post("/vectors", {"id": "direct", "values": [1.0, 2.0]}),
        shard.session.put(f"{shard.base_url}/vectors/batch", json={"vectors": [{"values": [1.0]}]}, timeout=10),
        shard.post("/vectors/delete", {"ids": ["direct"]}),
        shard.session.delete(f"{shard.base_url}/namespaces/default", timeout=10),
        shard.session.put(f"{shard.base_url}/namespaces/other", json={"dimension": 3}, timeout=10),
    ):
        assert refusal(answer) == "not_primary"
        assert answer.json()["error"]["detail"]["primary_url"] == cluster.coordinator.base_url


def test_a_direct_read_of_a_shard_answers_what_it_owns(cluster):
    vectors = [{"id": number, "values": [float(number), 1.0]} for number in range(100)]
    url = f"{cluster.coordinator.base_url}/vectors/batch"
    assert requests.put(url, json={"vectors": vectors}, params={"namespace": "direct"}, timeout=10).ok
    owners = cluster.owners()
    rows = cluster["shard_a"].get("/namespaces/vectors", params={"namespace": "direct"}).json()
    assert [row["id"] for row in rows] == [number for number in range(100) if owners(str(number)) == "shard_a"]


def test_unknown_shards_and_moves_are_not_found(cluster):
    assert refusal(cluster.remove("nobody"), 404) == "shard_not_found"
    assert cluster.coordinator.get("/sharding/shards/nobody/health").status_code == 404
    assert cluster.coordinator.post("/sharding/shards/nobody/redistribute/shard_0").status_code == 404
    assert cluster.coordinator.post("/sharding/shards/shard_0/redistribute/nobody").status_code == 404
    assert cluster.coordinator.get("/cluster/moves/999999").status_code == 404
    for verb in ("pause", "resume", "cancel"):
        assert cluster.control(999999, verb).status_code == 404


def test_health_is_answered_for_one_and_for_all(cluster):
    one = cluster.coordinator.get("/sharding/shards/shard_a/health", timeout=20)
    assert one.json() == {"shard_id": "shard_a", "is_healthy": True}
    everyone = cluster.coordinator.get("/sharding/shards/health")
    assert everyone.json() == {"shards_health": {"shard_0": True, "shard_a": True}}


def test_the_information_names_every_shard_once_with_its_slots(cluster):
    info = cluster.info()
    assert info["total_shards"] == info["healthy_shards"] == 2
    assert info["sharding_strategy"] == "hash"
    assert sum(shard["slots"] for shard in info["shards"].values()) == 16384
    assert info["shards"]["shard_0"]["is_local"] is True
    assert info["shards"]["shard_a"]["url"] == cluster.url("shard_a")


def test_a_node_without_sharding_says_so(stranger):
    assert stranger.get("/sharding/info").json() == {"message": "Sharding is not enabled"}
    assert stranger.get("/sharding/shards/health").json() == {"message": "Sharding is not enabled"}
    refused = stranger.post("/sharding/shards/local", params={"shard_id": "x"})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "Sharding is not enabled"


def test_a_shard_on_a_node_that_is_down_is_accepted_and_owns_nothing(cluster):
    url = f"http://127.0.0.1:{free_port()}"
    before = cluster.slots()
    added = add(cluster.coordinator, "later", url)
    assert added.status_code == 200, added.text
    assert cluster.slots() == before | {"later": 0}
    removed = cluster.remove("later")
    assert removed.ok, removed.text
    assert cluster.slots() == before


def test_everything_is_kept_over_a_restart_without_flags_and_another_strategy_does_not_start(cluster):
    before = cluster.slots()
    node = cluster.coordinator
    options, node.options = node.options, ()
    node.restart()
    assert cluster.slots() == before
    node.stop()
    node.options = ("--enable-sharding", "--sharding-strategy", "round_robin")
    process = node.launch()
    assert process.wait(30) != 0
    assert "round_robin" in node.output
    node.options = options
    node.start()
    assert cluster.slots() == before
