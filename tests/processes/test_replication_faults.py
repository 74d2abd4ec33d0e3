"""What a replica, its link, the broker and the Celery worker can do to a primary under writes: nothing that lasts.

One cluster for the module; every test leaves all copies equal in full, and the history of all of them is proven.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

import pytest

from tests.processes.clients import Clients, Recorder
from tests.processes.cluster import ReplicationCluster, frozen, kill_all
from tests.processes.fault_proxy import Fault
from tests.processes.history import History, Outcome
from tests.processes.node import NodeProcess, wait_for
from tests.processes.redis_server import RedisServer

# Checkpoints all the time, and so little log kept that a replica that was away for long needs its segments.
BUSY = {
    "MLVDB_TAIL_SOFT_BYTES": "60k",
    "MLVDB_CHECKPOINT_INTERVAL_S": "2",
    "MLVDB_LOG_RETENTION_BYTES": "300k",
    "MLVDB_LEASE_S": "1",
}
BOTH = ("primary", "replica_1")
# Room for what the node keeps free while it takes a full sync, and some more.
REPLICA_DISK_BYTES = 192 * 1024 * 1024

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk of the replica's own that can be filled; None where this user may not mount one."""
    place = tmp_path_factory.mktemp("disk")
    size = f"size={REPLICA_DISK_BYTES}"
    with contextlib.suppress(FileNotFoundError):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True)
        if mounted.returncode == 0:
            try:
                yield place
            finally:
                subprocess.run(["umount", "--lazy", place], check=True)
            return
    yield None


@pytest.fixture(scope="module")
def running(broker: RedisServer, small_disk: Path | None) -> Iterator[ReplicationCluster]:
    """The cluster of this module: a primary and one replica, so that a quorum is both."""
    cluster = ReplicationCluster(
        proxied=True,
        settings_of={"primary": {"MLVDB_BROKER_URL": broker.url}},
        data_dirs={} if small_disk is None else {"replica_1": small_disk / "node"},
        **BUSY,
    )
    with cluster:
        yield cluster


@pytest.fixture
def recorder(cluster: ReplicationCluster, history: History) -> Recorder:
    """What sends single requests."""
    return Recorder(cluster.nodes, history, timeout_s=2.0)


def load(recorder: Recorder, *levels: str, read_from: Sequence[str] = ("primary",), **options: int) -> Clients:
    """Return clients that write to the primary at these levels."""
    return Clients(recorder, write_to=["primary"], read_from=read_from, levels=levels, seed=next(seeds), **options)


@contextlib.contextmanager
def killed(cluster: ReplicationCluster) -> Iterator[None]:
    """Kill the replica with all its processes; start it again at the end."""
    kill_all(cluster["replica_1"])
    yield
    cluster["replica_1"].start()


def link(fault: Fault, **options: int) -> Callable[[ReplicationCluster], AbstractContextManager[object]]:
    """Return a fault of the link to the replica."""
    return lambda cluster: cluster.links["replica_1"].faulty(fault, **options)


REPLICA_FAULTS = {
    "killed": killed,
    "refusing": link(Fault.REFUSE),
    "silent": link(Fault.SILENT),
    "stopped": lambda cluster: frozen(cluster["replica_1"]),
    "answering garbage": link(Fault.GARBAGE),
    "resetting": link(Fault.RESET),
}


@pytest.mark.parametrize("fault", REPLICA_FAULTS)
def test_a_replica_that_is_away_holds_up_no_write_and_comes_back_by_itself(cluster, recorder, fault):
    with load(recorder, "one", readers=1) as ones, load(recorder, "quorum", writers=1) as quorums:
        quorums.wait_for(20)
        with REPLICA_FAULTS[fault](cluster):
            ones.wait_for(150, timeout_s=15)
            assert recorder.write("primary", ["alone"], level="quorum").outcome is Outcome.COMMITTED
        # Nobody has to tell anybody that it is back.
        quorums.wait_for(20, timeout_s=30)
    cluster.prove(recorder.history)


def test_a_slow_replica_holds_up_no_write_that_does_not_wait_for_it(cluster, recorder):
    slow = cluster.links["replica_1"].faulty(Fault.SLOW, bytes_per_s=4_000)
    with load(recorder, "one") as ones, slow:
        ones.wait_for(200, timeout_s=20)
    cluster.prove(recorder.history)


def test_a_replica_behind_the_kept_log_gets_a_full_sync_by_itself_while_writes_go_on(cluster, recorder):
    syncs = full_syncs(cluster)
    behind = cluster.position("replica_1")
    with load(recorder, "one") as ones:
        with killed(cluster):
            fill(recorder, batches=20, rows=300)
            wait_for(lambda: cluster.shard("primary")["oldest_seq"] > behind.seq + 50, timeout_s=30, what="pruned log")
        ones.wait_for(50)
        wait_for(lambda: full_syncs(cluster) > syncs, timeout_s=40, what="a full sync")
    cluster.prove(recorder.history)


