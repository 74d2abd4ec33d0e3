"""The log of every process of a node: one line per event, `event key=value …`, to standard error.

The level of the node's own loggers can be changed while it runs (POST /log/level): the change is a marker in the
database, which a process meets with its next request or task, and which ends with the run of the node.
"""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from typing import Any

from mlvdb_site.http.request_id import current_request_id

#: The loggers that are the node's own, as against its libraries'.
OWN_LOGGERS = ("mlvdb_site", "vectors", "cluster")
LEVELS = ("debug", "info", "warning", "error", "critical")


class LineFormatter(logging.Formatter):
    """Time, level, logger, the event, the request's id; a traceback is a field of the same line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = (
            f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{record.msecs:03.0f}Z"
            f" {record.levelname} {record.name} {record.getMessage()}"
        )
        request_id = getattr(record, "request_id", "")
        if request_id:
            line += f" request_id={request_id}"
        if record.exc_info:
            line += f" exc={self.formatException(record.exc_info)!r}"
        if record.stack_info:
            line += f" stack={self.formatStack(record.stack_info)!r}"
        return line.replace("\r", "\\r").replace("\n", "\\n")


class RequestIdFilter(logging.Filter):
    """Gives each record the id of the request it was logged in."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record."""
        if not hasattr(record, "request_id"):
            record.request_id = current_request_id()
        return True


class FaultsOnly(logging.Filter):
    """Keeps what failed; answers meant for the client (not ready, busy, full) are counted in /metrics."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep exceptions and plain 500s."""
        return bool(record.exc_info) or getattr(record, "status_code", 500) == 500


def logging_settings(level: str) -> dict[str, Any]:
    """Return Django's LOGGING for the node's `level`."""
    upper = level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestIdFilter}, "faults_only": {"()": FaultsOnly}},
        "formatters": {"line": {"()": LineFormatter}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request_id"]},
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            **{name: {"level": upper} for name in OWN_LOGGERS},
            # Django's own handlers are taken off, and its warning for every 4xx: clients' mistakes are in /metrics.
            "django": {"handlers": [], "level": "WARNING", "propagate": True},
            "django.request": {"level": "ERROR", "filters": ["faults_only"]},
            "django.security": {"level": "ERROR"},
        },
    }


def level_set(level: str) -> None:
    """Set the level of the node's own loggers in this process."""
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())


@cache
def run_id() -> str:
    """Return what tells this run of the node from its next: MLVDB_RUN_ID of `serve`, else the parent process.

    Under a bare WSGI server the workers of one run share their parent; its start time keeps apart the runs of a
    container, in which it always has the same process id.
    """
    given = os.environ.get("MLVDB_RUN_ID", "")
    if given:
        return given
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            started = file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        started = "0"
    return f"{parent}.{started}"


class LevelFollower:
    """Applies the node's level marker to this process; one comparison as long as nothing changed."""

    def __init__(self) -> None:
        self._applied: str | None = None

    def follow(self, marker: str | None) -> None:
        """Set the level that `marker` names, when it is new and of this run."""
        if marker == self._applied:
            return
        self._applied = marker
        level, _, run = (marker or "").partition(" ")
        if run == run_id() and level in LEVELS:
            level_set(level)


level_follower = LevelFollower()


def level_marker(level: str) -> str:
    """Return the marker that sets `level` for the rest of this run."""
    return f"{level} {run_id()}"
