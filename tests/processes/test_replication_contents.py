"""Anti-entropy on real nodes: a copy that differs is found, put right from the good side, and nothing else changes."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.cluster import ReplicationCluster
from tests.processes.node import NodeProcess, wait_for

VERIFY = "from cluster.services.entropy import replica_verify; replica_verify(name='replica_1', actor='a person')"
ROWS = 600
DIMENSION = 16


@pytest.fixture(scope="module")
def running() -> Iterator[ReplicationCluster]:
    """A primary and a replica, each with segments, and some deleted rows."""
    with ReplicationCluster() as cluster:
        write(cluster.primary, range(ROWS))
        assert cluster.primary.post("/vectors/delete", {"ids": [f"r{n}" for n in range(0, ROWS, 7)]}).status_code == 200
        cluster.wait_until_equal()
        for node in cluster.nodes.values():
            assert node.manage("checkpoint").returncode == 0
        yield cluster


def write(node: NodeProcess, numbers: range) -> None:
    rows = [{"id": f"r{n}", "values": [float(n)] * DIMENSION, "metadata": {"n": n}} for n in numbers]
    assert node.session.put(f"{node.base_url}/vectors/batch", json={"vectors": rows}, timeout=30).status_code == 200


def copy(cluster: ReplicationCluster) -> dict[str, Any]:
    """What the primary says of the one copy of its replica."""
    replica = cluster.info()["replica_1"]
    return {**replica["shards"]["shard_0"], "lag": replica["lag"]}


def compare(cluster: ReplicationCluster) -> None:
    """Have the contents compared."""
    asked: subprocess.CompletedProcess[str] = cluster.primary.manage("shell", "-c", VERIFY)
    assert asked.returncode == 0, asked.stderr


def wait_for_verdict(cluster: ReplicationCluster, *, other_than: str | None) -> dict[str, Any]:
    """Wait until the copy follows and a comparison later than `other_than` has said that it is equal."""

    def is_equal() -> dict[str, Any] | None:
        found = copy(cluster)
        done = found["digest"] == "equal" and found["digest_at"] != other_than and found["state"] == "following"
        return found if done else None

    found = wait_for(is_equal, timeout_s=40, what="the verdict that both copies are equal")
    assert found is not None
    return found


def events(cluster: ReplicationCluster, action: str) -> list[tuple[Any, ...]]:
    """The events of the primary with that action: alarm, what is said."""
    with sqlite3.connect(cluster.primary.data_dir / "node.sqlite3", timeout=10) as database:
        return database.execute(
            "SELECT alarm, after FROM cluster_clusterevent WHERE action = ? ORDER BY id", (action,)
        ).fetchall()


def contents_equal(cluster: ReplicationCluster) -> None:
    first, second = cluster.copies()
    assert first.rows == second.rows
    assert not {f"r{n}" for n in range(0, ROWS, 7)} & set(first.rows), "a deleted row is back"


def test_equal_copies_are_told_so_while_writes_go_on(running: ReplicationCluster) -> None:
    before = copy(running)["digest_at"]
    compare(running)
    for start in range(ROWS, ROWS + 200, 20):
        write(running.primary, range(start, start + 20))
    assert wait_for_verdict(running, other_than=before)["digest"] == "equal"
    assert not events(running, "copy_quarantined")


def test_a_flipped_byte_in_a_replicas_segment_is_found_and_the_copy_refilled(running: ReplicationCluster) -> None:
    before = copy(running)["digest_at"]
    path = next((running["replica_1"].data_dir / "segments").rglob("vectors.f32.npy"))
    altered = bytearray(path.read_bytes())
    altered[len(altered) // 2] ^= 0x10
    # Another file of that name: the one that is mapped stays as it is, as a page gone bad on disk would.
    path.unlink()
    path.write_bytes(altered)
    compare(running)
    wait_for_verdict(running, other_than=before)
    assert events(running, "copy_quarantined"), "the copy was never quarantined"
    contents_equal(running)
    verified = running["replica_1"].manage("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_copies_that_differ_with_all_checksums_right_wait_for_a_person(running: ReplicationCluster) -> None:
    before = copy(running)["digest_at"]
    write(running.primary, range(ROWS, ROWS + 20))
    running.wait_until_equal()
    # Its checksum is right for what it says, and what it says is not what the primary's says.
    forged = running["replica_1"].manage("shell", "-c", FORGE)
    assert forged.returncode == 0, forged.stderr
    compare(running)
    wait_for(lambda: copy(running)["state"] == "quarantined", timeout_s=30, what="the quarantine")
    alarms = wait_for(lambda: events(running, "copies_differ"), timeout_s=10, what="the alarm")
    assert [alarm for alarm, _ in alarms] == [1]
    refused = running["replica_1"].post("/count", {})
    assert refused.status_code == 503, refused.text
    assert copy(running)["state"] == "quarantined", "nobody but a person may tell which side is right"
    answer = running.primary.post("/replication/replicas/replica_1/sync")
    assert answer.status_code == 200, answer.text
    wait_for_verdict(running, other_than=before)
    contents_equal(running)


FORGE = """
import numpy as np, zlib
from vectors.engine.operations import Kind, Upsert, encode
from vectors.models import LogEntry, ShardHead
from vectors.store import log
head = ShardHead.objects.get()
entry = LogEntry.objects.filter(shard=head, kind=Kind.UPSERT, seq__gt=head.manifest_seq).order_by("-seq").first()
operation = log.Entry(entry.seq, entry.term, entry.namespace, entry.kind, bytes(entry.payload), entry.crc32).operation()
payload = encode(Upsert(operation.keys, np.ascontiguousarray(operation.values + 1), operation.metadata))
entry.payload = payload
entry.crc32 = log.checksum(entry.seq, entry.term, entry.kind, entry.namespace, zlib.crc32(payload))
entry.save()
head.incarnation += 1
head.save(update_fields=["incarnation"])
"""
