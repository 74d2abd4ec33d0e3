"""Nodes of this machine, started and ended by the parts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replication_sharding.screen import wait_for
from vectors.client import Client, ClientError, Retries

CHECKOUT = Path(__file__).resolve().parent.parent.parent


class LocalNode:
    """A node of this machine: `manage.py serve` in a process of its own."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._serve: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it, without waiting."""
        command = [sys.executable, str(CHECKOUT / "manage.py"), "serve", "--port", str(self.port), "--workers", "1"]
        # What the shell says of another node is not for this one.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLVDB_", "DATABASE_URL"))}
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "output").open("ab") as output:
            self._serve = subprocess.Popen(
                [*command, "--data-dir", str(self.directory / "data")],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is this program's to answer: it ends its nodes one after the other.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers; raise RuntimeError with its last words when it has ended instead."""
        with Client(self.url, retries=Retries(attempts=1)) as client:
            wait_for(lambda: self._is_ready(client), f"{self.name} to be ready")

    def stop(self) -> None:
        """End it, if it runs, and wait for that."""
        if self._serve is not None and self._serve.poll() is None:
            self._serve.terminate()
            try:
                self._serve.wait(20)
            except subprocess.TimeoutExpired:
                self._serve.kill()
                self._serve.wait()

    def _is_ready(self, client: Client) -> bool:
        assert self._serve is not None
        if self._serve.poll() is not None:
            raise RuntimeError(f"{self.name} has ended:\n{(self.directory / 'output').read_text()[-2000:]}")
        try:
            return client.is_ready()
        except ClientError:
            return False


@contextmanager
def local_nodes(*names: str) -> Iterator[list[LocalNode]]:
    """Start nodes, all at once; end them and remove what they kept when the block ends, however it does."""
    root = Path(tempfile.mkdtemp(prefix="mlvdb-example-"))
    nodes = [LocalNode(name, root / name) for name in names]
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_until_ready()
        yield nodes
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(root, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
