"""`serve --demo`: a whole small cluster in one terminal, started, ended, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.node import NodeProcess, free_port, wait_for
from vectors.client import Client

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(240)]

COMPLETE_WITHIN_S = 90.0


def three_ports() -> int:
    """Return the first of three ports in a row that were free a moment ago."""
    while True:
        first = free_port()
        try:
            for port in (first + 1, first + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


@pytest.fixture
def demonstration() -> Iterator[NodeProcess]:
    """The coordinator of a demonstration, not started."""
    node = NodeProcess(options=("--demo",))
    node.port = three_ports()
    try:
        yield node
    finally:
        node.close()


def url_of(node: NodeProcess, place: int) -> str:
    """Return the URL of one of the three nodes."""
    return f"http://127.0.0.1:{node.port + place}"


def run(node: NodeProcess, *, times: int = 1) -> float:
    """Start the demonstration and wait until it has printed a search and its answer; return the seconds it took."""
    began = time.monotonic()
    node.launch()
    wait_for(
        lambda: node.output.count("Try every endpoint") == times or node.process.poll() is not None,
        timeout_s=COMPLETE_WITHIN_S,
        what="the answer of the demonstration",
    )
    assert node.process.poll() is None, node.log_tail()
    return time.monotonic() - began


def check(node: NodeProcess) -> None:
    """Assert that it is the cluster of API §1, with all the rows."""
    sharding = node.get("/sharding/info").json()
    assert {label: shard["is_local"] for label, shard in sharding["shards"].items()} == {
        "shard_0": True,
        "shard_1": True,
        "shard_2": False,
    }
    assert all(shard["is_healthy"] and shard["vector_count"] > 400 for shard in sharding["shards"].values()), sharding
    assert sharding["shards"]["shard_2"]["url"] == url_of(node, 1)
    replica = node.get("/replication/info").json()["replicas"]["replica_1"]
    assert (replica["url"], replica["state"], replica["member"]) == (url_of(node, 2), "following", True)
    with Client(node.base_url) as client:
        assert client.count(namespace="digits") == 1797
        found = client.explain(id="digit-0042", top_k=4, namespace="digits")
        assert [hit.id for hit in found.hits] == ["digit-0042", "digit-0125", "digit-0381", "digit-1388"]
        assert sorted(shard["shard"] for shard in found.shards) == ["shard_0", "shard_1", "shard_2"]


def test_the_demonstration_is_a_cluster_that_ctrl_c_ends_and_a_second_start_finds_again(
    demonstration: NodeProcess,
) -> None:
    took_s = run(demonstration)

    assert took_s < COMPLETE_WITHIN_S
    check(demonstration)
    output = demonstration.output
    assert "loaded into namespace digits" in output
    assert "over 3 shards" in output
    assert [line for line in output.splitlines() if "WARNING" in line or "ERROR" in line or "Traceback" in line] == []
    assert (demonstration.data_dir / "demo" / "port").read_text() == f"{demonstration.port}\n"
    groups = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2] for pid in demonstration.pids()}
    assert groups == {str(demonstration.process.pid)}

    assert demonstration.interrupt() <= 15
    demonstration.wait_until_gone()
    run(demonstration, times=2)
    check(demonstration)
    assert "are in namespace digits" in demonstration.output

    demonstration.kill()
    run(demonstration, times=3)
    check(demonstration)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_port_that_is_taken_is_one_line_and_nothing_is_started(demonstration: NodeProcess, place: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", demonstration.port + place))
        taken.listen()

        assert demonstration.launch().wait(20) == 2

        [line] = demonstration.output.strip().splitlines()
        assert f"port {demonstration.port + place} on 127.0.0.1 is in use" in line
        demonstration.wait_until_gone()


def test_a_demonstration_is_not_served_at_other_ports_than_before(demonstration: NodeProcess) -> None:
    """Its nodes know each other by their URLs: the cluster would never be complete again."""
    before = demonstration.port
    place = demonstration.data_dir / "demo"
    place.mkdir(parents=True)
    (place / "port").write_text(f"{before}\n")
    demonstration.port = three_ports()

    assert demonstration.launch().wait(20) == 2

    [line] = demonstration.output.strip().splitlines()
    assert f"is at port {before} and the two after it" in line
    demonstration.wait_until_gone()


def test_there_are_no_ports_behind_the_last_one(demonstration: NodeProcess) -> None:
    demonstration.port = 65_534

    assert demonstration.launch().wait(20) == 2
    [line] = demonstration.output.strip().splitlines()
    assert "no port 65536" in line


def test_a_companion_that_dies_is_started_again(demonstration: NodeProcess) -> None:
    run(demonstration)
    killed = demonstration.child("shard_2")
    os.kill(killed, signal.SIGKILL)

    wait_for(lambda: demonstration.record["processes"].get("shard_2", killed) != killed, timeout_s=30)
    wait_for(lambda: not Path(f"/proc/{killed}").exists())
    wait_for(lambda: demonstration.session.get(url_of(demonstration, 1) + "/readyz", timeout=5).ok, timeout_s=30)
    wait_for(lambda: demonstration.get("/sharding/info").json()["shards"]["shard_2"]["is_healthy"], timeout_s=30)
    check(demonstration)
