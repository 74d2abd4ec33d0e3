"""Health, readiness, metrics and the log level, as a balancer, a scraper and a person see them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db import DatabaseError
from django.test import Client
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from mlvdb_site import heartbeats, logging_config
from mlvdb_site.beat import BeatLease, LeasedScheduler
from mlvdb_site.celery import app
from mlvdb_site.heartbeats import BEAT, ROUND, heartbeat_record, process_states, process_warnings, worker_name
from mlvdb_site.http import metrics
from mlvdb_site.models import ProcessHeartbeat
from mlvdb_site.tasks import heartbeat
from vectors.models import ShardHead
from vectors.runtime import Readiness

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def readiness(monkeypatch: pytest.MonkeyPatch) -> list[Readiness]:
    """What `vectors.runtime` says; a test may replace the one entry."""
    said = [Readiness(True, 100.0)]
    monkeypatch.setattr("vectors.runtime.readiness", lambda: said[0])
    return said


@pytest.fixture
def _own_levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in logging_config.OWN_LOGGERS}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def all_alive() -> None:
    for name in (BEAT, ROUND, *map(worker_name, heartbeats.QUEUES)):
        heartbeat_record(name, owner="test")


def test_health_of_a_node_with_everything_running_has_no_warnings(node_client: Client) -> None:
    all_alive()

    body = node_client.get("/health").json()

    assert body["status"] == "healthy"
    assert body["node"] == settings.MLVDB_NODE_ID
    assert body["workers_alive"] == {"replication": True, "health": True, "maintenance": True}
    assert body["beat_alive"] is True
    assert body["warnings"] == []


def test_a_node_without_worker_and_beat_is_healthy_and_warns(node_client: Client) -> None:
    body = node_client.get("/health").json()

    assert body["status"] == "healthy"
    assert body["beat_alive"] is False
    assert any("worker" in warning for warning in body["warnings"])
    assert any("beat" in warning for warning in body["warnings"])


def test_health_tells_of_damage(node_client: Client) -> None:
    ShardHead.objects.update_or_create(label="shard_0", defaults={"damage": {"seq": 7}})

    body = node_client.get("/health").json()

    assert body["status"] == "damaged"
    assert body["damage"] == {"shard_0": {"seq": 7}}


def test_health_of_a_starting_node_says_so(node_client: Client, readiness: list[Readiness]) -> None:
    readiness[0] = Readiness(False, 40.0)

    assert node_client.get("/health").json()["status"] == "starting"


def test_readyz_is_503_with_the_progress_until_the_node_is_warm(
    node_client: Client, readiness: list[Readiness]
) -> None:
    readiness[0] = Readiness(False, 42.125, {"bytes_done": 5})
    cold = node_client.get("/readyz")
    readiness[0] = Readiness(True, 100.0)
    warm = node_client.get("/readyz")

    assert cold.status_code == 503
    assert cold.headers["Retry-After"] == "1"
    assert cold.json()["error"]["code"] == "not_ready"
    assert cold.json()["error"]["detail"] == {"percent": 42.1, "bytes_done": 5}
    assert warm.status_code == 200


def test_healthz_answers_while_the_database_does_not(node_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise DatabaseError("disk I/O error")

    monkeypatch.setattr("mlvdb_site.http.access.markers_read", broken)

    assert node_client.get("/healthz").json() == {"status": "alive"}
    refused = node_client.get("/health")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "storage_error"


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz"])
def test_health_endpoints_answer_head_and_refuse_post(node_client: Client, path: str) -> None:
    assert node_client.head(path).status_code == 200
    refused = node_client.post(path)
    assert refused.status_code == 405
    assert refused.json()["error"]["code"] == "method_not_allowed"


# Signs of life


def test_a_process_is_alive_only_while_its_last_sign_is_fresh() -> None:
    all_alive()
    old = timezone.now() - timedelta(seconds=heartbeats.ALIVE_WITHIN_S + 1)
    ProcessHeartbeat.objects.filter(name=worker_name("replication")).update(seen_at=old)

    states = process_states()

    assert states[BEAT].alive
    assert not states[worker_name("replication")].alive
    assert process_warnings(states) == ["No Celery worker serves the queue replication: is it running, and the broker?"]


def test_a_round_that_does_not_close_is_a_warning_of_its_own() -> None:
    all_alive()
    ProcessHeartbeat.objects.filter(name=ROUND).delete()

    assert process_warnings() == [], "beat has only just started"

    ProcessHeartbeat.objects.filter(name=BEAT).update(since=timezone.now() - timedelta(minutes=5))

    assert process_warnings() == ["Celery beat and workers are running, but what beat sends is not being executed."]


def test_the_heartbeat_task_closes_the_round() -> None:
    heartbeat()

    assert process_states()[ROUND].alive


def test_another_nodes_signs_of_life_are_not_this_nodes() -> None:
    ProcessHeartbeat.objects.create(node="f" * 32, name=BEAT, owner="x", seen_at=timezone.now())

    assert not process_states()[BEAT].alive


def test_the_admin_warns_in_a_banner(admin_client: Client) -> None:
    warned = admin_client.get("/admin/").content.decode()
    all_alive()
    calm = admin_client.get("/admin/").content.decode()

    assert "Celery beat is not running" in warned
    assert "node-warning" not in calm


# The lease of beat


def leases(clock: list[float]) -> tuple[BeatLease, BeatLease]:
    pair = BeatLease(lease_s=15.0), BeatLease(lease_s=15.0)
    for lease in pair:
        lease.timer = lambda: clock[0]  # type: ignore[method-assign]
    return pair


def test_of_two_beats_one_works_and_the_other_takes_over_when_it_is_gone() -> None:
    clock = [1000.0]
    first, second = leases(clock)

    assert first.hold()
    assert not second.hold()
    for _ in range(10):
        clock[0] += 4
        assert first.hold()
        assert not second.hold()
    clock[0] += 14
    assert not second.hold()
    clock[0] += 2
    assert second.hold()
    assert not first.hold()


def test_a_wall_clock_that_was_set_back_stops_no_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would close the connection whose transaction the test is in.
    monkeypatch.setattr("django_celery_beat.schedulers.close_old_connections", lambda: None)
    PeriodicTask.objects.update(last_run_at=timezone.now() + timedelta(hours=2))
    scheduler = LeasedScheduler(app=app, lazy=True)
    assert scheduler.schedule

    scheduler.tick()

    for entry in scheduler.schedule.values():
        seconds = entry.model.interval.every
        assert entry.is_due().next <= seconds, f"{entry.name} waits for longer than its interval of {seconds} s"


def test_a_beat_that_ends_properly_leaves_the_lease_free() -> None:
    first, second = leases([1000.0])
    first.hold()

    first.release()

    assert second.hold()


# Metrics


def test_metrics_count_requests_by_route_method_and_status(node_client: Client) -> None:
    before = sample(node_client, 'mlvdb_http_requests_total{method="GET",route="healthz",status="200"}')
    node_client.get("/healthz")
    node_client.get("/healthz")
    node_client.get("/no/such/path")

    after = sample(node_client, 'mlvdb_http_requests_total{method="GET",route="healthz",status="200"}')
    assert after == before + 2
    assert sample(node_client, 'mlvdb_http_requests_total{method="GET",route="none",status="404"}') >= 1
    assert sample(node_client, 'mlvdb_http_request_seconds_count{method="GET",route="healthz"}') >= 2


def test_a_made_up_method_or_path_adds_no_series_of_its_own(node_client: Client) -> None:
    node_client.generic("BREW", "/coffee/1")
    node_client.generic("STEEP", "/coffee/2")

    text = node_client.get("/metrics").content.decode()
    assert "BREW" not in text
    assert "coffee" not in text


def test_metrics_show_the_log_and_the_processes(node_client: Client) -> None:
    ShardHead.objects.update_or_create(
        label="shard_0", defaults={"last_seq": 12, "manifest_seq": 10, "tail_bytes": 345, "damage": None}
    )
    all_alive()

    answer = node_client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})

    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.content.decode()
    assert 'mlvdb_log_head_seq{shard="shard_0"} 12.0' in text
    assert 'mlvdb_tail_bytes{shard="shard_0"} 345.0' in text
    assert 'mlvdb_process_alive{process="beat"} 1.0' in text
    if Path("/proc/self/smaps_rollup").exists():
        assert f'mlvdb_process_memory_bytes{{kind="pss",pid="{os.getpid()}"}}' in text


def test_what_a_dead_process_counted_stays_counted_once_and_its_file_goes(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.environ['PROMETHEUS_MULTIPROC_DIR'] = sys.argv[1];"
        "from prometheus_client import Counter, Histogram;"
        "Counter('c', 'c', ('k',), registry=None).labels('v').inc(3);"
        "Histogram('h', 'h', registry=None, buckets=(1.0, 2.0)).observe(1.5)"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(list(tmp_path.glob("*.db"))) == 6

    for _ in range(2):
        registry = metrics.CollectorRegistry()
        with metrics.scrape(tmp_path):
            metrics.register_requests(registry, tmp_path)
            assert registry.get_sample_value("c_total", {"k": "v"}) == 9
            assert registry.get_sample_value("h_count") == 3
            assert registry.get_sample_value("h_bucket", {"le": "1.0"}) == 0
            assert registry.get_sample_value("h_bucket", {"le": "2.0"}) == 3

    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_archive.db", "histogram_archive.db"]


# The log level


@pytest.mark.usefixtures("_own_levels")
def test_the_log_level_changes_here_and_in_the_processes_that_read_the_marker(node_client: Client) -> None:
    answer = node_client.post("/log/level?level=debug", content_type="application/json")
    assert answer.json() == {"status": "success", "message": "Log level set to debug", "level": "debug"}
    assert logging.getLogger("vectors").level == logging.DEBUG

    # As a second worker process would meet it: its level is as configured, its follower has seen nothing.
    logging_config.level_set("warning")
    logging_config.LevelFollower().follow(logging_config.level_marker("debug"))

    assert logging.getLogger("vectors").level == logging.DEBUG


@pytest.mark.usefixtures("_own_levels")
def test_the_log_level_of_an_earlier_run_is_not_taken_up() -> None:
    logging_config.level_set("warning")

    logging_config.LevelFollower().follow("debug 123.456")

    assert logging.getLogger("vectors").level == logging.WARNING


@pytest.mark.usefixtures("_own_levels")
def test_the_log_level_may_come_in_the_body(node_client: Client) -> None:
    assert node_client.post("/log/level", {"level": "error"}, "application/json").status_code == 200
    assert logging.getLogger("cluster").level == logging.ERROR


@pytest.mark.parametrize(
    ("query", "body"), [("", None), ("?level=", None), ("?level=loud", None), ("", {"level": 3}), ("", {})]
)
def test_a_level_that_is_none_is_400_and_names_the_field(node_client: Client, query: str, body: object) -> None:
    answer = node_client.post(f"/log/level{query}", body, "application/json")

    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "level"


def sample(client: Client, series: str) -> float:
    """Return a value from /metrics, 0 when the series is not there yet."""
    for line in client.get("/metrics").content.decode().splitlines():
        if line.startswith(series + " "):
            return float(line.rpartition(" ")[2])
    return 0.0
