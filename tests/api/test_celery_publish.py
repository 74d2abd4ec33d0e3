"""Publishing to a broker that is there, gone, or silent: it never fails and never delays the caller for long."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from django.db import transaction

from mlvdb_site import celery as site_celery
from mlvdb_site.celery import RETRY_BROKEN_BROKER_AFTER_S, Publisher, app, publish, queue_name
from mlvdb_site.processes.broker import find_server

TASK = "mlvdb_site.tasks.heartbeat"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: connecting itself gets no answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        yield server.getsockname()[1]
        for client in waiting:
            client.close()


@pytest.fixture
def refused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def broker() -> Iterator[RealBroker]:
    """A real server on a unix socket of its own."""
    directory = tempfile.mkdtemp(prefix="mlvdb-", dir="/tmp")
    real = RealBroker(find_server(), f"{directory}/broker.sock")
    real.start()
    yield real
    real.kill()
    shutil.rmtree(directory)


@dataclass
class RealBroker:
    """A Redis or Valkey process that can be killed, stopped and started again under the same URL."""

    binary: str
    socket_path: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket_path}"

    def start(self) -> None:
        command = [self.binary, "--port", "0", "--unixsocket", self.socket_path, "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.socket_path) == 0:
                    return
            assert time.monotonic() < deadline, "the broker did not come up"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def messages(self) -> int:
        """Return how many messages wait in the health queue."""
        return int(redis.Redis(unix_socket_path=self.socket_path).llen(queue_name("health")))


def timed_send(publisher: Publisher) -> tuple[bool, float]:
    began = time.monotonic()
    sent = publisher.send(TASK, ())
    return sent, time.monotonic() - began


def test_a_refused_connection_is_told_at_once(refused_port: int) -> None:
    sent, took_s = timed_send(Publisher(lambda: f"redis://127.0.0.1:{refused_port}/0"))

    assert not sent
    assert took_s < 1.0


@pytest.mark.parametrize("kind", ["silent_port", "full_port"])
def test_a_silent_broker_costs_about_a_second_at_most(kind: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(kind)

    sent, took_s = timed_send(Publisher(lambda: f"redis://127.0.0.1:{port}/0"))

    assert not sent
    assert took_s < 1.5


def test_a_silent_broker_does_not_slow_every_write(silent_port: int) -> None:
    publisher = Publisher(lambda: f"redis://127.0.0.1:{silent_port}/0")
    timed_send(publisher)

    answers = [timed_send(publisher) for _ in range(100)]

    assert not any(sent for sent, _ in answers)
    assert sum(took_s for _, took_s in answers) < 0.2


def test_only_one_caller_finds_out_whether_the_broker_is_back(refused_port: int) -> None:
    publisher = Publisher(lambda: f"redis://127.0.0.1:{refused_port}/0")
    clock = [100.0]
    publisher.timer = lambda: clock[0]  # type: ignore[method-assign]
    publisher.send(TASK, ())
    asked: list[str] = []
    publisher._url = lambda: asked.append("asked") or ""  # type: ignore[func-returns-value]

    clock[0] += RETRY_BROKEN_BROKER_AFTER_S - 0.1
    publisher.send(TASK, ())
    assert asked == []
    clock[0] += 0.2
    assert publisher._may_try()
    assert not publisher._may_try()


def test_a_node_without_a_broker_publishes_nothing_and_says_so() -> None:
    assert Publisher(lambda: "").send(TASK, ()) is False


def test_concurrent_writers_are_not_queued_behind_a_silent_broker(silent_port: int) -> None:
    publisher = Publisher(lambda: f"redis://127.0.0.1:{silent_port}/0")
    threads = [threading.Thread(target=publisher.send, args=(TASK, ())) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert time.monotonic() - began < 2.5


def test_a_message_reaches_a_real_broker(broker: RealBroker) -> None:
    assert Publisher(lambda: broker.url).send(TASK, ())

    assert broker.messages() == 1


def test_a_broker_that_was_restarted_is_used_again_at_once(broker: RealBroker) -> None:
    publisher = Publisher(lambda: broker.url)
    publisher.send(TASK, ())
    broker.kill()
    broker.start()

    assert publisher.send(TASK, ())
    assert broker.messages() == 1


def test_a_broker_that_falls_silent_on_an_open_connection_costs_about_a_second_at_most(broker: RealBroker) -> None:
    publisher = Publisher(lambda: broker.url)
    publisher.send(TASK, ())
    broker.signal(signal.SIGSTOP)

    sent, took_s = timed_send(publisher)

    assert not sent
    assert took_s < 1.5


def test_publishing_goes_on_by_itself_when_the_broker_is_back(broker: RealBroker) -> None:
    publisher = Publisher(lambda: broker.url)
    clock = [100.0]
    publisher.timer = lambda: clock[0]  # type: ignore[method-assign]
    broker.kill()
    assert not publisher.send(TASK, ())
    broker.start()
    assert not publisher.send(TASK, ())

    clock[0] += RETRY_BROKEN_BROKER_AFTER_S

    assert publisher.send(TASK, ())
    assert publisher.send(TASK, ())
    assert broker.messages() == 2


@pytest.mark.django_db(transaction=True)
def test_a_publish_waits_for_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(site_celery._publisher, "send", lambda name, args: sent.append(name) or True)

    with transaction.atomic():
        assert publish(TASK)
        assert sent == []
    assert sent == [TASK]

    with transaction.atomic():
        publish(TASK)
        transaction.set_rollback(True)
    assert sent == [TASK]


def test_tasks_are_routed_to_the_queues_of_this_node() -> None:
    def queue_of(task: str) -> str:
        return str(app.amqp.router.route({}, task)["queue"].name)

    assert queue_of(TASK) == queue_name("health")
    assert queue_of("vectors.tasks.checkpoint_shard") == queue_name("maintenance")
    assert queue_of("cluster.tasks.replication.ship") == queue_name("replication")
    assert app.amqp.queues["health"].name == queue_name("health")


def test_health_tasks_are_acknowledged_early_and_all_limits_are_below_the_visibility_timeout() -> None:
    app.loader.import_default_modules()
    options = app.conf.broker_transport_options

    assert app.tasks[TASK].acks_late is False
    assert app.tasks["vectors.tasks.checkpoint_shard"].acks_late is True
    assert app.conf.task_time_limit < options["visibility_timeout"] == 600
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.accept_content == ["json"]
