"""Celery workers and beat of a node: `main(["worker" or "beat", OPTION…])`.

The same as `celery -A mlvdb_site …`, with every process bound to the one that started it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from mlvdb_site.processes import lifeline

_LOADED_LATE = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
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

    # weak=False: nothing else keeps the partial.
    signals.worker_process_init.connect(partial(_bind_pool_process, os.getpid()), weak=False)
    app.start(argv=list(arguments))


def preload() -> None:
    """Load what Celery's processes need, without a connection to the broker."""
    from mlvdb_site.celery import app

    for module in _LOADED_LATE:
        importlib.import_module(module)
    app.loader.import_default_modules()
    app.finalize()


def _bind_pool_process(main_pid: int, **_signal: Any) -> None:
    # The solo pool sends the signal too, from the main process itself.
    if os.getpid() != main_pid:
        lifeline.hold_on(main_pid)


if __name__ == "__main__":
    main(sys.argv[1:])
