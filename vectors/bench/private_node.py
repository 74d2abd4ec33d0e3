"""A node for a measurement: a temporary data dir, a free port, ended and removed afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vectors.client import Client, ClientError, Retries

READY_WITHIN_S = 90.0
ENDED_WITHIN_S = 20.0

# What this process and its shell say of another node.
_OTHERS = frozenset({"DATABASE_URL", "DJANGO_SETTINGS_MODULE", "MLVDB_BROKER_URL", "MLVDB_DATA_DIR", "MLVDB_RUN_ID"})


class NodeFailed(RuntimeError):
    """Raised when the node does not come up; the message is the end of what it printed."""


@contextmanager
def private_node(manage: Path) -> Iterator[str]:
    """Run `manage.py serve` for the time of the block; yield the node's URL. Raise NodeFailed."""
    with tempfile.TemporaryDirectory(prefix="mlvdb-bench-") as directory:
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        log = Path(directory) / "output"
        environ = {name: value for name, value in os.environ.items() if name not in _OTHERS}
        with log.open("wb") as output:
            serve = subprocess.Popen(
                [sys.executable, str(manage), "serve", "--host", "127.0.0.1", "--port", str(port),
                 "--data-dir", f"{directory}/data"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ,
                start_new_session=True,
            )  # fmt: skip
            try:
                _wait_until_ready(serve, url, log)
                yield url
            finally:
                _end(serve)


def _wait_until_ready(serve: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    with Client(url, timeout=5.0, retries=Retries(attempts=1)) as client:
        while True:
            try:
                if client.is_ready():
                    return
            except ClientError:
                pass
            if serve.poll() is not None or time.monotonic() > deadline:
                raise NodeFailed("the node did not come up: " + log.read_text(errors="replace")[-500:].strip())
            time.sleep(0.1)


def _end(serve: subprocess.Popen[bytes]) -> None:
    serve.send_signal(signal.SIGTERM)
    try:
        serve.wait(ENDED_WITHIN_S)
    except subprocess.TimeoutExpired:
        # Its children end with it.
        serve.kill()
        serve.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
