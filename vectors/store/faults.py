"""What the database and the disk can say when they fail, in the words of `vectors.errors`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError, OperationalError

from vectors.errors import StorageBusy, StorageError, StorageFull

_FULL_WORDS = ("disk is full", "no space left", "disk full")
_BUSY_WORDS = ("locked", "busy", "lock timeout", "deadlock", "could not serialize")


@contextmanager
def storage_faults() -> Iterator[None]:
    """Turn failures of database and disk into StorageFull, StorageBusy or StorageError; nothing was committed."""
    try:
        yield
    except (OperationalError, InterfaceError, DatabaseError) as error:
        text = str(error).lower()
        if any(word in text for word in _FULL_WORDS):
            raise StorageFull("the disk is full; nothing was written") from error
        if any(word in text for word in _BUSY_WORDS):
            raise StorageBusy("the database's write lock was not to be had in time", retry_after_s=1) from error
        raise StorageError(f"the database failed: {error}", retry_after_s=1) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk is full; nothing was written") from error
        raise StorageError(f"a file failed: {error}", retry_after_s=1) from error
