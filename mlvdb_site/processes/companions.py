"""The other nodes of `serve --demo`: whole nodes of their own, as children of this one's supervisor.

Their data lies below this node's data dir, so that the demonstration is one directory; they end with this node, in
whichever way it ends. Who they are to it, a shard and a replica, is settled by `cluster.demo` when all are up.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mlvdb_site.node import BASE_DIR, NodeFiles
from mlvdb_site.processes import listener
from mlvdb_site.processes.children import ChildSpec

HOST = "127.0.0.1"
NAMES = ("shard_2", "replica_1")

_LAST_PORT = 65_535
_PORT_FILE = "port"

# What is said to this node, or found by it, and is not for the others: they have a database, and as whole nodes also a
# broker, of their own.
_NOT_FOR_THEM = {
    "DATABASE_URL": "",
    "MLVDB_ADVERTISE_URL": "",
    "MLVDB_ENABLE_REPLICATION": "",
    "MLVDB_ENABLE_SHARDING": "false",
    "MLVDB_PRIMARY_URL": "",
    "MLVDB_REPLICA_NAME": "",
    "MLVDB_RUN_ID": "",
}


class OtherPort(RuntimeError):
    """Raised when a demonstration is to be served at another port than before; the message is one line."""


@dataclass(frozen=True, slots=True)
class Companion:
    """One of the other nodes: what it is called, and where it is."""

    name: str
    port: int
    data_dir: Path

    @property
    def url(self) -> str:
        """The URL of its API."""
        return listener.url_of(HOST, self.port)

    def check(self) -> None:
        """Raise AddressRefused when its port cannot be had."""
        if self.port > _LAST_PORT:
            raise listener.AddressRefused(
                f"there is no port {self.port}, which {self.name} would need (--port moves it)"
            )
        listener.listen(HOST, self.port).close()

    def spec(self, *, broker_url: str) -> ChildSpec:
        """Return it as a child; an empty `broker_url` lets it start a broker of its own."""
        options = ["--host", HOST, "--port", str(self.port), "--data-dir", str(self.data_dir), "--workers", "1"]
        command = [sys.executable, str(BASE_DIR / "manage.py"), "serve", *options]
        environ = {**_NOT_FOR_THEM, "MLVDB_BROKER_URL": broker_url}
        return ChildSpec(self.name, command, environ=environ, essential=True)


def companions_of(files: NodeFiles, port: int) -> list[Companion]:
    """Return the other nodes of a demonstration: at the ports after its own."""
    return [Companion(name, port + place, _directory(files) / name) for place, name in enumerate(NAMES, start=1)]


def port_keep(files: NodeFiles, port: int) -> None:
    """Note at which port the demonstration in this data dir is served; raise OtherPort when it was another before.

    Its nodes know each other by their URLs: at others they would not be the shard and the replica that they were.
    """
    noted = _directory(files) / _PORT_FILE
    before = noted.read_text().strip() if noted.exists() else ""
    if not before:
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{port}\n")
    elif before != str(port):
        raise OtherPort(
            f"the demonstration in {files.root} is at port {before} and the two after it: serve it with "
            f"--port {before}, or make another one with --data-dir"
        )


def _directory(files: NodeFiles) -> Path:
    return files.root / "demo"
