"""Invariants on real nodes: what is acknowledged survives, and all workers answer the same."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from tests.processes.node import NodeProcess, free_port, wait_for
from tests.processes.writers import History, Writers, check, values_of

# Checkpoints all the time: every few hundred rows, with a sweep of its own.
BUSY = {"MLVDB_TAIL_SOFT_BYTES": "20k", "MLVDB_CHECKPOINT_INTERVAL_S": "1", "MLVDB_LEASE_S": "1"}


@pytest.fixture
def busy_node() -> Iterator[NodeProcess]:
    """A node that checkpoints every few writes."""
    node = NodeProcess(**BUSY)
    try:
        yield node.start()
    finally:
        node.close()


def manifest_of(node: NodeProcess) -> int:
    """Return how many segments the node's namespaces have."""
    details = node.get("/namespaces?detail=1").json()["namespaces"]
    return sum(item["segments"] for item in details)


def task_worker(node: NodeProcess) -> int | None:
    """Return the process id of the Celery worker that checkpoints, None while it is being replaced."""
    return node.record["processes"].get("tasks")


def test_invariant_4_a_read_in_any_worker_sees_every_write_answered_before_it(busy_node):
    failures: list[str] = []

    def client(number: int) -> None:
        writer = requests.Session()
        for version in range(1, 40):
            row_id = f"c{number}"
            answer = writer.post(
                f"{busy_node.base_url}/vectors",
                json={"id": row_id, "values": values_of(row_id, version), "metadata": {"version": version}},
                timeout=10,
            )
            if answer.status_code != 201:
                failures.append(answer.text)
            # A new connection each time, so that every worker is asked.
            for _ in range(3):
                seen = requests.get(f"{busy_node.base_url}/vectors/{row_id}", timeout=10).json()
                if seen["metadata"]["version"] != version:
                    failures.append(f"wrote {version}, read {seen['metadata']}")
            found = requests.post(
                f"{busy_node.base_url}/search",
                json={"query": values_of(row_id, version), "filter": {"id": row_id}, "metric": "l2"},
                timeout=10,
            ).json()
            if [(hit["id"], hit["score"]) for hit in found] != [(row_id, 0.0)]:
                failures.append(f"wrote {version}, found {found}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert failures == []
    assert len(busy_node.worker_pids()) == 2


def test_mixed_writers_leave_what_they_were_told(busy_node):
    with Writers(busy_node) as writers:
        writers.wait_for(600)
    assert set(writers.history.statuses) <= {200, 201, 404}
    wait_for(lambda: manifest_of(busy_node) > 0, what="a checkpoint")
    check(busy_node, writers.history)


def test_invariant_3_a_killed_worker_loses_nothing_acknowledged(busy_node):
    with Writers(busy_node, seed=1) as writers:
        for round_number in range(1, 4):
            writers.wait_for(200 * round_number)
            victims = busy_node.worker_pids()
            os.kill(victims[round_number % len(victims)], signal.SIGKILL)
        writers.wait_for(900)
    assert not [status for status in writers.history.statuses if status >= 500 and status != 503]
    check(busy_node, writers.history)


def test_invariant_3_a_killed_node_loses_nothing_acknowledged(busy_node):
    history = History()
    for round_number in range(3):
        with Writers(busy_node, seed=2 + round_number, history=history) as writers:
            writers.wait_for(300 + history.acknowledged)
            # Everything at once, wherever each process is: in an append, in a checkpoint, in a swap.
            for pid in busy_node.pids():
                os.kill(pid, signal.SIGKILL)
        busy_node.process.wait()
        busy_node.wait_until_gone()
        busy_node.start()
        check(busy_node, history)


def test_a_checkpoint_killed_in_the_middle_is_done_again(busy_node):
    with Writers(busy_node, seed=7) as writers:
        writers.wait_for(200)
        for _ in range(5):
            tasks = wait_for(lambda: task_worker(busy_node), what="a task worker")
            os.kill(tasks, signal.SIGKILL)
            wait_for(lambda killed=tasks: task_worker(busy_node) not in (None, killed), timeout_s=20, what="a new one")
            writers.wait_for(writers.history.acknowledged + 100)
        before = manifest_of(busy_node)
    wait_for(lambda: manifest_of(busy_node) >= max(1, before), timeout_s=30, what="checkpoints that go on")
    check(busy_node, writers.history)


def test_of_two_first_inserts_of_different_dimensions_in_two_workers_one_is_refused(shared_node):
    for attempt in range(10):
        statuses: list[int] = []
        barrier = threading.Barrier(2)

        def insert(dimension: int, name: str = f"race{attempt}", barrier=barrier, statuses=statuses) -> None:
            session = requests.Session()
            session.get(f"{shared_node.base_url}/healthz", timeout=10)
            barrier.wait(timeout=10)
            answer = session.post(
                f"{shared_node.base_url}/vectors?namespace={name}", json={"values": [1.0] * dimension}, timeout=10
            )
            statuses.append(answer.status_code)
            if answer.status_code != 201:
                assert answer.json()["error"]["code"] == "dimension_mismatch"

        threads = [threading.Thread(target=insert, args=(dimension,)) for dimension in (3, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert sorted(statuses) == [201, 400]
        assert shared_node.post(f"/count?namespace=race{attempt}", {}).json() == {"count": 1}


@pytest.fixture(params=["refused", "silent"])
def lost_broker(request) -> Iterator[str]:
    """The URL of a broker that refuses connections, or takes them and never says a word."""
    if request.param == "refused":
        yield f"redis://127.0.0.1:{free_port()}/0"
        return
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"


def test_invariant_11_without_a_broker_writes_reads_and_checkpoints_go_on(lost_broker):
    settings = {**BUSY, "MLVDB_CHECKPOINT_GRACE_S": "1", "MLVDB_BROKER_URL": lost_broker}
    with NodeProcess(**settings) as node:
        with Writers(node, seed=11) as writers:
            writers.wait_for(300)
            wait_for(lambda: manifest_of(node) > 0, timeout_s=40, what="a checkpoint without Celery")
            writers.wait_for(600)
        assert set(writers.history.statuses) <= {200, 201, 404}
        check(node, writers.history)


def test_the_hard_limit_of_the_tail_holds_and_a_checkpoint_ends_it():
    settings = {
        "MLVDB_TAIL_SOFT_BYTES": "1m",
        "MLVDB_TAIL_HARD_BYTES": "1100k",
        "MLVDB_COMMIT_GROUP_BYTES": "512k",
        "MLVDB_CHECKPOINT_GRACE_S": "600",
        "MLVDB_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    with NodeProcess(**settings) as node:
        body = {"vectors": [{"values": [0.5] * 1000}] * 25}
        answers = [node.session.put(f"{node.base_url}/vectors/batch", json=body, timeout=10) for _ in range(14)]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert {answer.json()["error"]["code"] for answer in refused} == {"checkpoint_behind"}
        assert all("Retry-After" in answer.headers for answer in refused)
        count = node.post("/count", {}).json()["count"]
        assert count == 25 * (len(answers) - len(refused))
        assert node.manage("checkpoint").returncode == 0
        assert node.session.put(f"{node.base_url}/vectors/batch", json=body, timeout=10).status_code == 200
        assert node.post("/count", {}).json()["count"] == count + 25
