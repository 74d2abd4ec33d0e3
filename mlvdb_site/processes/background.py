"""Celery workers and beat of a node: `main(["worker" or "beat", OPTION…])`.

The same as `celery -A mlvdb_site …`, with every process bound to the one that started it.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from mlvdb_site.processes import lifeline
from mlvdb_site.processes.children import ChildSpec

BEAT = "beat"

_LOADED_LATE = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "mlvdb_site.beat",
)


def main(arguments: Sequence[str]) -> None:
    """Run Celery's command line until SIGTERM."""
    lifeline.hold_on()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")

    from celery import signals

    from mlvdb_site.celery import app

    _keep_temporary_files_in_the_data_dir()
    # weak=False: nothing else keeps the partial.
    signals.worker_process_init.connect(partial(_bind_pool_process, os.getpid()), weak=False)
    app.start(argv=list(arguments))


def worker_spec(name: str, kinds: Sequence[str], *pool: str) -> ChildSpec:
    """Return a Celery worker as a child: its name, the queues of this node that it consumes, options of its pool."""
    from django.conf import settings

    node = settings.MLVDB_NODE_ID
    queues = ",".join(f"{node}.{kind}" for kind in kinds)
    alone = ["--without-gossip", "--without-mingle"]
    return _spec(name, "worker", "--hostname", f"{name}@{node}", "--queues", queues, *pool, *alone)


def beat_spec() -> ChildSpec:
    """Return beat as a child."""
    return _spec(BEAT, "beat", "--pidfile", "")


def preload() -> None:
    """Load what Celery's processes need, without a connection to the broker."""
    from mlvdb_site.celery import app

    for module in _LOADED_LATE:
        importlib.import_module(module)
    app.loader.import_default_modules()
    app.finalize()


def _keep_temporary_files_in_the_data_dir() -> None:
    from django.conf import settings

    scratch = settings.NODE_FILES.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    # A pool's shared memory has a directory of its own, which a process that is killed cannot remove.
    tempfile.tempdir = str(scratch)


def _spec(name: str, *arguments: str) -> ChildSpec:
    from django.conf import settings

    return ChildSpec(name, [*arguments, "--loglevel", settings.MLVDB_LOG_LEVEL], module=__name__)


def _bind_pool_process(main_pid: int, **_signal: Any) -> None:
    # The solo pool sends the signal too, from the main process itself.
    if os.getpid() != main_pid:
        lifeline.hold_on(main_pid)


if __name__ == "__main__":
    main(sys.argv[1:])
