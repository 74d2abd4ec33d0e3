"""What the database and the disk can say when they fail, in the words of `vectors.errors`."""

from __future__ import annotations

import errno
from contextlib import ContextDecorator

from django.db import DatabaseError, InterfaceError

from vectors.errors import MLVectorDBError, StorageBusy, StorageError, StorageFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a disk without room says."""

# SQLite says it in words, PostgreSQL by SQLSTATE (its words are in the server's language).
_FULL_WORDS = ("disk is full", "no space left")
_BUSY_WORDS = ("locked", "busy")
_FULL_STATES = frozenset({"53100"})
_BUSY_STATES = frozenset({"55P03", "40P01", "40001", "57014"})


class _StorageFaults(ContextDecorator):
    """The context manager, in the form that costs least: every request passes through it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, (DatabaseError, InterfaceError)):
            raise _database_fault(error) from error
        if isinstance(error, OSError):
            if error.errno in FULL:
                raise StorageFull("the disk is full; nothing was written") from error
            raise StorageError(f"a file failed: {error}", retry_after_s=1) from error


_storage_faults = _StorageFaults()


def storage_faults() -> _StorageFaults:
    """Turn failures of database and disk into StorageFull, StorageBusy or StorageError; nothing was committed.

    A context manager, and a decorator.
    """
    return _storage_faults


def _database_fault(error: DatabaseError | InterfaceError) -> MLVectorDBError:
    text = str(error).lower()
    state = getattr(error.__cause__, "sqlstate", None)
    if state in _FULL_STATES or any(word in text for word in _FULL_WORDS):
        return StorageFull("the disk is full; nothing was written")
    if state in _BUSY_STATES or any(word in text for word in _BUSY_WORDS):
        return StorageBusy("the database's write lock was not to be had in time", retry_after_s=1)
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return StorageError(f"the database failed: {reason}", retry_after_s=1)
