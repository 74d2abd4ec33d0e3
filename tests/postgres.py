"""A PostgreSQL server of the tests' own: a fresh cluster in a temporary directory, on a free port of loopback.

It is as durable as a real one (fsync on), trusts everyone on this machine, and dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from mlvdb_site.processes.lifeline import die_with
from tests.processes.node import free_port

START_WITHIN_S = 20.0
STOP_WITHIN_S = 20.0

_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


def why_not() -> str | None:
    """Return what is missing for a server of our own, None when all is there."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"the driver psycopg is not installed ({error})"
    if binaries() is None:
        return "no PostgreSQL server programs (initdb, postgres) on the PATH or where packages put them"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return None


@functools.cache
def binaries() -> Path | None:
    """Return the directory of the newest server programs; None when there are none."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    told = shutil.which("pg_config")
    if told:
        answer = subprocess.run([told, "--bindir"], capture_output=True, text=True, timeout=10)
        candidates.append(Path(answer.stdout.strip()))
    for pattern in _PLACES:
        candidates.extend(sorted(Path("/").glob(pattern.lstrip("/")), key=_version, reverse=True))
    for directory in candidates:
        if os.access(directory / "initdb", os.X_OK) and os.access(directory / "postgres", os.X_OK):
            return directory
    return None


class PostgresServer:
    """A cluster, started and stopped in every way a real one is; each `database` is a new one in it.

    `close` ends it and removes its files.
    """

    def __init__(self, **settings: str) -> None:
        reason = why_not()
        assert reason is None, reason
        found = binaries()
        assert found is not None
        self._binaries = found
        self._settings = settings
        self._user = _other_user() if os.geteuid() == 0 else None
        # Not below pytest's directory: the server's user must get there, and a socket's path ends at 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="mlvdb-pg-"))
        self.port = free_port()
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--pgdata", str(self.data), "--auth", "trust", "--username", "mlvdb", "--encoding", "UTF8",
                  "--no-locale", "--no-sync")  # fmt: skip

    @property
    def data(self) -> Path:
        """The cluster's files."""
        return self.directory / "data"

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._process is not None

    def url(self, database: str, **query: str) -> str:
        """Return the DATABASE_URL of a database."""
        options = "&".join(f"{name}={value}" for name, value in query.items())
        return f"postgres://mlvdb@127.0.0.1:{self.port}/{database}" + (f"?{options}" if options else "")

    def start(self) -> PostgresServer:
        """Start and wait until connections are accepted (after a crash: when the recovery is done)."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "fsync": "on",
            "synchronous_commit": "on",
            "max_connections": "100",
            "shared_buffers": "64MB",
            **self._settings,
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as output:
            parent = os.getpid()
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
                **self._as_user(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._accepts():
            assert self._process.poll() is None, f"the server has ended:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"not ready within {START_WITHIN_S:g} s:\n{self.log_tail()}"
            time.sleep(0.05)
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stop as `pg_ctl stop -m` does: `fast` disconnects clients, `immediate` is a crash, recovered at the start."""
        self._signal(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        assert self._process is not None
        self._process.wait(STOP_WITHIN_S)
        self._process = None

    def freeze(self) -> None:
        """Stop all of its processes where they are: connections stay, nobody answers."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def database(self) -> str:
        """Make a new database and return its URL."""
        import psycopg

        name = f"node{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def close(self) -> None:
        """End the server whatever its state, and remove its files."""
        if self._process is not None:
            self.thaw()
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """Return the end of the server's log."""
        return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _accepts(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _pids(self) -> Iterator[int]:
        # The postmaster starts each backend in a session of its own: they are its children, one level deep.
        assert self._process is not None
        yield self._process.pid
        command = ["ps", "-A", "-o", "pid=,ppid="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        for line in listing.stdout.splitlines():
            pid, parent = map(int, line.split())
            if parent == self._process.pid:
                yield pid

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.directory,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **self._as_user(),  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program}:\n{done.stdout}\n{done.stderr}"

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _other_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _version(directory: Path) -> Sequence[int]:
    return [int("".join(filter(str.isdigit, part)) or 0) for part in directory.parts]
