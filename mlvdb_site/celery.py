"""The Celery application of a node, and `publish`, the one way its processes send a task.

A task is a knock on the door: it carries ids, the database is the parcel. Lost, late and doubled knocks are harmless,
beat's sweeps knock again. So a publish may fail, but it must never fail or delay the write that knocks.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")

from celery import Celery, signals
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from kombu import Connection, Exchange, Queue
from kombu.pools import ProducerPool

from mlvdb_site.processes.record import running_record

logger = logging.getLogger(__name__)

VISIBILITY_TIMEOUT_S = 600
TASK_TIME_LIMIT_S = 570
TASK_SOFT_TIME_LIMIT_S = 540
HEALTH_TIME_LIMIT_S = 30
MERGE = "vectors.tasks.merge_shard"
MERGE_TIME_LIMIT_S = 6 * 3600

RETRY_BROKEN_BROKER_AFTER_S = 3.0
_PRODUCERS = 16

#: Which queue a task goes to, by the start of its name; the first match counts.
ROUTES = (
    ("mlvdb_site.tasks.heartbeat", "health"),
    ("cluster.tasks.health", "health"),
    ("cluster.tasks.replication", "replication"),
    ("cluster.tasks.sharding", "replication"),
    ("cluster.tasks.assignments", "replication"),
    ("cluster.tasks.moves", "replication"),
    ("", "maintenance"),
)


def queue_name(kind: str) -> str:
    """Return the full name of the queue `replication`, `health` or `maintenance` of this node."""
    return f"{settings.MLVDB_NODE_ID}.{kind}"


def broker_url() -> str:
    """Return the broker's URL: MLVDB_BROKER_URL, else that of the `serve` that runs this node, else empty."""
    if settings.MLVDB_BROKER_URL:
        return str(settings.MLVDB_BROKER_URL)
    record = running_record(settings.NODE_FILES)
    return record.broker_url if record else ""


def _kind(task: str) -> str:
    return next(kind for start, kind in ROUTES if task.startswith(start))


def _route(name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **kw: Any) -> dict[str, str]:
    return {"queue": queue_name(_kind(name))}


class _DeliveryByQueue:
    """Task annotations: health tasks are acknowledged when taken and are short, merges may be long, and all others are
    acknowledged when they are done."""

    def annotate(self, task: Any) -> dict[str, Any]:
        if _kind(task.name) == "health":
            return {"acks_late": False, "time_limit": HEALTH_TIME_LIMIT_S, "soft_time_limit": HEALTH_TIME_LIMIT_S - 5}
        if task.name == MERGE:
            # Large segments take their time. What is delivered again meanwhile would only find it at work.
            return {"acks_late": False, "time_limit": MERGE_TIME_LIMIT_S, "soft_time_limit": MERGE_TIME_LIMIT_S - 60}
        return {"acks_late": True}


def _queue(kind: str) -> Queue:
    name = queue_name(kind)
    # The alias lets `celery worker -Q health` name a queue without the node's id.
    return Queue(name, Exchange(name, type="direct"), routing_key=name, alias=kind)


_timeout_s = settings.MLVDB_BROKER_TIMEOUT_S
_publish_retry = {"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.1}

app = Celery("mlvdb_site")
app.conf.update(
    broker_url=broker_url() or "redis://127.0.0.1:6379/0",
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "socket_keepalive": True,
        "socket_connect_timeout": 5.0,
        "socket_timeout": 15.0,
        "health_check_interval": 10,
    },
    task_queues=tuple(_queue(kind) for kind in ("replication", "health", "maintenance")),
    task_create_missing_queues=False,
    task_default_queue=queue_name("maintenance"),
    task_routes=(_route,),
    task_annotations=(_DeliveryByQueue(),),
    task_serializer="json",
    accept_content=["json"],
    event_serializer="json",
    task_ignore_result=True,
    result_expires=None,
    task_reject_on_worker_lost=False,
    task_acks_on_failure_or_timeout=True,
    task_time_limit=TASK_TIME_LIMIT_S,
    task_soft_time_limit=TASK_SOFT_TIME_LIMIT_S,
    task_publish_retry=True,
    task_publish_retry_policy=_publish_retry,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    beat_scheduler=settings.CELERY_BEAT_SCHEDULER,
    beat_max_loop_interval=2,
    timezone="UTC",
    enable_utc=True,
)
app.set_default()
app.autodiscover_tasks(related_name="tasks")


def publish(task: Any, *args: Any) -> bool:
    """Send a task (the task, or its name) with JSON arguments once the open transaction, if any, is committed.

    Return whether it was sent, or will be tried after the commit. Never raises, and takes about a second at most when
    the broker refuses or stays silent; for a few seconds after that it is not asked again.
    """
    name = task if isinstance(task, str) else task.name
    try:
        if connection.in_atomic_block:
            transaction.on_commit(lambda: _publisher.send(name, args))
            return True
    except DatabaseError as error:
        logger.warning("task not published task=%s error=%r", name, str(error))
        return False
    return _publisher.send(name, args)


