"""Replication between nodes whose logs are in PostgreSQL: what differs there are locks, isolation and types."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer, why_not
from tests.processes.cluster import PRIMARY, ReplicationCluster, kill_all
from tests.processes.node import NodeProcess
from tests.processes.writers import contents, values_of

REASON = why_not()
pytestmark = [pytest.mark.postgres, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture
def cluster() -> Iterator[ReplicationCluster]:
    """A primary and two replicas, each with a database of its own; checkpoints come often."""
    with PostgresServer() as server:
        names = (PRIMARY, "replica_1", "replica_2")
        settings_of = {name: {"DATABASE_URL": server.database()} for name in names}
        busy = {"MLVDB_TAIL_SOFT_BYTES": "20k", "MLVDB_CHECKPOINT_INTERVAL_S": "1", "MLVDB_LEASE_S": "2"}
        with ReplicationCluster(2, settings_of=settings_of, **busy) as running:
            yield running


def write(node: NodeProcess, start: int, count: int, *, level: str) -> None:
    rows = [{"id": number, "values": values_of(str(number), 1)} for number in range(start, start + count)]
    answer = node.session.put(f"{node.base_url}/vectors/batch?consistency={level}", json={"vectors": rows}, timeout=20)
    assert answer.status_code == 200, answer.text


def test_copies_follow_fail_over_and_come_back_on_postgresql(cluster: ReplicationCluster) -> None:
    # Level `one` is shipped by the background task, the others by the lanes of the writing process.
    for number, level in enumerate(("one", "quorum", "all", "one")):
        write(cluster.primary, 100 * number, 100, level=level)
    cluster.wait_until_equal()

    old = cluster.primary
    kill_all(old)
    cluster.promote("replica_1")
    write(cluster.primary, 400, 50, level="quorum")
    old.start()
    cluster.wait_until_equal(timeout_s=60)
    write(cluster.primary, 450, 50, level="all")

    cluster.wait_until_equal()
    rows = contents(cluster.primary)
    assert len(rows) == 500
    assert all(contents(cluster[name]) == rows for name in cluster.replicas)
