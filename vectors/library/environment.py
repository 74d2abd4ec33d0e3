"""Django for programs that have none: set up once per process over a private temporary data dir."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

SETTINGS_MODULE = "mlvdb_site.settings"

# What a shell says of a node is not for a private directory, which nobody shares and nothing outlives.
_PRIVATE_ENVIRON = {
    "DJANGO_SETTINGS_MODULE": SETTINGS_MODULE,
    "DATABASE_URL": "",
    "MLVDB_BROKER_URL": "",
    "MLVDB_DURABILITY": "process",
    "MLVDB_ENABLE_REPLICATION": "",
    "MLVDB_LOG_LEVEL": "warning",
    "MLVDB_QUERY_PROCESSOR": "",
    "MLVDB_SERVES_HTTP": "off",
    "MLVDB_WORKERS": "1",
}

_WATCHING = "cluster"
"""The logger of what is noticed about other nodes, over and over: managers and answers say it too."""

_lock = threading.Lock()
_private: Path | None = None


def ensure_django() -> None:
    """Make sure that the models can be used: in the configured Django, or in one set up here.

    Raise ImproperlyConfigured when Django is configured without this project's apps.
    """
    with _lock:
        if not settings.configured:
            _set_up_private()
        elif not apps.ready:
            import django

            django.setup()
        if not apps.is_installed("vectors"):
            raise ImproperlyConfigured(
                "Django is configured without the app 'vectors': add 'vectors.apps.VectorsConfig' to INSTALLED_APPS, "
                "or use vectors.library in a process of its own"
            )


def private_directory() -> Path | None:
    """Return the private data dir, None when Django was configured by others."""
    return _private


def private_environ() -> dict[str, str]:
    """Return what a process of its own must have in its environment to work on the private data dir."""
    assert _private is not None
    return {**_PRIVATE_ENVIRON, "MLVDB_DATA_DIR": str(_private)}


class _ErrorsAlone(logging.Handler):
    """Where a program has not set up logging, errors go to stderr as ever, and warnings nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand an error to what Python has for such programs."""
        is_set_up = logging.getLogger().handlers or len(logging.getLogger(_WATCHING).handlers) > 1
        if not is_set_up and logging.lastResort is not None:
            logging.lastResort.handle(record)


def _set_up_private() -> None:
    global _private
    directory = Path(tempfile.mkdtemp(prefix="mlvdb-library-"))
    owner = os.getpid()
    try:
        with _environ({**_PRIVATE_ENVIRON, "MLVDB_DATA_DIR": str(directory)}):
            # The program's own logging stays as it is; loading the settings in this environment fixes all the rest.
            settings.LOGGING_CONFIG = None
            logging.getLogger(_WATCHING).addHandler(_ErrorsAlone(logging.ERROR))
            import django
            from django.core.management import call_command

            # What the apps import names the settings in the environment, where they are not yet.
            django.setup()
        call_command("migrate", "vectors", verbosity=0, interactive=False)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    _private = directory
    atexit.register(_remove, directory, owner)


@contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _remove(directory: Path, owner: int) -> None:
    # A forked child runs its parent's exit functions too.
    if os.getpid() != owner:
        return
    from django.db import connections

    from vectors import runtime

    runtime.reset()
    connections.close_all()
    shutil.rmtree(directory, ignore_errors=True)