class Publisher:
    """Sends tasks over connections of its own, whose timeouts suit a process that has a client waiting."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, url: Callable[[], str] = broker_url) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._retry_at: float | None = None
        self._pool: tuple[int, str, ProducerPool] | None = None

    def send(self, name: str, args: tuple[Any, ...]) -> bool:
        """Send now; False, with a line in the log, when the broker did not take it."""
        if not self._may_try():
            return False
        began = self.timer()
        try:
            url = self._url()
            if not url:
                raise ConnectionError("no broker: MLVDB_BROKER_URL is not set and no `serve` runs this node")
            try:
                self._send_once(url, name, args)
            except Exception:
                # A connection that a restarted broker has dropped fails at once, and a new one will do. One that was
                # waited for is not tried again: the caller has waited enough.
                if self.timer() - began > _timeout_s / 2:
                    raise
                self._drop_pool()
                self._send_once(url, name, args)
        except Exception as error:  # whatever is wrong with the broker, the caller's work stands
            self._failed()
            logger.warning(
                "task not published task=%s took_s=%.2f error=%r", name, self.timer() - began, str(error) or repr(error)
            )
            return False
        self._retry_at = None
        return True

    def _may_try(self) -> bool:
        if self._retry_at is None:
            return True
        with self._lock:
            now = self.timer()
            if self._retry_at is not None and now < self._retry_at:
                return False
            # One caller finds out whether the broker is back; the others go on without it meanwhile.
            self._retry_at = now + RETRY_BROKEN_BROKER_AFTER_S
            return True

    def _send_once(self, url: str, name: str, args: tuple[Any, ...]) -> None:
        with self._producers(url).acquire(block=True, timeout=_timeout_s) as producer:
            app.send_task(name, args=args, producer=producer, ignore_result=True, retry=False)

    def _failed(self) -> None:
        with self._lock:
            self._retry_at = self.timer() + RETRY_BROKEN_BROKER_AFTER_S
        self._drop_pool()

    def _drop_pool(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[2].force_close_all()

    def _producers(self, url: str) -> ProducerPool:
        # Connections must not be shared with a forked child, nor outlive a change of the broker.
        wanted = (os.getpid(), url)
        with self._lock:
            if self._pool is None or self._pool[:2] != wanted:
                self._pool = (*wanted, ProducerPool(self._connection(url).Pool(limit=_PRODUCERS), limit=_PRODUCERS))
            return self._pool[2]

    @staticmethod
    def _connection(url: str) -> Connection:
        return app.connection_for_write(
            url,
            connect_timeout=_timeout_s,
            transport_options={
                **_publish_retry,
                "max_retries": 0,
                "socket_timeout": _timeout_s,
                "socket_connect_timeout": _timeout_s,
            },
        )


_publisher = Publisher()


@signals.setup_logging.connect
def _keep_django_logging(**kwargs: Any) -> None:
    """Having a receiver keeps Celery from setting up logging: LOGGING of the settings holds in its processes too."""


@signals.celeryd_init.connect
@signals.beat_init.connect
def _require_broker(**kwargs: Any) -> None:
    url = broker_url()
    if not url:
        raise SystemExit("MLVDB_BROKER_URL is not set, and no `serve` runs this node with a broker of its own")
    # The application may have been imported before `serve` knew its broker, in the process this one was forked from.
    app.conf.broker_url = url


@signals.task_prerun.connect
def _follow_log_level(**kwargs: Any) -> None:
    _level.follow()


@signals.heartbeat_sent.connect
def _record_heartbeat(**kwargs: Any) -> None:
    _heartbeat.record()


class _WorkerHeartbeat:
    """Records, from the worker's main process, that the queues it consumes are served; also while its pool is busy."""

    def __init__(self) -> None:
        self._due = float("-inf")

    def record(self) -> None:
        # Models can be imported only once Django is set up, which Celery does after it has imported this module.
        from mlvdb_site.heartbeats import HEARTBEAT_INTERVAL_S, QUEUES, heartbeat_record, worker_name

        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + HEARTBEAT_INTERVAL_S
        try:
            for kind in QUEUES:
                if queue_name(kind) in app.amqp.queues.consume_from:
                    heartbeat_record(worker_name(kind), owner=f"pid {os.getpid()}")
        except DatabaseError as error:
            logger.warning("heartbeat not recorded error=%r", str(error))
        finally:
            # Pool processes are forked from this one: no connection may be open then.
            connection.close()


class _LogLevel:
    """Applies the node's log level (POST /log/level) to a worker's pool process, at most once a second."""

    def __init__(self) -> None:
        self._due = float("-inf")

    def follow(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + 1.0
        from mlvdb_site.logging_config import level_follower
        from mlvdb_site.markers import markers_read

        try:
            level_follower.follow(markers_read().log_level)
        except DatabaseError as error:
            logger.warning("log level not read error=%r", str(error))


_heartbeat = _WorkerHeartbeat()
_level = _LogLevel()
