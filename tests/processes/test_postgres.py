"""Nodes whose log is in PostgreSQL: killed nodes, a server that crashes or falls silent, a database that is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.postgres import PostgresServer, why_not
from tests.processes.node import ROOT, NodeProcess, wait_for
from tests.processes.writers import History, Writers, check, contents, values_of

REASON = why_not()
pytestmark = [pytest.mark.postgres, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

# Checkpoints all the time, and deadlines short enough to be waited for.
BUSY = {
    "MLVDB_TAIL_SOFT_BYTES": "20k",
    "MLVDB_CHECKPOINT_INTERVAL_S": "1",
    "MLVDB_LEASE_S": "1",
    "MLVDB_DATABASE_TIMEOUT_S": "2",
}
ANSWERED_WITHIN_S = 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """The PostgreSQL server of these tests."""
    with PostgresServer() as running:
        yield running


@pytest.fixture
def node(server: PostgresServer) -> Iterator[NodeProcess]:
    """A node of the test's own, with a database of its own."""
    process = NodeProcess(DATABASE_URL=server.database(), **BUSY)
    try:
        yield process.start()
    finally:
        process.close()


def segments_of(node: NodeProcess) -> int:
    """Return how many segments the node's namespaces have."""
    return sum(item["segments"] for item in node.get("/namespaces?detail=1").json()["namespaces"])


def refused(answer: requests.Response) -> str:
    """Return the code of an answer in the one error shape that says 503 and when to come again."""
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert int(answer.headers["Retry-After"]) >= 1
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert "\n" not in body["error"]["message"]
    return str(body["error"]["code"])


def answers_of(node: NodeProcess) -> list[requests.Response]:
    """Ask everything that needs the database, each on a connection of its own."""
    url = node.base_url
    row = {"id": "x", "values": values_of("x", 1)}
    return [
        requests.post(f"{url}/vectors", json=row, timeout=30),
        requests.put(f"{url}/vectors/batch", json={"vectors": [row]}, timeout=30),
        requests.post(f"{url}/vectors/delete", json={"ids": ["x"]}, timeout=30),
        requests.get(f"{url}/vectors/x", timeout=30),
        requests.post(f"{url}/search", json={"query": values_of("x", 1)}, timeout=30),
        requests.post(f"{url}/count", json={}, timeout=30),
        requests.put(f"{url}/namespaces/other", json={"dimension": 3}, timeout=30),
        requests.get(f"{url}/namespaces", timeout=30),
        requests.get(f"{url}/storage/info", timeout=30),
        requests.get(f"{url}/health", timeout=30),
        requests.get(f"{url}/admin/", headers={"Accept": "text/html"}, timeout=30),
    ]


def test_invariant_3_a_killed_node_loses_nothing_acknowledged_on_postgresql(node):
    history = History()
    for round_number in range(2):
        with Writers(node, seed=20 + round_number, history=history) as writers:
            writers.wait_for(300 + history.acknowledged)
            for pid in node.pids():
                os.kill(pid, signal.SIGKILL)
        node.process.wait()
        node.wait_until_gone()
        node.start()
        check(node, history)
    wait_for(lambda: segments_of(node) > 0, what="a checkpoint")


def test_a_server_that_crashes_under_writers_comes_back_to_all_that_was_acknowledged(node, server):
    try:
        with Writers(node, seed=30) as writers:
            for _ in range(2):
                writers.wait_for(writers.history.acknowledged + 150)
                server.stop("immediate")
                wait_for(lambda: node.get("/readyz").status_code == 503, what="/readyz to say so")
                assert refused(node.get("/readyz")) == "not_ready"
                assert node.get("/healthz").status_code == 200
                began = time.monotonic()
                assert {refused(answer) for answer in answers_of(node)} == {"storage_error"}
                assert time.monotonic() - began < ANSWERED_WITHIN_S
                server.start()
                wait_for(lambda: node.get("/readyz").status_code == 200, what="the node to be ready again")
            writers.wait_for(writers.history.acknowledged + 150)
        assert set(writers.history.statuses) <= {200, 201, 404, 503}
        before = segments_of(node)
        assert len(node.worker_pids()) == 2
        check(node, writers.history)
        wait_for(lambda: segments_of(node) >= max(1, before), timeout_s=30, what="checkpoints that go on")
    finally:
        if not server.is_running:
            server.start()


