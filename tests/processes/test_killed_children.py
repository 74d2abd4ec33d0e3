"""What happens when one process of a node is killed: it is replaced, and the service goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.node import NodeProcess, children_of, wait_for


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    """One node for all tests here: each leaves it whole again."""
    process = NodeProcess()
    try:
        yield process.start()
    finally:
        process.close()


def test_a_killed_web_worker_is_replaced_and_requests_go_on(node: NodeProcess) -> None:
    before = node.worker_pids()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    # The listening socket is shared: new connections are served by the other worker meanwhile.
    for _ in range(20):
        node.session.close()
        assert node.post("/count", {}, timeout=5).json() == {"count": 0}
    after = wait_for(lambda: (pids := node.worker_pids()) != before and len(pids) == 2 and pids, what="a new worker")
    assert set(after) - set(before)


def test_web_workers_killed_again_and_again_are_replaced(node: NodeProcess) -> None:
    web = node.child("web")
    for _ in range(3):
        before = node.worker_pids()
        os.kill(before[-1], signal.SIGKILL)
        wait_for(lambda before=before: len(p := node.worker_pids()) == 2 and p != before, what="a new worker")  # type: ignore[misc]
    assert node.child("web") == web
    assert node.post("/count", {}).json() == {"count": 0}


def test_a_killed_web_server_takes_its_workers_along_and_is_replaced(node: NodeProcess) -> None:
    web, workers = node.child("web"), node.worker_pids()
    os.kill(web, signal.SIGKILL)
    wait_for(lambda: not set(workers) & set(node.pids()), timeout_s=5, what="the end of the workers")
    node.session.close()
    # A request that arrives before the new server does waits in the socket's queue.
    assert node.get("/healthz", timeout=10).status_code == 200
    wait_for(lambda: node.child("web") != web, what="a new web server in the record")


@pytest.mark.parametrize("name", ["broker", "beat", "health", "replication", "tasks"])
def test_any_other_killed_child_is_replaced(node: NodeProcess, name: str) -> None:
    before = node.child(name)
    grandchildren = children_of(before)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: node.record["processes"].get(name, before) != before, what=f"a new {name}")
    wait_for(lambda: not set(grandchildren) & set(node.pids()), timeout_s=5, what="the end of its children")
    assert node.post("/count", {}).json() == {"count": 0}


def test_tasks_are_executed_again_after_the_broker_was_killed(node: NodeProcess) -> None:
    broker = node.child("broker")
    os.kill(broker, signal.SIGKILL)
    wait_for(lambda: node.record["processes"].get("broker", broker) != broker, what="a new broker")

    def last_round() -> str:
        return str(node.get("/health").json()["processes"]["round"]["last_seen"])

    before = last_round()
    wait_for(lambda: last_round() != before, timeout_s=60, what="a task executed after the broker came back")


def test_a_killed_pool_process_is_replaced(node: NodeProcess) -> None:
    def pool() -> list[int]:
        return children_of(node.record["processes"].get("tasks", 0))

    before = wait_for(lambda: len(pids := pool()) == 3 and pids, what="three pool processes")
    os.kill(before[0], signal.SIGKILL)
    # By Celery; or, where the pool was only just starting, by the supervisor, because Celery then ends.
    wait_for(lambda: len(pids := pool()) == 3 and before[0] not in pids, what="a new pool process", timeout_s=30)


def test_temporary_files_of_killed_children_go_with_the_run(tmp_path: Path) -> None:
    data_dir, elsewhere = tmp_path / "node", tmp_path / "tmp"
    elsewhere.mkdir()
    with NodeProcess(data_dir, TMPDIR=str(elsewhere)) as node:
        wait_for(lambda: list((data_dir / "scratch").iterdir()), timeout_s=30, what="the files of a pool")
        os.kill(node.child("tasks"), signal.SIGKILL)
        node.stop()
        assert not (data_dir / "scratch").exists()
    assert list(elsewhere.iterdir()) == []
