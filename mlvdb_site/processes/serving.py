"""One node from its start to its end: what `manage.py serve` does, in order.

1. Lock the data dir, refuse an open address without keys, listen: whatever forbids a start is said before it begins.
2. Start the broker; meanwhile bring database and static files up to date.
3. Start the web server and wait for `/readyz`; the background processes follow, so that they do not slow it down.
4. Watch until a signal comes; end work first, the broker last.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property

from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from django.utils import timezone

from mlvdb_site import __version__
from mlvdb_site.node import NodeFiles
from mlvdb_site.processes import background, forking, listener, preparation, web
from mlvdb_site.processes import broker as brokers
from mlvdb_site.processes.checkpoints import LOOK_EVERY_S, CheckpointWatch
from mlvdb_site.processes.children import ChildSpec
from mlvdb_site.processes.companions import Companion, OtherPort, companions_of, port_keep
from mlvdb_site.processes.output import Show, Terminal
from mlvdb_site.processes.readiness import Readiness
from mlvdb_site.processes.record import NodeInUse, ServeLock, ServeRecord, left_over_record, remove_record, write_record
from mlvdb_site.processes.reloading import CodeWatch
from mlvdb_site.processes.supervisor import Supervisor

EXIT_REFUSED = 2
BROKER_WITHIN_S = 10.0
READY_WITHIN_S = 300.0  # without any progress
PROGRESS_EVERY_S = 2.0
RELOAD_LOOK_EVERY_S = 1.0
PORT_FREED_WITHIN_S = 2.0

BEAT = background.BEAT
WEB, HEALTH, TASKS, REPLICATION = "web", "health", "tasks", "replication"
BROKER, CHECKPOINT, DEMO = "broker", "checkpoint", "demo"

_REPLICATION_THREADS = 16

# One BLAS and OpenMP thread per process: the worker processes carry the load. Two malloc arenas: every request thread
# would otherwise keep a heap of its own.
_ENVIRON = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "PYTHONUNBUFFERED": "1",
}


class Refused(RuntimeError):
    """Raised when the node cannot be started here and now; the message is one line for the terminal."""


@dataclass
class NodeServing:
    """The `serve` of one node."""

    files: NodeFiles
    terminal: Terminal
    demo: bool = False
    """Whether this is the coordinator of the small cluster that demonstrates everything."""
    began_at: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=lambda: timezone.now().isoformat(timespec="seconds"))

    def run(self) -> int:
        """Serve until a signal comes; return the exit code. Raise Refused before anything was started."""
        lock = ServeLock(self.files)
        try:
            lock.take()
        except NodeInUse as error:
            raise Refused(str(error)) from None
        try:
            left_over = left_over_record(self.files)
            if left_over is not None and left_over.broker_is_private:
                brokers.remove_left_over(left_over.broker_url)
            self._refuse_open_address()
            self.listening = self._listen(after_crash=left_over is not None)
            try:
                self._keep_demonstration()
                return self._supervise()
            finally:
                self.listening.close()
                remove_record(self.files)
        finally:
            lock.release()

    @cached_property
    def url(self) -> str:
        """The base URL as seen from this machine."""
        return listener.url_of(settings.MLVDB_HOST, settings.MLVDB_PORT)

    @cached_property
    def broker(self) -> brokers.PrivateBroker | None:
        """The private broker; None when MLVDB_BROKER_URL names another. Raises Refused."""
        if settings.MLVDB_BROKER_URL:
            return None
        try:
            return brokers.PrivateBroker.prepare()
        except brokers.BrokerMissing as error:
            raise Refused(f"no broker for Celery: {error}; install one or set MLVDB_BROKER_URL") from None

    @cached_property
    def broker_url(self) -> str:
        """The URL of the broker, private or not."""
        return self.broker.url if self.broker is not None else str(settings.MLVDB_BROKER_URL)

    @cached_property
    def companions(self) -> list[Companion]:
        """The other nodes of the demonstration."""
        return companions_of(self.files, settings.MLVDB_PORT) if self.demo else []

    @cached_property
    def supervisor(self) -> Supervisor:
        """The supervisor of this node's processes."""
        return Supervisor(
            working_dir=settings.BASE_DIR,
            logs=self.files.logs,
            terminal=self.terminal,
            show_everything=settings.MLVDB_LOG_LEVEL == "debug",
            # A forked child has the code that was loaded at the start: with --reload each one is started anew.
            fork=forking.is_safe() and not settings.MLVDB_RELOAD,
        )

    @cached_property
    def code_watch(self) -> CodeWatch | None:
        """What notices changed code, from its first use on; None without --reload."""
        if not settings.MLVDB_RELOAD:
            return None
        return CodeWatch([settings.BASE_DIR / name for name in ("mlvdb_site", "vectors", "cluster")])

    # -- before anything is started -----------------------------------------------------------------------------

    def _refuse_open_address(self) -> None:
        host = settings.MLVDB_HOST
        if not listener.is_loopback(host) and not _keys_exist():
            raise Refused(
                f"host {host} can be reached from other machines and no API key exists: "
                "make one with `manage.py create_api_key`, or serve on 127.0.0.1"
            )

    def _listen(self, *, after_crash: bool) -> socket.socket:
        deadline = time.monotonic() + (PORT_FREED_WITHIN_S if after_crash else 0.0)
        while True:
            try:
                for companion in self.companions:
                    companion.check()
                return listener.listen(settings.MLVDB_HOST, settings.MLVDB_PORT)
            except listener.AddressRefused as error:
                # The workers of a killed `serve` end a moment after it.
                if time.monotonic() >= deadline:
                    raise Refused(str(error)) from None
                time.sleep(0.05)

    def _keep_demonstration(self) -> None:
        if self.demo:
            try:
                port_keep(self.files, settings.MLVDB_PORT)
            except OtherPort as error:
                raise Refused(str(error)) from None

    # -- from start to end --------------------------------------------------------------------------------------

    def _supervise(self) -> int:
        private_broker = self.broker
        self.files.scratch_clear()
        self._settle_environ()
        supervisor = self.supervisor
        try:
            supervisor.take_signals()
            supervisor.changed = self._write_record
            if private_broker is not None:
                supervisor.start(private_broker.spec(BROKER))
            for companion in self.companions:
                supervisor.start(companion.spec(broker_url="" if private_broker is not None else self.broker_url))
            password = self._prepare()
            self._load()
            self._start_all()
            if not supervisor.stopping:
                supervisor.settled()
                self._write_record()
                self._greet(password)
                self._watch()
            code = supervisor.run()
            if code == 0:
                self.terminal.line("Stopped.")
            return code
        finally:
            supervisor.finish()
            if private_broker is not None:
                private_broker.remove()
            self.files.scratch_clear()

    def _prepare(self) -> str | None:
        try:
            if not self.files.database.exists() and connection.vendor == "sqlite":
                self.terminal.line(f"A new node in {self.files.root}: its database is made …")
            preparation.migrate(self.files)
            preparation.collect_static()
            # Before anything else is written: this is where another node's database is refused.
            preparation.make_first_rows()
            return preparation.make_first_user(self.files)
        except preparation.PreparationRefused as error:
            raise Refused(str(error)) from None
        except OperationalError as error:
            raise Refused(f"the database cannot be used: {' '.join(str(error).split())}") from None

    def _start_all(self) -> None:
        supervisor = self.supervisor
        # From now on: a change while the first processes load their code must not be missed.
        _ = self.code_watch
        private_broker = self.broker
        if private_broker is not None:
            deadline = time.monotonic() + BROKER_WITHIN_S
            supervisor.run_until(lambda: private_broker.answers() or time.monotonic() > deadline)
        if supervisor.stopping:
            return
        supervisor.start(self._web_spec())
        self._wait_until_ready()
        if not supervisor.stopping:
            for spec in self._background_specs():
                supervisor.start(spec)

    def _load(self) -> None:
        """Load what forked children share."""
        if self.supervisor.fork:
            forking.limit_arenas()
            web.preload()
            background.preload()
            forking.freeze()

    def _wait_until_ready(self) -> None:
        supervisor = self.supervisor
        host = self.listening.getsockname()[0]
        readiness = Readiness(
            supervisor,
            host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host),
            port=settings.MLVDB_PORT,
        )
        said = readiness.progress
        said_at = progress_at = time.monotonic()

        def is_over() -> bool:
            nonlocal said, said_at, progress_at
            now = time.monotonic()
            if readiness.progress != said and now - said_at >= PROGRESS_EVERY_S:
                said, said_at, progress_at = readiness.progress, now, now
                self.terminal.line(f"Not ready yet: {said}")
            return readiness.step() or now - progress_at > READY_WITHIN_S

        supervisor.run_until(is_over)
        if not readiness.ready and not supervisor.stopping:
            self.terminal.line(f"Not ready after {READY_WITHIN_S:.0f} s without progress ({readiness.progress}).")
            self.terminal.line(supervisor.log_tail(WEB))
            supervisor.stop(exit_code=1)
        readiness.close()

    def _watch(self) -> None:
        supervisor = self.supervisor
        checkpoints = CheckpointWatch()

        def look_at_checkpoints() -> None:
            if CHECKPOINT not in supervisor.children and checkpoints.due():
                checkpoints.acted()
                self.terminal.line("A due checkpoint is not taken up (broker or worker down?); it is run from here.")
                supervisor.start(self._checkpoint_spec())

        supervisor.every(LOOK_EVERY_S, look_at_checkpoints)
        code_watch = self.code_watch
        if code_watch is not None:

            def look_at_code() -> None:
                changed = code_watch.changed()
                if changed:
                    others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                    self.terminal.line(f"Changed: {os.path.relpath(changed[0], settings.BASE_DIR)}{others}; reloading")
                    for name in (WEB, HEALTH, REPLICATION, TASKS, BEAT):
                        supervisor.restart(name)

            supervisor.every(RELOAD_LOOK_EVERY_S, look_at_code)
        if self.demo:
            supervisor.start(self._demo_spec())

    # -- the children -------------------------------------------------------------------------------------------

    def _settle_environ(self) -> None:
        """Put into the environment what the children inherit; forked ones inherit the settings as well."""
        os.environ.update(_ENVIRON)
        os.environ["MLVDB_DATA_DIR"] = str(self.files.root)
        os.environ["MLVDB_RUN_ID"] = secrets.token_hex(8)  # tells this run's log level from the next's
        os.environ["MLVDB_BROKER_URL"] = settings.MLVDB_BROKER_URL = self.broker_url

    def _web_spec(self) -> ChildSpec:
        descriptor = self.listening.fileno()
        return ChildSpec(
            WEB,
            module="mlvdb_site.processes.web",
            environ={listener.LISTEN_VARIABLE: str(descriptor)},
            descriptors=(descriptor,),
            essential=True,
        )

    def _background_specs(self) -> list[ChildSpec]:
        worker = background.worker_spec
        return [
            worker(HEALTH, ["health"], "--pool", "solo"),
            # Sending to replicas is waiting for them: in threads a slow one keeps nobody from the others.
            worker(REPLICATION, ["replication"], "--pool", "threads", "--concurrency", str(_REPLICATION_THREADS)),
            # A merge or a measure of recall may take minutes, and checkpoints are not to wait for either.
            worker(TASKS, ["maintenance"], "--pool", "prefork", "--concurrency", "3"),
            background.beat_spec(),
        ]

    def _checkpoint_spec(self) -> ChildSpec:
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "checkpoint"]
        return ChildSpec(CHECKPOINT, command, restart=False)

    def _demo_spec(self) -> ChildSpec:
        nodes = [self.url, *(f"{companion.name}={companion.url}" for companion in self.companions)]
        return ChildSpec(DEMO, nodes, module="mlvdb_site.processes.demonstration", restart=False, show=Show.EVERYTHING)

    # -- what others see ----------------------------------------------------------------------------------------

    def _write_record(self) -> None:
        children = self.supervisor.children.values()
        write_record(
            self.files,
            ServeRecord(
                pid=os.getpid(),
                url=self.url,
                advertise_url=settings.MLVDB_ADVERTISE_URL or self.url,
                broker_url=self.broker_url,
                broker_is_private=self.broker is not None,
                started_at=self.started,
                ready=self.supervisor.is_settled,
                processes={child.name: child.pid for child in children if child.pid is not None},
            ),
        )

    def _greet(self, password: str | None) -> None:
        took_s = time.monotonic() - self.began_at
        login = f"   user {preparation.ADMIN_NAME}, password {password}" if password else ""
        for line in (
            "",
            f"MLVectorDB {__version__} is ready ({took_s:.1f} s).",
            "",
            f"  API, browsable   {self.url}/",
            f"  API reference    {self.url}/docs",
            f"  admin            {self.url}/admin/{login}",
            f"  data             {self.files.root}",
            "",
            *([f"The password is kept in {self.files.admin_password}."] if password else []),
            "Ctrl-C ends the node.",
            "",
        ):
            self.terminal.line(line)


def _keys_exist() -> bool:
    from mlvdb_site.models import ApiKey

    try:
        return ApiKey.objects.filter(revoked_at=None).exists()
    except DatabaseError:
        # A new database: nobody can have made a key yet.
        return False
