"""One child of the supervisor: how it is started, how long it has lived, when it may be started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from mlvdb_site.processes import forking, lifeline
from mlvdb_site.processes.output import Show

BACK_OFF_S = (0.05, 0.5, 1.0, 2.0, 5.0, 10.0)
SETTLED_S = 20.0

# Ctrl-C reaches the whole process group, a closed terminal too: the order of the end is the supervisor's alone. A
# blocked signal stays blocked in everything the child starts, whatever handlers that installs.
_BLOCKED_IN_CHILDREN = (signal.SIGINT, signal.SIGHUP)


class StopRank(IntEnum):
    """Children of a lower rank have ended before those of a higher one are asked to."""

    WORK = 0
    BROKER = 1


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is: a `module` of ours with its arguments for `main`, or a program with its arguments."""

    name: str
    arguments: Sequence[str] = ()
    module: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    rank: StopRank = StopRank.WORK
    restart: bool = True
    essential: bool = False  # the node cannot start without it
    show: Show = Show.SERIOUS


class Child:
    """A child that runs, waits to be started again, or has ended."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.started_at = 0.0
        self.start_due_at: float | None = None
        self.failures = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The name in logs and on the terminal."""
        return self.spec.name

    def start(self, *, working_dir: Path, lifeline_fd: int, fork: bool) -> int:
        """Start the process in our own process group; return the reading end of its output."""
        reading, writing = os.pipe()
        try:
            if fork and self.spec.module:
                self.pid = forking.fork_main(
                    self.spec.module,
                    self.spec.arguments,
                    name=self.name,
                    environ=self.spec.environ,
                    descriptors=self.spec.descriptors,
                    output_fd=writing,
                    working_dir=working_dir,
                    blocked=_BLOCKED_IN_CHILDREN,
                )
            else:
                self._process = self._execute(writing, working_dir=working_dir, lifeline_fd=lifeline_fd)
                self.pid = self._process.pid
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        self.started_at = self.clock()
        self.start_due_at = None
        return reading

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process runs."""
        if self.pid is not None:
            # Not Popen.send_signal: that may reap the child, and only the supervisor's loop reaps. Until it does,
            # the process id cannot be another's.
            os.kill(self.pid, number)

    def ended(self, exit_code: int) -> None:
        """Take note of the end (the supervisor reaps) and settle when to start again."""
        if self._process is not None:
            self._process.returncode = exit_code
        self.pid = self._process = None
        now = self.clock()
        if now - self.started_at >= SETTLED_S:
            self.failures = 0
        self.start_due_at = now + BACK_OFF_S[min(self.failures, len(BACK_OFF_S) - 1)] if self.spec.restart else None
        self.failures += 1

    def _execute(self, output_fd: int, *, working_dir: Path, lifeline_fd: int) -> subprocess.Popen[bytes]:
        module = self.spec.module
        command = [sys.executable, "-m", module, *self.spec.arguments] if module else list(self.spec.arguments)
        environ = {**os.environ, **self.spec.environ}
        descriptors = self.spec.descriptors
        if not lifeline.kernel_ends_children():
            descriptors = (*descriptors, lifeline_fd)
            environ[lifeline.LIFELINE_VARIABLE] = str(lifeline_fd)
            if not module:
                keeper = Path(__file__).with_name("keeper.py")
                command = [sys.executable, "-S", "-E", str(keeper), str(lifeline_fd), *command]
        supervisor_pid = os.getpid()

        def between_fork_and_exec() -> None:
            lifeline.die_with(supervisor_pid)
            signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_IN_CHILDREN)

        return subprocess.Popen(
            command,
            cwd=working_dir,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            pass_fds=descriptors,
            preexec_fn=between_fork_and_exec,
        )


def describe_exit(code: int) -> str:
    """Return the end of a process in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
