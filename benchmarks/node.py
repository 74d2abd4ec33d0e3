"""A real node for a benchmark: started by `manage.py serve` in a temporary data dir."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One node; a context manager that removes what it leaves."""

    def __init__(self, *, workers: int = 2, **settings: str) -> None:
        self.port = free_port()
        self.data_dir = Path(tempfile.mkdtemp(prefix="mlvdb-bench-"))
        self.environment = os.environ | settings | {"MLVDB_DATA_DIR": str(self.data_dir), "MLVDB_WORKERS": str(workers)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and return the seconds until /readyz said 200."""
        began = time.perf_counter()
        log = (self.data_dir / "serve.out").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(self.port)],
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1)
                return time.perf_counter() - began
            if self._process.poll() is not None or time.perf_counter() - began > 120:
                raise RuntimeError((self.data_dir / "serve.out").read_text()[-3000:])
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def manage(self, *words: str) -> str:
        """Run a management command on its data and return what it printed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *words],
            env=self.environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def web_workers(self) -> list[int]:
        """Return the process ids of the web workers: the children of the web server that `serve.json` names."""
        server = json.loads((self.data_dir / "serve.json").read_text())["processes"]["web"]
        workers = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == server:
                        workers.append(int(entry.name))
        return sorted(workers)

    def memory_bytes(self) -> int:
        """Return the proportional set size of all web workers together."""
        total = 0
        for pid in self.web_workers():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
        return total

    def cpu_s(self) -> float:
        """Return the processor time that all processes of the node have used since its start."""
        assert self._process is not None
        ticks = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    if int(fields[2]) == self._process.pid:
                        # Its own, user and system, and that of children that have ended.
                        ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    @property
    def url(self) -> str:
        """The URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)
