"""A real node for a test: `manage.py serve` in a process of its own, on a free port, with a data dir of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests

from mlvdb_site.processes.broker import remove_left_over

ROOT = Path(__file__).resolve().parent.parent.parent
START_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
OUTSIDE_OF_EPHEMERAL_PORTS = (12_000, 32_000)

T = TypeVar("T")


class NodeProcess:
    """A node from outside: its URL, its processes, and the ways to end them.

    `start` waits until the node says that it is ready; `close` ends it whatever its state and asserts that nothing of
    it is left running. Settings are given as environment variables.
    """

    def __init__(self, data_dir: Path | None = None, *, options: tuple[str, ...] = (), **environ: str) -> None:
        self._own_data_dir = data_dir is None
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="mlvdb-node-"))
        self.port = free_port()
        self.options = options
        self.environ = environ
        self.session = requests.Session()
        self.process: subprocess.Popen[bytes] | None = None
        self.output_path = self.data_dir / "serve.output"
        self._launched: set[int] = set()

    @property
    def base_url(self) -> str:
        """The URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """Everything `serve` has printed, over all starts."""
        return self.output_path.read_text() if self.output_path.exists() else ""

    @property
    def record(self) -> dict[str, Any]:
        """What `serve` wrote of itself."""
        return dict(json.loads((self.data_dir / "serve.json").read_text()))

    def process_environ(self) -> dict[str, str]:
        """Return the environment in which `manage.py` commands find this node."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLVDB_", "DATABASE_URL"))}
        kept.pop("DJANGO_SETTINGS_MODULE", None)
        return {**kept, "MLVDB_DATA_DIR": str(self.data_dir), **self.environ}

    # -- start and stop -----------------------------------------------------------------------------------------

    def launch(self) -> subprocess.Popen[bytes]:
        """Start `serve` without waiting for it."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(self.port), *self.options],
                env=self.process_environ(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A process group of its own: a signal to the group is a Ctrl-C in a terminal.
                start_new_session=True,
            )
        self._launched.add(self.process.pid)
        return self.process

    def start(self) -> NodeProcess:
        """Start and wait until the node is ready, background processes included."""
        process = self.launch()
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            if process.poll() is not None:
                raise AssertionError(f"serve has ended with code {process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready within {START_WITHIN_S:g} s:\n{self.log_tail()}")
            time.sleep(0.05)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """End the node with a signal to `serve`; return the seconds it took, at most 15."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self._wait_for_end()
        return time.monotonic() - began

    def interrupt(self) -> float:
        """End the node as Ctrl-C in its terminal does: SIGINT to its whole process group."""
        assert self.process is not None
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self._wait_for_end()
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill -9 of `serve` alone; returns when all of the node is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.wait_until_gone()

    def restart(self) -> NodeProcess:
        """Stop if it runs, and start on the same data dir and port."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        return self.start()

    def close(self) -> None:
        """End the node whatever its state, assert that nothing is left of it, and remove its data dir."""
        self.session.close()
        left: list[str] = []
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                left.append(f"serve did not end within {STOP_WITHIN_S:g} s of SIGTERM")
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(AssertionError):
            self.wait_until_gone()
        for pid in self.pids():
            left.append(f"left behind: {pid} {_command_line(pid)}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError, ValueError, KeyError):
            # A killed `serve` leaves its broker's directory to its next start.
            remove_left_over(self.record["broker_url"])
        tail = self.log_tail() if left else ""
        if self._own_data_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)
        assert not left, "\n".join([*left, tail])

    def __enter__(self) -> NodeProcess:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # -- its processes ------------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Return every process of this node, of all its starts: by process group, and by data dir (Linux).

        Forked children show the environment of `serve`; the broker overwrites its own with a title.
        """
        if not Path("/proc/self/environ").exists():
            return [pid for pid in self._launched if _is_alive(pid)]
        mark = f"MLVDB_DATA_DIR={self.data_dir}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                group = int((entry / "stat").read_text().rpartition(")")[2].split()[2])
                ours = group in self._launched or mark in (entry / "environ").read_bytes() + b"\0"
                if ours and _is_alive(int(entry.name)):
                    found.append(int(entry.name))
        return sorted(found)

    def child(self, name: str) -> int:
        """Return the process id of a child of `serve`: web, broker, beat, health, replication or tasks."""
        return int(self.record["processes"][name])

    def worker_pids(self) -> list[int]:
        """Return the process ids of the web workers."""
        return children_of(self.child("web"))

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of what `serve` and each of its children wrote."""
        parts = [f"--- serve\n{_tail(self.output, lines)}"]
        for path in sorted((self.data_dir / "logs").glob("*.log")):
            parts.append(f"--- {path.name}\n{_tail(path.read_text(errors='replace'), lines)}")
        return "\n".join(parts)

    def wait_until_gone(self, timeout_s: float = 5.0) -> None:
        """Wait until no process of this node is left."""
        wait_for(lambda: not self.pids(), timeout_s=timeout_s, what=f"the end of all processes of {self.data_dir}")

    # -- talking to it ------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> requests.Response:
        """Send a GET to a path."""
        return self.session.get(self.base_url + path, timeout=options.pop("timeout", 10), **options)

    def post(self, path: str, body: object = None, **options: Any) -> requests.Response:
        """Send a POST with a JSON body to a path."""
        return self.session.post(self.base_url + path, json=body, timeout=options.pop("timeout", 10), **options)

    def manage(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a management command of this node."""
        return subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env=self.process_environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def _is_ready(self) -> bool:
        try:
            return bool(self.record["ready"]) and self.record["pid"] == (self.process and self.process.pid)
        except (OSError, ValueError, KeyError):
            return False

    def _wait_for_end(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {STOP_WITHIN_S:g} s:\n{self.log_tail()}") from None


def free_port() -> int:
    """Return a port that was free a moment ago, and that no outgoing connection takes while its node is down."""
    while True:
        # Not from the generator that tests seed: several processes would try the same ports.
        port = random.SystemRandom().randrange(*OUTSIDE_OF_EPHEMERAL_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(
    condition: Callable[[], T], *, timeout_s: float = 10.0, what: str = "the condition", every_s: float = 0.02
) -> T:
    """Call a function until what it returns is true, and return that; an error of a request counts as not yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = condition()
        except requests.RequestException:
            value = None  # type: ignore[assignment]
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(every_s)


def children_of(pid: int) -> list[int]:
    """Return the children of a process, none when it has ended (Linux)."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not Path("/proc/self").exists()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "?"


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])
