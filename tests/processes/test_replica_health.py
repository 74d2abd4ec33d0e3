"""The health monitor on real nodes: how soon a death is known, and that nothing has to be done by hand afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.processes.cluster import ReplicationCluster, frozen
from tests.processes.node import wait_for

INTERVAL_S = 5.0
REPEATS_S = 3.0
# A busy machine starts tasks late; what is measured is the monitor, not the machine.
SLACK_S = 4.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[ReplicationCluster]:
    """A primary and a replica, well at the beginning of each test."""
    with ReplicationCluster(1) as running:
        yield running


def health(cluster: ReplicationCluster) -> str:
    return str(cluster.info()["replica_1"]["health"])


def wait_for_health(cluster: ReplicationCluster, wanted: str, *, within_s: float) -> float:
    began = time.monotonic()
    wait_for(lambda: health(cluster) == wanted, timeout_s=within_s, what=f"health {wanted}")
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def _well(cluster: ReplicationCluster) -> None:
    wait_for_health(cluster, "alive", within_s=40)


def test_a_stopped_replica_is_known_dead_within_one_interval_and_three_seconds(cluster):
    with frozen(cluster["replica_1"]):
        wait_for_health(cluster, "dead", within_s=INTERVAL_S + REPEATS_S + SLACK_S)
        assert not cluster.info()["replica_1"]["is_healthy"]
    wait_for_health(cluster, "alive", within_s=INTERVAL_S + REPEATS_S + SLACK_S)


def test_a_killed_replica_is_known_dead_and_after_its_return_gets_what_it_missed_without_a_hand(cluster):
    cluster["replica_1"].kill()
    wait_for_health(cluster, "dead", within_s=INTERVAL_S + REPEATS_S + SLACK_S)
    assert cluster.primary.post("/vectors", {"id": "missed", "values": [1.0, 2.0]}).status_code == 201

    cluster["replica_1"].start()

    wait_for_health(cluster, "alive", within_s=INTERVAL_S + REPEATS_S + SLACK_S)
    cluster.wait_until_equal()


def test_a_refused_connection_takes_routing_away_before_any_probe(cluster):
    # Long enough that no round comes in between.
    cluster["replica_1"].kill()
    refused = cluster.primary.post("/vectors?consistency=all&timeout=2", {"id": "x", "values": [1.0, 2.0]})

    assert refused.status_code == 503
    assert health(cluster) in ("suspect", "dead")
    cluster["replica_1"].start()


def test_the_history_grows_by_one_probe_an_interval_and_says_what_was_found(cluster):
    def checks() -> list[dict[str, object]]:
        answer = cluster.primary.get("/cluster/health/history?replica_id=replica_1&limit=1000").json()
        return list(answer["history"]["replica_1"])

    before = len(checks())
    wait_for(lambda: len(checks()) > before, timeout_s=INTERVAL_S + SLACK_S, what="another probe")
    assert {"ok", "health", "took_ms"} <= checks()[-1].keys()


def test_the_interval_can_be_changed_while_the_node_runs(cluster):
    shell = (
        "from django_celery_beat.models import IntervalSchedule, PeriodicTask as Task;"
        "task = Task.objects.get(name='replica health');"
        "task.interval = IntervalSchedule.objects.get_or_create(every=1, period='seconds')[0];"
        "task.save()"
    )
    done = cluster.primary.manage("shell", "-c", shell)
    assert done.returncode == 0, done.stderr

    def probed_at() -> str:
        return str(cluster.info()["replica_1"]["last_health_check"])

    def changed_within(seconds: float) -> bool:
        before, deadline = probed_at(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if probed_at() != before:
                return True
            time.sleep(0.1)
        return False

    wait_for(lambda: changed_within(2.5) and changed_within(2.5), timeout_s=30, what="probes every second")


def test_the_metrics_tell_health_state_and_lag(cluster):
    cluster.wait_until_equal()

    wait_for(
        lambda: (
            'mlvdb_replica_lag_operations{replica="replica_1",shard="shard_0"} 0.0'
            in cluster.primary.get("/metrics").text
        ),
        timeout_s=20,
        what="no lag",
    )
    primary, replica = cluster.primary.get("/metrics").text, cluster["replica_1"].get("/metrics").text
    assert 'mlvdb_replica_health{health="alive",replica="replica_1"} 1.0' in primary
    assert 'mlvdb_replica_health{health="dead",replica="replica_1"} 0.0' in primary
    assert 'mlvdb_replica_state{replica="replica_1",shard="shard_0",state="following"} 1.0' in primary
    assert 'mlvdb_replication_lag_operations{shard="shard_0"} 0.0' in replica
