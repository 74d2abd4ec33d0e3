"""The web server: granian's main process, which has everything loaded before the workers are forked from it.

The workers share the memory of code, modules and URL conf with this process copy-on-write, and a killed worker is
replaced in milliseconds. For that, nothing may open a database connection, build an engine or start a thread before
the fork. Where processes cannot be forked safely (macOS) the workers are spawned and load everything themselves.
"""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from granian.constants import Interfaces
from granian.log import LogLevels
from granian.log import logger as granian_logger
from granian.net import SocketHolder
from granian.server.mp import MPServer

from mlvdb_site.processes import forking, lifeline
from mlvdb_site.processes.listener import BACKLOG, LISTEN_VARIABLE

TARGET = "mlvdb_site.wsgi:application"
RESPAWN_INTERVAL_S = 0.1
COLLECTED_EVERY = (20_000, 20, 20)
"""How often a worker looks for cycles of garbage. One body is thousands of lists that are no cycles, and are gone with
it: the interpreter's own numbers have them all looked at several times."""
KILL_TIMEOUT_S = 5
CRASH_LOOP_RESPAWNS = 6
CRASH_LOOP_WITHIN_S = 10.0

logger = logging.getLogger(__name__)


class NodeServer(MPServer):
    """granian's server on the listening socket of the supervisor, which every worker accepts from."""

    _ssp: Any
    _shd: Any
    _sfd: Any
    _sso: Any

    def __init__(self, *args: Any, listening_fd: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listening_fd = listening_fd
        self._respawned_at: list[float] = []

    def _init_shared_socket(self) -> None:
        # granian would make a socket of its own in each worker (SO_REUSEPORT): those who wait in the queue of a
        # worker that dies are lost, and another program may share the port unnoticed.
        self._ssp = None
        socket_holder: Any = SocketHolder  # whose stub does not know its constructor
        self._shd = socket_holder(self.listening_fd, False, BACKLOG)
        self._sfd = self.listening_fd
        # A spawned worker inherits the descriptor by way of this object.
        self._sso = socket.socket(fileno=self.listening_fd)
        self._sso.set_inheritable(True)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        super()._respawn_workers(*args, **kwargs)
        now = time.monotonic()
        self._respawned_at = [moment for moment in self._respawned_at if now - moment < CRASH_LOOP_WITHIN_S] + [now]
        if len(self._respawned_at) < CRASH_LOOP_RESPAWNS:
            # granian ends when one worker dies twice within 5.5 s. That is too early when somebody kills workers;
            # when they cannot even start, the supervisor's back-off is the right place to wait.
            self.respawned_wrks.clear()

    def _stop_workers(self) -> None:
        # granian's own sometimes takes a worker that its watching thread has just reaped for one that does not stop.
        workers: list[Any] = self.wrks
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        for worker in workers:
            if worker.is_alive():
                granian_logger.warning("worker-%d did not stop in time and is killed", worker.idx + 1)
                worker.kill()
            worker.join()
        workers.clear()


def main(_arguments: Sequence[str] = ()) -> None:
    """Serve until SIGTERM."""
    lifeline.hold_on()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")
    from django.conf import settings

    forking.keep_memory_of_bodies()
    start_method = "fork" if forking.is_safe() else "spawn"
    multiprocessing.set_start_method(start_method, force=True)
    if start_method == "fork":
        preload()
        forking.freeze()
    server = NodeServer(
        TARGET,
        listening_fd=int(os.environ[LISTEN_VARIABLE]),
        address=settings.MLVDB_HOST,
        port=settings.MLVDB_PORT,
        interface=Interfaces.WSGI,
        workers=settings.MLVDB_WORKERS,
        blocking_threads=settings.MLVDB_THREADS,
        respawn_failed_workers=True,
        respawn_interval=RESPAWN_INTERVAL_S,
        workers_kill_timeout=KILL_TIMEOUT_S,
        backlog=BACKLOG,
        log_level=LogLevels(settings.MLVDB_LOG_LEVEL),
    )
    granian_logger.addFilter(_says_something)
    server.serve(target_loader=partial(load_worker, os.getpid()), wrap_loader=False)


def preload() -> None:
    """Load what requests need, so that it is there once for all workers."""
    application = importlib.import_module("mlvdb_site.wsgi").application
    assert application is not None

    from django.db import connections
    from django.urls import get_resolver

    get_resolver()._populate()
    # Two processes on one connection corrupt what both of them do with it.
    connections.close_all()


def load_worker(main_pid: int) -> Callable[..., Any]:
    """Return the application, in a worker; the first thing a worker does."""
    lifeline.hold_on(main_pid)
    # Until granian's handlers are there those of the main process are, which do nothing here: SIGTERM would be lost.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    application: Callable[..., Any] = importlib.import_module("mlvdb_site.wsgi").application
    gc.set_threshold(*COLLECTED_EVERY)
    # Each worker opens its engines now, not at its first request.
    importlib.import_module("vectors.runtime").runtime()
    return application


def _says_something(record: logging.LogRecord) -> bool:
    # Threads here only let requests wait; the processes carry the load. granian warns of any such number.
    return not record.getMessage().startswith("Configuration allows spawning up to")


if __name__ == "__main__":
    main()
