"""Rows that say "something changed": one cheap query tells every process of a node what it must read again.

A request reads all markers that concern it in one statement; what they stand for (the keys, the log level) is read
only when a marker differs from the one seen before. A marker is set in the transaction of the change it announces.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from mlvdb_site.models import ChangeMarker

_SELECT_ONE = "SELECT value FROM mlvdb_site_changemarker WHERE name = %s"
_SELECT_ONE_SQLITE = _SELECT_ONE.replace("%s", "?")
_SELECT = "SELECT " + ", ".join([f"({_SELECT_ONE})"] * 3)
_SELECT_SQLITE = _SELECT.replace("%s", "?")
_KEYS = "keys"
_TOPOLOGY = "topology"


class Markers(NamedTuple):
    """The markers of a node; None where nothing was ever changed."""

    keys: str | None
    log_level: str | None
    topology: str | None


_seen_topology: ContextVar[list[str | None] | None] = ContextVar("seen_topology", default=None)


@contextmanager
def shared_look() -> Iterator[None]:
    """In the block, let the first question for the topology's marker be answered by the statement of `markers_read`.

    For a request that reads: it may stand on any moment since it began, and each statement costs it as much as its
    parsing. Only the first question, because who asks again does so to see what has changed.
    """
    token = _seen_topology.set([])
    try:
        yield
    finally:
        _seen_topology.reset(token)


def markers_read() -> Markers:
    """Return the markers as committed now; a few microseconds, since every request asks.

    On SQLite the statement goes to the driver directly: Django's cursor costs several times the query. Raises the
    errors of `django.db`.
    """
    names = _names()
    # Looked up once: each step through Django's proxy of it costs as much as half the query.
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            row = database.connection.execute(_SELECT_SQLITE, names).fetchone()
    else:
        with database.cursor() as cursor:
            cursor.execute(_SELECT, names)
            row = cursor.fetchone()
    markers = Markers._make(row)
    seen = _seen_topology.get()
    if seen is not None:
        seen.append(markers.topology)
    return markers


def keys_changed() -> None:
    """Announce a change of the API keys; call it inside the transaction of the change."""
    # A random value, not a number counted up: a restored or emptied table can never repeat one that was seen before.
    _write(_KEYS, secrets.token_hex(16))


def topology_marker() -> str | None:
    """Return what says whether the topology is still the one that was read last; None while there never was one.

    A few microseconds: every request that may leave the node asks. Raises the errors of `django.db`.
    """
    seen = _seen_topology.get()
    if seen:
        return seen.pop()
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            row = database.connection.execute(_SELECT_ONE_SQLITE, (_TOPOLOGY,)).fetchone()
    else:
        with database.cursor() as cursor:
            cursor.execute(_SELECT_ONE, (_TOPOLOGY,))
            row = cursor.fetchone()
    return None if row is None else str(row[0])


def topology_changed() -> None:
    """Announce a change of registry, placements or health; call it inside the transaction of the change."""
    _write(_TOPOLOGY, secrets.token_hex(16))


def log_level_marker_write(value: str) -> None:
    """Set this node's log level marker (nodes may share a database)."""
    _write(_names()[1], value)


def _write(name: str, value: str) -> None:
    ChangeMarker.objects.update_or_create(name=name, defaults={"value": value})


@cache
def _names() -> tuple[str, str, str]:
    return _KEYS, f"log-level:{settings.MLVDB_NODE_ID}", _TOPOLOGY
