"""Clocks and schedulers: a wall clock that jumps, and two beats of one node, change nothing that lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.processes.clients import Clients, Recorder
from tests.processes.cluster import ReplicationCluster
from tests.processes.history import History
from tests.processes.node import ROOT, NodeProcess, wait_for
from tests.processes.redis_server import RedisServer

SHIFTED_CLOCK = Path(__file__).parent / "shifted_clock"
HOUR_S = 3600

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


class Clock:
    """The wall clock of a node, as its processes see it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shift(0)

    @property
    def settings(self) -> dict[str, str]:
        """What makes a node see it."""
        return {"PYTHONPATH": str(SHIFTED_CLOCK), "SHIFTED_CLOCK_FILE": str(self._path)}

    def shift(self, seconds: float) -> None:
        """Set it off by that much from the real one."""
        made = self._path.with_suffix(".new")
        made.write_text(str(seconds))
        made.replace(self._path)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clock]:
    """A clock for each node."""
    place = tmp_path_factory.mktemp("clocks")
    return {name: Clock(place / name) for name in ("primary", "replica_1")}


@pytest.fixture(scope="module")
def cluster(clocks: dict[str, Clock], broker: RedisServer) -> Iterator[ReplicationCluster]:
    """A primary and a replica whose clocks can jump."""
    own = {name: clock.settings for name, clock in clocks.items()}
    own["primary"]["MLVDB_BROKER_URL"] = broker.url
    with ReplicationCluster(settings_of=own, MLVDB_LEASE_S="1", MLVDB_CHECKPOINT_INTERVAL_S="2") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recorder(cluster: ReplicationCluster) -> Recorder:
    """What sends single requests."""
    return Recorder(cluster.nodes, History(), timeout_s=2.0)


def load(recorder: Recorder, *levels: str) -> Clients:
    """Return clients that write to the primary and read from both nodes."""
    return Clients(recorder, write_to=["primary"], read_from=list(recorder.nodes), levels=levels, seed=next(seeds))


def checked_at(cluster: ReplicationCluster) -> str:
    """Return when the primary last looked after its replica."""
    return str(cluster.info()["replica_1"]["last_health_check"])


@pytest.mark.parametrize("jump_s", [2 * HOUR_S, -2 * HOUR_S])
def test_a_wall_clock_that_jumps_changes_no_answer_and_stops_nothing(cluster, clocks, recorder, broker, jump_s):
    with load(recorder, "one") as ones, load(recorder, "quorum") as quorums:
        quorums.wait_for(30)
        clocks["primary"].shift(jump_s)
        clocks["replica_1"].shift(-jump_s)
        quorums.wait_for(50)
        ones.wait_for(50)
        # What only a schedule does goes on as well: probes, and the sweep behind knocks that were lost.
        for _ in range(2):
            seen = checked_at(cluster)
            wait_for(lambda seen=seen: checked_at(cluster) != seen, timeout_s=20, what="a probe by schedule")
        with broker.down():
            ones.wait_for(30)
        quorums.wait_for(20)
    cluster.prove(recorder.history)
    info = cluster.info()["replica_1"]
    assert info["is_healthy"]
    wait_for(lambda: cluster.info()["replica_1"]["lag"] == 0, timeout_s=30, what="a lag of 0 in the registry")


def test_of_two_beats_one_stands_by_and_takes_over_when_the_other_stops(cluster, recorder):
    primary = cluster["primary"]
    first = primary.child("beat")
    with second_beat(primary), load(recorder, "one", "quorum") as clients:
        clients.wait_for(50)
        # Stopped, not killed: `serve` would start another at once.
        os.kill(first, signal.SIGSTOP)
        try:
            for _ in range(2):
                seen = checked_at(cluster)
                wait_for(lambda seen=seen: checked_at(cluster) != seen, timeout_s=20, what="a probe by the second beat")
            clients.wait_for(30)
        finally:
            os.kill(first, signal.SIGCONT)
        clients.wait_for(30)
    cluster.prove(recorder.history)


@contextlib.contextmanager
def second_beat(node: NodeProcess) -> Iterator[None]:
    """Run another beat of a node within the context."""
    output = node.data_dir / "second-beat.output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "mlvdb_site", "beat", "--pidfile", ""],
            cwd=ROOT,
            env={**node.process_environ(), "DJANGO_SETTINGS_MODULE": "mlvdb_site.settings", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "is starting" in output.read_text(), timeout_s=60, what="a second beat")
        yield
    finally:
        process.terminate()
        process.wait(20)
