"""A primary and its replicas as a person starts, adds, restarts and removes them; real nodes."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
import requests

from tests.processes.cluster import frozen
from tests.processes.node import NodeProcess, free_port, wait_for
from tests.processes.writers import contents

JOIN_WITHIN_S = 40.0
PRIMARY = ("--enable-replication",)


def replica_of(primary: NodeProcess, name: str = "replica_1") -> tuple[str, ...]:
    """Return the options of a node that registers itself."""
    return ("--enable-replication", "replica", "--replica-name", name, "--primary-url", primary.base_url)


def shown(primary: NodeProcess, name: str = "replica_1") -> dict[str, Any]:
    """Return what a primary shows of a replica, empty while it does not know it."""
    return dict(primary.get("/replication/info").json().get("replicas", {}).get(name, {}))


def wait_for_member(primary: NodeProcess, name: str = "replica_1") -> None:
    wait_for(lambda: shown(primary, name).get("member"), timeout_s=JOIN_WITHIN_S, what=f"the membership of {name}")


def write(node: NodeProcess, *ids: int) -> None:
    rows = [{"id": number, "values": [number, 1.0, 2.0], "metadata": {"n": number}} for number in ids]
    answer = node.session.put(f"{node.base_url}/vectors/batch", json={"vectors": rows}, timeout=10)
    assert answer.status_code == 200, answer.text


def wait_until_equal(*nodes: NodeProcess) -> None:
    wait_for(
        lambda: all(contents(node) == contents(nodes[0]) for node in nodes[1:]),
        timeout_s=20,
        what="equal contents",
    )


def test_a_node_started_as_replica_registers_itself_and_both_stay_what_they_are(make: Any) -> None:
    primary = make(*PRIMARY)
    replica = make(*replica_of(primary))
    # Before there is a primary: it keeps trying, and says why it waits.
    replica.start()
    waiting = wait_for(
        lambda: replica.get("/replication/info").json()["joining"]["last_error"],
        timeout_s=20,
        what="the reason why it waits",
    )
    assert waiting.startswith("peer_refused")

    primary.start()
    write(primary, *range(100))

    wait_for_member(primary)
    wait_until_equal(primary, replica)
    assert replica.get("/replication/info").json()["role"] == "replica"
    refused = replica.post("/vectors", {"values": [1, 2, 3]})
    assert refused.status_code == 409
    assert refused.json()["error"]["detail"]["primary_url"] == primary.base_url

    # What the data dirs hold wins over the flags, and over there being none.
    primary.options, replica.options = (), PRIMARY
    primary.stop()
    replica.stop()
    primary.start()
    replica.start()

    write(primary, 200)
    wait_until_equal(primary, replica)
    assert replica.get("/replication/info").json()["role"] == "replica"
    assert replica.post("/vectors", {"values": [1, 2, 3]}).status_code == 409
    assert shown(primary)["member"]


def test_a_registry_is_live_in_all_workers_and_a_removed_replica_comes_back(make: Any) -> None:
    primary, replica = make(*PRIMARY).start(), make().start()
    write(primary, *range(50))
    query = {"replica_id": "replica_1", "replica_url": replica.base_url}

    assert primary.post("/replication/replicas", params=query).status_code == 200
    # Each request on a connection of its own, so that both worker processes are asked.
    seen = [requests.get(f"{primary.base_url}/cluster/topology", timeout=10).json() for _ in range(20)]
    assert {copy["name"] for picture in seen for copy in picture["shards"]["shard_0"]["copies"]} == {"replica_1"}
    assert all(picture["shards"]["shard_0"]["copies"] for picture in seen)
    wait_for_member(primary)

    removed = primary.session.delete(f"{primary.base_url}/replication/replicas/replica_1", timeout=10)
    assert removed.status_code == 200, removed.text
    write(primary, 1000)
    wait_for(lambda: replica.get("/replication/info").json()["role"] == "detached", timeout_s=10, what="the detachment")
    answers = [requests.post(f"{replica.base_url}/vectors", json={"values": [1, 2, 3]}, timeout=10) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {409}
    # It keeps what it had.
    assert len(contents(replica)) == 50

    assert primary.post("/replication/replicas", params=query).status_code == 200
    wait_for_member(primary)
    wait_until_equal(primary, replica)
    assert len(contents(replica)) == 51


def test_a_silent_replica_delays_no_answer_of_the_registry_for_long(make: Any) -> None:
    primary, silent, other = make(*PRIMARY).start(), make().start(), make().start()
    for name, node in (("silent", silent), ("other", other)):
        query = {"replica_id": name, "replica_url": node.base_url}
        assert primary.post("/replication/replicas", params=query).status_code == 200
    wait_for_member(primary, "silent")
    wait_for_member(primary, "other")
    write(primary, *range(10))
    wait_until_equal(primary, other)

    with frozen(silent):
        removed = primary.session.delete(f"{primary.base_url}/replication/replicas/silent", timeout=10)
        assert removed.status_code == 200, removed.text
        assert primary.get("/healthz", timeout=2).status_code == 200
        write(primary, 11)
        wait_until_equal(primary, other)

    wait_for(
        lambda: silent.get("/replication/info").json()["role"] == "detached", timeout_s=40, what="the late detachment"
    )


def test_replicas_follow_a_primary_that_comes_back_at_another_url(make: Any) -> None:
    primary = make(*PRIMARY).start()
    replica = make(*replica_of(primary)).start()
    wait_for_member(primary)
    primary.stop()
    primary.port = free_port()

    primary.start()

    wait_for(
        lambda: replica.get("/replication/info").json()["primary_url"] == primary.base_url,
        timeout_s=20,
        what="the new URL",
    )
    write(primary, 1)
    wait_until_equal(primary, replica)


def test_another_secret_is_the_last_error_until_it_is_put_right(make: Any) -> None:
    primary = make(*PRIMARY, MLVDB_CLUSTER_SECRET="one").start()
    replica = make(MLVDB_CLUSTER_SECRET="two").start()

    query = {"replica_id": "replica_1", "replica_url": replica.base_url}
    assert primary.post("/replication/replicas", params=query).status_code == 200

    # Whoever tried last, the registry, the sender or the health monitor, says it in its own words.
    assert "cluster_secret_mismatch" in shown(primary)["last_error"]
    assert "MLVDB_CLUSTER_SECRET" in shown(primary)["last_error"]
    replica.environ["MLVDB_CLUSTER_SECRET"] = "one"
    replica.restart()
    wait_for_member(primary)
    assert shown(primary)["last_error"] is None


def test_each_queue_has_a_worker_of_its_own_that_gives_its_signs_of_life(make: Any) -> None:
    node = make(*PRIMARY).start()

    wait_for(
        lambda: node.get("/replication/info").json()["workers_alive"], timeout_s=30, what="the signs of life of all"
    )
    wait_for(lambda: node.get("/health").json()["workers_alive"]["maintenance"], timeout_s=30)
    with sqlite3.connect(node.data_dir / "node.sqlite3") as database:
        owners = dict(database.execute("SELECT name, owner FROM mlvdb_site_processheartbeat"))
    for queue, child in (("replication", "replication"), ("maintenance", "tasks"), ("health", "health")):
        assert owners[f"worker:{queue}"] == f"pid {node.child(child)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--enable-replication", "replica"), "needs --replica-name and --primary-url"),
        (("--enable-replication", "replica", "--replica-name", "a"), "needs --replica-name and --primary-url"),
        (
            ("--enable-replication", "replica", "--replica-name", "health", "--primary-url", "http://127.0.0.1:1"),
            "cannot be a name",
        ),
        (("--enable-replication", "secondary"), "must be one of primary, replica"),
        (("--primary-url", "nowhere"), "MLVDB_PRIMARY_URL"),
    ],
)
def test_a_start_that_cannot_come_to_anything_is_one_line(make: Any, options: tuple[str, ...], message: str) -> None:
    node = make(*options)

    process = node.launch()

    assert process.wait(60) == 2
    assert message in node.output
    assert "Traceback" not in node.output


def test_a_replica_cannot_be_its_own_primary(make: Any) -> None:
    node = make()
    node.options = replica_of(node)

    process = node.launch()

    assert process.wait(60) == 2
    assert "is this node itself" in node.output
