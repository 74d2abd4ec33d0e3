"""Single statements in plain SQL, for the hot path: every request reads a head, every write moves one.

On SQLite they go to the driver directly: Django's cursor costs three times the statement. Placeholders are `%s`, as
in Django's cursors; the table names are those of `vectors.models`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

Row = tuple[Any, ...]


def one(statement: str, parameters: Row) -> Row | None:
    """Run a statement and return its first row, None when it returns none."""
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            found: Row | None = database.connection.execute(_for_sqlite(statement), parameters).fetchone()
            return found
    with database.cursor() as cursor:
        cursor.execute(statement, parameters)
        row: Row | None = cursor.fetchone() if cursor.description is not None else None
        return row


def every(statement: str, parameters: Row) -> list[Row]:
    """Run a query and return its rows; it must bound them itself."""
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            return list(database.connection.execute(_for_sqlite(statement), parameters).fetchall())
    with database.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def many(statement: str, rows: Iterable[Row]) -> None:
    """Run a statement once for each row of parameters."""
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        database.ensure_connection()
        with database.wrap_database_errors:
            database.connection.executemany(_for_sqlite(statement), rows)
        return
    with database.cursor() as cursor:
        cursor.executemany(statement, list(rows))


@cache
def _for_sqlite(statement: str) -> str:
    return statement.replace("%s", "?")
