"""Starts the processes of a node, watches them, starts again what dies, and ends all of them in order.

One thread, one loop: signals, ends of children, their output and timers all arrive through one selector. No threads,
because children are forked from here. Nothing is ever sent to the process group: it may hold the caller's processes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mlvdb_site.processes import lifeline
from mlvdb_site.processes.children import Child, ChildSpec, StopRank, describe_exit
from mlvdb_site.processes.output import ChildOutput, RotatingLog, Show, Terminal

STOP_WITHIN_S = {StopRank.WORK: 9.0, StopRank.BROKER: 3.0}
ATTEMPTS_TO_START = 3

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READ_BYTES = 256 * 1024


@dataclass(slots=True)
class _Timer:
    interval_s: float
    due_at: float
    call: Callable[[], None]


class Supervisor:
    """The parent of a node's processes. `add` and `start` before or while `run` loops; `stop` ends it."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self, *, working_dir: Path, logs: Path, terminal: Terminal, show_everything: bool = False, fork: bool = False
    ) -> None:
        self.working_dir = working_dir
        self.logs = logs
        self.terminal = terminal
        self.show_everything = show_everything
        self.fork = fork
        self.children: dict[str, Child] = {}
        self.exit_code = 0
        self.changed: Callable[[], None] = lambda: None
        self._logs: dict[str, RotatingLog] = {}
        self._timers: list[_Timer] = []
        self._selector = selectors.DefaultSelector()
        self._rank: StopRank | None = None
        self._kill_at = 0.0
        self._restarting: set[str] = set()
        self.is_settled = False
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)

    # -- what the caller arranges -------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Receive signals through the loop from now on; becomes the parent of orphaned grandchildren too."""
        lifeline.adopt_orphans()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            # `nohup` means it. An ignored SIGINT only means that a script started us in its background.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _noted)
        signal.signal(signal.SIGCHLD, _noted)

    def start(self, spec: ChildSpec) -> None:
        """Start a child and keep it running."""
        child = self.children.get(spec.name)
        if child is None or child.spec != spec:
            child = self.children[spec.name] = Child(spec)
        self._start(child)

    def restart(self, name: str) -> None:
        """End a child kindly and start it again at once."""
        child = self.children[name]
        if child.pid is None:
            child.start_due_at = self.clock()
            return
        self._restarting.add(name)
        child.send(signal.SIGTERM)

    def every(self, interval_s: float, call: Callable[[], None]) -> None:
        """Call a function at an interval, first after one interval."""
        self._timers.append(_Timer(interval_s, self.clock() + interval_s, call))

    def watch(self, descriptor: int, events: int, call: Callable[[int], None]) -> None:
        """Call a function with the events when a descriptor is readable or writable; replaces an earlier watch."""
        self.unwatch(descriptor)
        self._selector.register(descriptor, events, call)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a descriptor."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def settled(self) -> None:
        """The node is ready: from now on a child that fails is started again for as long as it takes."""
        self.is_settled = True

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._rank is not None

    def stop(self, *, exit_code: int = 0) -> None:
        """Begin the end; a second call stops waiting and kills."""
        if self._rank is not None:
            self._kill_at = 0.0
            return
        self.exit_code = exit_code
        self._timers.clear()
        self._ask_to_stop(StopRank.WORK)

    def run(self) -> int:
        """Loop until every child has ended after `stop`; return the exit code."""
        while self._rank is None or not self._stop_further():
            self._turn()
        return self.exit_code

    def run_until(self, condition: Callable[[], bool], *, look_every_s: float = 0.05) -> None:
        """Loop until the condition holds or the end begins."""
        while self._rank is None and not condition():
            self._turn(look_every_s)

    def finish(self) -> None:
        """Kill whatever still runs (also after an exception); call it last, always."""
        if self._rank is None:
            # Nothing is started again from here on.
            self.stop(exit_code=self.exit_code)
        for child in self.children.values():
            child.send(signal.SIGKILL)
        deadline = self.clock() + 5.0
        while self._running() and self.clock() < deadline:
            self._turn(0.05)
        _kill_adopted()
        signal.set_wakeup_fd(-1)
        for log in self._logs.values():
            log.close()

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines a child wrote."""
        return self._log(name).tail(lines)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _turn(self, longest_s: float = 1.0) -> None:
        now = self.clock()
        due = [timer.due_at for timer in self._timers]
        if self._rank is None:
            due += [child.start_due_at for child in self.children.values() if child.start_due_at is not None]
        else:
            due.append(self._kill_at)
        wait_s = max(0.0, min([now + longest_s, *due]) - now) if due else longest_s
        for key, events in self._selector.select(wait_s):
            key.data(events)
        now = self.clock()
        for timer in list(self._timers):
            if timer.due_at <= now:
                timer.due_at = now + timer.interval_s
                timer.call()
        if self._rank is None:
            for child in list(self.children.values()):
                if child.start_due_at is not None and child.start_due_at <= now:
                    self._start(child)

    def _on_wake(self, _events: int) -> None:
        try:
            received = os.read(self._wake_read, 1024)
        except BlockingIOError:
            return
        for number in received:
            if number in _STOP_SIGNALS:
                if self._rank is None:
                    self.terminal.line("Stopping …")
                self.stop()
        if signal.SIGCHLD in received:
            self._reap()

    def _start(self, child: Child) -> None:
        name = child.name
        try:
            reading = child.start(working_dir=self.working_dir, lifeline_fd=self._lifeline_read, fork=self.fork)
        except OSError as error:
            self.terminal.child_line(name, f"cannot be started: {error}")
            child.ended(127)
            return
        output = ChildOutput(
            name,
            self._log(name),
            print_line=self.terminal.plain_line if child.spec.show is Show.EVERYTHING else self.terminal.child_line,
            show=Show.EVERYTHING if self.show_everything else child.spec.show,
        )
        self._selector.register(reading, selectors.EVENT_READ, lambda _events: self._on_output(reading, output))
        self.changed()

    def _on_output(self, descriptor: int, output: ChildOutput) -> None:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            output.feed(data)
            return
        output.finish()
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _reap(self) -> None:
        by_pid = {child.pid: child for child in self.children.values() if child.pid is not None}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = by_pid.get(pid)
            if child is not None:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        name = child.name
        child.ended(code)
        self._log(name).write(f"--- {name} has ended: {describe_exit(code)}\n".encode())
        if self._rank is not None:
            return
        if name in self._restarting:
            self._restarting.discard(name)
            child.failures = 0
            child.start_due_at = self.clock()
        elif not child.spec.restart:
            del self.children[name]
        elif child.spec.essential and not self.is_settled and (code > 0 or child.failures >= ATTEMPTS_TO_START):
            self.terminal.line(f"{name} does not start ({describe_exit(code)}); see {self._log(name).path}")
            self.stop(exit_code=1)
            return
        else:
            self.terminal.child_line(name, f"has ended ({describe_exit(code)}); it is started again")
        self.changed()

    # -- the end ------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, rank: StopRank) -> None:
        self._rank = rank
        self._kill_at = self.clock() + STOP_WITHIN_S[rank]
        for child in self._running(rank):
            child.send(signal.SIGTERM)

    def _stop_further(self) -> bool:
        """Move on to the next rank or to SIGKILL; return whether all have ended."""
        assert self._rank is not None
        if self._running(self._rank):
            if self.clock() >= self._kill_at:
                for child in self._running(self._rank):
                    self.terminal.child_line(child.name, "did not end in time; it is killed")
                    child.send(signal.SIGKILL)
                self._kill_at = self.clock() + 1.0
            return False
        higher = [rank for rank in StopRank if rank > self._rank]
        if not higher:
            return True
        self._ask_to_stop(higher[0])
        return False

    def _running(self, rank: StopRank | None = None) -> list[Child]:
        return [
            child
            for child in self.children.values()
            if child.pid is not None and (rank is None or child.spec.rank is rank)
        ]

    def _log(self, name: str) -> RotatingLog:
        if name not in self._logs:
            self._logs[name] = RotatingLog(self.logs / f"{name}.log")
        return self._logs[name]


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing here: the wake-up descriptor brings the signal into the loop."""


def _kill_adopted() -> None:
    # What our children left behind is ours by now (adopt_orphans); on other systems their own lifeline ends them.
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        try:
            left = [int(word) for word in own.read_text().split()]
        except OSError:
            return
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
