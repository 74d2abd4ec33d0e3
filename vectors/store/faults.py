"""What the database and the disk can say when they fail, in the words of `vectors.errors`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError

from vectors.errors import StorageBusy, StorageError, StorageFull

# SQLite says it in words, PostgreSQL by SQLSTATE (its words are in the server's language).
_FULL_WORDS = ("disk is full", "no space left")
_BUSY_WORDS = ("locked", "busy")
_FULL_STATES = frozenset({"53100"})
_BUSY_STATES = frozenset({"55P03", "40P01", "40001", "57014"})


@contextmanager
def storage_faults() -> Iterator[None]:
    """Turn failures of database and disk into StorageFull, StorageBusy or StorageError; nothing was committed."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        text = str(error).lower()
        state = getattr(error.__cause__, "sqlstate", None)
        if state in _FULL_STATES or any(word in text for word in _FULL_WORDS):
            raise StorageFull("the disk is full; nothing was written") from error
        if state in _BUSY_STATES or any(word in text for word in _BUSY_WORDS):
            raise StorageBusy("the database's write lock was not to be had in time", retry_after_s=1) from error
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise StorageError(f"the database failed: {reason}", retry_after_s=1) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk is full; nothing was written") from error
        raise StorageError(f"a file failed: {error}", retry_after_s=1) from error
