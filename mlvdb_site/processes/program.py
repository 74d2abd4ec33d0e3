"""The background processes of a program that is a node itself: broker, one Celery worker, beat; no web server.

`python -m mlvdb_site.processes.program [--private]` is started by the program, with a pipe from it as its input. They
end when the pipe does: nothing outlives the program, whichever way that ends. `--private` says that the data dir is the
program's own temporary one: it is removed here when the program was killed and could not say farewell.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import sys
import time
from collections.abc import Sequence

from mlvdb_site.processes import background, forking
from mlvdb_site.processes import broker as brokers
from mlvdb_site.processes.output import Terminal
from mlvdb_site.processes.record import NodeInUse, ServeLock, ServeRecord, left_over_record, remove_record, write_record
from mlvdb_site.processes.supervisor import Supervisor

FAREWELL = b"bye\n"
"""What a program writes into the pipe when it ends in order, and removes its data dir itself."""

PRIVATE = "--private"

BROKER, WORKER = "broker", "worker"
_BROKER_WITHIN_S = 10.0
_THREADS = 16


class ProgramProcesses:
    """The supervisor of a program's background processes."""

    def __init__(self) -> None:
        from django.conf import settings

        self.files = settings.NODE_FILES
        self.broker = None if settings.MLVDB_BROKER_URL else brokers.PrivateBroker.prepare()
        self.is_farewell_said = False
        self.supervisor = Supervisor(
            working_dir=settings.BASE_DIR,
            logs=self.files.logs,
            terminal=Terminal(),
            fork=forking.is_safe(),
        )

    def run(self) -> int:
        """Start them, and return the exit code when all have ended."""
        from django.conf import settings

        if self.broker is not None:
            settings.MLVDB_BROKER_URL = self.broker.url
        os.environ["MLVDB_BROKER_URL"] = settings.MLVDB_BROKER_URL
        os.environ["MLVDB_RUN_ID"] = secrets.token_hex(8)
        supervisor = self.supervisor
        try:
            supervisor.take_signals()
            supervisor.changed = self._write_record
            supervisor.watch(sys.stdin.fileno(), selectors.EVENT_READ, self._on_input)
            self._start_all()
            return supervisor.run()
        finally:
            supervisor.finish()
            if self.broker is not None:
                self.broker.remove()
            self.files.scratch_clear()
            remove_record(self.files)

    def _start_all(self) -> None:
        supervisor, broker = self.supervisor, self.broker
        if broker is not None:
            deadline = time.monotonic() + _BROKER_WITHIN_S
            supervisor.start(broker.spec(BROKER))
            supervisor.run_until(lambda: broker.answers() or time.monotonic() > deadline)
        if supervisor.stopping:
            return
        # From now on tasks can be sent; the worker finds them when it is there.
        supervisor.settled()
        self._write_record()
        if supervisor.fork:
            background.preload()
            forking.freeze()
        # In threads: sending to replicas is waiting for them.
        kinds = ["health", "replication", "maintenance"]
        supervisor.start(background.worker_spec(WORKER, kinds, "--pool", "threads", "--concurrency", str(_THREADS)))
        supervisor.start(background.beat_spec())

    def _on_input(self, _events: int) -> None:
        data = os.read(sys.stdin.fileno(), 64)
        self.is_farewell_said = self.is_farewell_said or FAREWELL in data
        if not data:
            self.supervisor.unwatch(sys.stdin.fileno())
            self.supervisor.stop()

    def _write_record(self) -> None:
        from django.conf import settings

        children = self.supervisor.children.values()
        write_record(
            self.files,
            ServeRecord(
                pid=os.getpid(),
                url="",
                broker_url=settings.MLVDB_BROKER_URL,
                broker_is_private=self.broker is not None,
                ready=self.supervisor.is_settled,
                processes={child.name: child.pid for child in children if child.pid is not None},
            ),
        )


def main(arguments: Sequence[str]) -> int:
    """Run until the input ends; return the exit code."""
    import django

    django.setup()
    from django.conf import settings

    files = settings.NODE_FILES
    lock = ServeLock(files)
    try:
        lock.take()
        left_over = left_over_record(files)
        if left_over is not None and left_over.broker_is_private:
            brokers.remove_left_over(left_over.broker_url)
        processes = ProgramProcesses()
    except (NodeInUse, brokers.BrokerMissing) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        return processes.run()
    finally:
        lock.release()
        if PRIVATE in arguments and not processes.is_farewell_said:
            shutil.rmtree(files.root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