def test_a_server_that_restarts_between_two_requests_is_not_noticed(node, server):
    with Writers(node, seed=40) as writers:
        writers.wait_for(100)
    server.stop("fast")
    server.start()
    # Each thread of each worker has a connection that the server has closed: none of them may show it.
    statuses = []

    def client() -> None:
        for _ in range(6):
            statuses.append(requests.post(f"{node.base_url}/count", json={}, timeout=10).status_code)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert statuses == [200] * 48
    check(node, writers.history)


def test_a_server_that_falls_silent_is_given_up_within_the_deadline(node, server):
    node.post("/vectors", {"id": "a", "values": values_of("a", 1)})
    server.freeze()
    try:
        began = time.monotonic()
        results: list[requests.Response] = []

        def ask(path: str, body: object) -> None:
            results.append(requests.post(f"{node.base_url}{path}", json=body, timeout=30))

        threads = [
            threading.Thread(target=ask, args=("/count", {})),
            threading.Thread(target=ask, args=("/vectors", {"values": values_of("b", 1)})),
        ]
        for thread in threads:
            thread.start()
        assert node.get("/healthz").status_code == 200
        for thread in threads:
            thread.join(timeout=30)
        assert len(results) == 2
        assert {refused(answer) for answer in results} == {"storage_error"}
        assert time.monotonic() - began < ANSWERED_WITHIN_S
        wait_for(lambda: node.get("/readyz").status_code == 503, what="/readyz to say so")
    finally:
        server.thaw()
    wait_for(lambda: node.get("/readyz").status_code == 200, timeout_s=20, what="the node to be ready again")
    # Refused, and so perhaps written: but not by halves.
    assert set(contents(node)) >= {"a"}
    assert node.manage("verify").returncode == 0


def test_of_two_first_inserts_of_different_dimensions_in_two_workers_one_is_refused_on_postgresql(node):
    for attempt in range(8):
        answers: list[requests.Response] = []
        barrier = threading.Barrier(2)

        def insert(dimension: int, name: str = f"race{attempt}", barrier=barrier, answers=answers) -> None:
            session = requests.Session()
            session.get(f"{node.base_url}/healthz", timeout=10)
            barrier.wait(timeout=10)
            url = f"{node.base_url}/vectors?namespace={name}"
            answers.append(session.post(url, json={"values": [1.0] * dimension}, timeout=10))

        threads = [threading.Thread(target=insert, args=(dimension,)) for dimension in (3, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert sorted(answer.status_code for answer in answers) == [201, 400]
        assert [a.json()["error"]["code"] for a in answers if not a.ok] == ["dimension_mismatch"]
        assert node.post(f"/count?namespace=race{attempt}", {}).json() == {"count": 1}


def test_a_database_of_another_node_is_refused_with_one_line(node):
    node.post("/vectors", {"id": "a", "values": values_of("a", 1)})
    other = NodeProcess(DATABASE_URL=node.environ["DATABASE_URL"], **BUSY)
    try:
        process = other.launch()
        assert process.wait(60) == 2
        lines = [line for line in other.output.splitlines() if line.strip()]
        assert len(lines) == 1, other.output
        assert "the database belongs to node" in lines[0]
        # The other ways to its data are closed as well, and change nothing there.
        for command in ("checkpoint", "verify"):
            assert "belongs to node" in other.manage(command).stderr
    finally:
        other.close()
    assert node.get("/vectors/a").status_code == 200
    assert node.manage("verify").returncode == 0
    assert node.get("/health").json()["damage"] == {}


def test_a_server_that_is_not_there_is_one_line_and_no_node():
    node = NodeProcess(DATABASE_URL="postgres://mlvdb@127.0.0.1:1/none", **BUSY)
    try:
        assert node.launch().wait(60) == 2
        [line] = [line for line in node.output.splitlines() if line.strip()]
        assert "the database cannot be used" in line
    finally:
        node.close()


def test_the_store_passes_its_own_tests_on_postgresql():
    modules = [f"tests/vectors/test_{name}.py" for name in ("log", "damage", "checkpoints", "database_away")]
    # Nobody cuts the power here, and Django empties every table after each test.
    with PostgresServer(fsync="off") as server:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *modules],
            cwd=ROOT,
            env={**os.environ, "MLVDB_TEST_DATABASE_URL": server.database()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
