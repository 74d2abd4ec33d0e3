"""Rows that say "something changed": one cheap query tells every process of a node what it must read again.

A request reads all markers that concern it in one statement; what they stand for (the keys, the log level) is read
only when a marker differs from the one seen before. A marker is set in the transaction of the change it announces.
"""

from __future__ import annotations

import secrets
from functools import cache
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from mlvdb_site.models import ChangeMarker

_SELECT = "SELECT name, value FROM mlvdb_site_changemarker WHERE name IN (%s, %s)"
_SELECT_SQLITE = _SELECT.replace("%s", "?")
_KEYS = "keys"


class Markers(NamedTuple):
    """The markers of a node; None where nothing was ever changed."""

    keys: str | None
    log_level: str | None


_NO_MARKERS = Markers(None, None)


def markers_read() -> Markers:
    """Return the markers as committed now; a few microseconds, since every request asks.

    On SQLite the statement goes to the driver directly: Django's cursor costs several times the query. Raises the
    errors of `django.db`.
    """
    names = _names()
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        with connection.wrap_database_errors:
            rows = connection.connection.execute(_SELECT_SQLITE, names).fetchall()
    else:
        with connection.cursor() as cursor:
            cursor.execute(_SELECT, names)
            rows = cursor.fetchall()
    if not rows:
        return _NO_MARKERS
    values = dict(rows)
    return Markers(values.get(names[0]), values.get(names[1]))


def keys_changed() -> None:
    """Announce a change of the API keys; call it inside the transaction of the change."""
    # A random value, not a number counted up: a restored or emptied table can never repeat one that was seen before.
    _write(_KEYS, secrets.token_hex(16))


def log_level_marker_write(value: str) -> None:
    """Set this node's log level marker (nodes may share a database)."""
    _write(_names()[1], value)


def _write(name: str, value: str) -> None:
    ChangeMarker.objects.update_or_create(name=name, defaults={"value": value})


@cache
def _names() -> tuple[str, str]:
    return _KEYS, f"log-level:{settings.MLVDB_NODE_ID}"