@pytest.mark.parametrize("crash", ["sender", pytest.param("receiver", marks=pytest.mark.long)])
def test_a_full_sync_goes_on_after_a_crash_of_either_side(cluster, recorder, crash):
    syncs, link = full_syncs(cluster), cluster.links["replica_1"]
    behind = cluster.position("replica_1")
    with link.faulty(Fault.SLOW, bytes_per_s=150_000):
        with killed(cluster):
            fill(recorder, batches=20, rows=300)
            wait_for(lambda: cluster.shard("primary")["oldest_seq"] > behind.seq + 1, timeout_s=30, what="pruned log")
        wait_for(lambda: sync_under_way(cluster) > 100_000, timeout_s=30, what="a full sync on its way")
        if crash == "sender":
            kill_replication_worker(cluster["primary"])
        else:
            kill_all(cluster["replica_1"])
            cluster["replica_1"].start()
        wait_for(lambda: full_syncs(cluster) > syncs, timeout_s=60, what="the end of the full sync")
    cluster.prove(recorder.history)


@pytest.mark.parametrize("state", ["down", "silent"])
def test_invariant_11_a_broker_that_is_away_changes_no_answer(cluster, recorder, broker, state):
    with load(recorder, "one", read_from=BOTH) as ones:
        ones.wait_for(30)
        with broker.down() if state == "down" else broker.silent():
            # Nobody ships now: what a session wrote, the replica gets for it from the primary.
            ones.wait_for(150, timeout_s=20)
            with load(recorder, "quorum", read_from=BOTH) as quorums:
                quorums.wait_for(50, timeout_s=20)
        ones.wait_for(50, timeout_s=20)
    cluster.prove(recorder.history)


@pytest.mark.long
@pytest.mark.slow
def test_a_broker_that_is_down_for_a_minute_is_not_missed(cluster, recorder, broker):
    with load(recorder, "one") as ones, load(recorder, "quorum") as quorums, broker.down():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            ones.wait_for(50, timeout_s=20)
            quorums.wait_for(20, timeout_s=20)
    cluster.prove(recorder.history)


def test_a_celery_worker_killed_in_the_middle_of_a_slice_leaves_a_replica_that_catches_up(cluster, recorder):
    link = cluster.links["replica_1"]
    with load(recorder, "one"), link.faulty(Fault.SLOW, bytes_per_s=40_000):
        fill(recorder, batches=4, rows=300)
        for _ in range(2):
            passed = link.passed_bytes
            wait_for(lambda passed=passed: link.passed_bytes > passed + 10_000, what="a slice on its way")
            kill_replication_worker(cluster["primary"])
    cluster.prove(recorder.history)


def test_a_replica_whose_disk_is_full_says_so_and_catches_up_when_there_is_room(cluster, recorder, small_disk):
    if small_disk is None:
        pytest.skip("a disk that can be filled needs the right to mount a tmpfs")
    with load(recorder, "one") as ones:
        with filled(small_disk):
            ones.wait_for(150, timeout_s=20)
            error = wait_for(lambda: cluster.info()["replica_1"]["last_error"], timeout_s=30, what="an error")
            assert "storage_full" in error
            ones.wait_for(50, timeout_s=20)
        ones.wait_for(30)
    cluster.prove(recorder.history)
    wait_for(lambda: not cluster.info()["replica_1"]["last_error"], timeout_s=20, what="the end of the error")


def fill(recorder: Recorder, *, batches: int, rows: int) -> None:
    """Write new rows in bulk to the primary."""
    for _ in range(batches):
        number = next(seeds)
        write = recorder.write("primary", [f"fill-{number}-{place}" for place in range(rows)])
        assert write.outcome is Outcome.ACKNOWLEDGED, write.answer


def full_syncs(cluster: ReplicationCluster) -> int:
    """Return how many full syncs have ended well."""
    moves = cluster.primary.get("/cluster/moves").json()["moves"]
    return sum(move["kind"] == "full_sync" and move["phase"] == "done" for move in moves)


def sync_under_way(cluster: ReplicationCluster) -> int:
    """Return how many bytes the full sync that is under way has sent, 0 when there is none."""
    moves = cluster.primary.get("/cluster/moves").json()["moves"]
    return sum(move["bytes_done"] for move in moves if move["kind"] == "full_sync" and move["phase"] == "copying")


def kill_replication_worker(node: NodeProcess) -> None:
    """Kill the Celery worker that ships the log, and wait until `serve` has started another."""
    worker = node.child("replication")
    os.kill(worker, signal.SIGKILL)
    # While it is being replaced the record does not name one.
    wait_for(lambda: node.record["processes"].get("replication", worker) != worker, timeout_s=20, what="a new worker")


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no room on a disk within the context."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


def test_after_all_that_every_record_and_file_is_whole(cluster, recorder):
    cluster.prove(recorder.history)
    cluster.verify()
