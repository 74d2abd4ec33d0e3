"""Broker, Celery worker and beat of a program: real processes, one set however many managers use it.

They are started by the first manager and ended by the last one's `shutdown`, or at exit. A pipe to their supervisor
(`mlvdb_site.processes.program`) is held open meanwhile, so that a program which is killed does not leave them behind.
Where something runs already that serves this node's tasks (in a Django project over a node's data dir: its `serve`),
nothing is started.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from vectors.errors import Unavailable
from vectors.library.environment import private_directory, private_environ

_READY_WITHIN_S = 60.0
_END_WITHIN_S = 20.0
_LOOK_EVERY_S = 0.02


class BackgroundNotStarted(Unavailable):
    """Raised when broker, worker and beat do not start; the message has their last words."""

    code = "background_not_started"
    transient = False


class BackgroundProcesses:
    """The processes of this program, and how many managers use them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._at_exit = False

    def enter(self) -> None:
        """Use them: they are started for the first user. Raise BackgroundNotStarted."""
        with self._lock:
            self._ensure()
            self._users += 1

    def ensure(self) -> None:
        """Start them again if they were killed. Raise BackgroundNotStarted."""
        with self._lock:
            self._ensure()

    def leave(self) -> None:
        """Use them no more: the last user ends them, and waits for that."""
        with self._lock:
            self._users -= 1
            if self._users <= 0:
                self._end()

    def forget(self) -> None:
        """Leave them to the process that this one was forked from."""
        if self._process is not None and self._process.stdin is not None:
            # Their pipe must end with that process, not with the last of its children.
            self._process.stdin.close()

    def _ensure(self) -> None:
        from django.conf import settings

        from mlvdb_site.processes.record import running_record

        if self._process is not None and self._process.poll() is None:
            return
        self._process = None
        if running_record(settings.NODE_FILES) is None:
            self._start(settings)

    def _start(self, settings: Any) -> None:
        from mlvdb_site.processes.program import PRIVATE
        from mlvdb_site.processes.record import running_record

        files = settings.NODE_FILES
        output = files.logs / "program.log"
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self._end_at_exit, os.getpid())
        with output.open("ab") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "mlvdb_site.processes.program", *([PRIVATE] if private_directory() else [])],
                env=_environ(settings),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the program's terminal is the program's to answer.
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline and process.poll() is None:
            record = running_record(files)
            if record is not None and record.ready and record.pid == process.pid:
                return
            time.sleep(_LOOK_EVERY_S)
        self._end()
        last_words = output.read_text(errors="replace").strip().splitlines()[-5:]
        raise BackgroundNotStarted(f"broker, worker and beat were not started: {' / '.join(last_words) or 'no reason'}")

    def _end(self) -> None:
        from mlvdb_site.processes.program import FAREWELL

        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(FAREWELL)
            process.stdin.close()
        try:
            process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            # What it started ends with it.
            process.kill()
            process.wait()

    def _end_at_exit(self, owner: int) -> None:
        # A forked child runs its parent's exit functions too.
        if os.getpid() == owner:
            with self._lock:
                self._end()


def _environ(settings: Any) -> dict[str, str]:
    # The program may have found this project, or its own settings, by a path that only its sys.path has.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    if private_directory() is not None:
        return {**os.environ, **private_environ(), "PYTHONPATH": path}
    if not settings.SETTINGS_MODULE:
        raise BackgroundNotStarted("Django was configured without a settings module, which Celery's processes need")
    return {**os.environ, "DJANGO_SETTINGS_MODULE": settings.SETTINGS_MODULE, "PYTHONPATH": path}


_processes = BackgroundProcesses()


def background_processes() -> BackgroundProcesses:
    """Return those of this process."""
    return _processes


def _forget_after_fork() -> None:
    global _processes
    _processes.forget()
    _processes = BackgroundProcesses()


os.register_at_fork(after_in_child=_forget_after_fork)
