"""Log entries that are taken out of a log because its primary does not have them, kept in files for a person.

A file holds slices (`vectors.store.slices.slices_in` reads it) and is named after the shard and the newest entry in it.
It is on disk before the entries leave the log, and no file replaces another. Whoever sets aside holds the lock of the
shard until the entries are out of the log or stay in it: two that write the same file would else take it from each
other.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from django.conf import settings

from vectors.errors import MLVectorDBError
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.file_lock import file_locked
from vectors.store.log import START, Position
from vectors.store.segment_files import make_directories, sync_directory
from vectors.store.slices import encode_slice, oldest_seq, read_slice
from vectors.store.terms import read_terms, term_at


class SetAside(NamedTuple):
    """A file of entries set aside; `is_new` unless the same file was there, of an attempt that did not get to its
    end."""

    path: Path
    entries: int
    first_seq: int
    last_seq: int
    is_new: bool


@contextmanager
def set_aside_locked(shard_uid: str) -> Iterator[None]:
    """Be the only one that takes entries out of a shard copy's log. Raise StorageBusy, and StorageFull and the like."""
    directory = settings.NODE_FILES.set_aside
    with storage_faults():
        make_directories(directory)
    lock = directory / f".{shard_uid}.lock"
    with file_locked(lock, fcntl.LOCK_EX, timeout_s=settings.MLVDB_DATABASE_TIMEOUT_S):
        yield


@storage_faults()
def entries_set_aside(head: log.Head, *, after_seq: int) -> SetAside | None:
    """Write the entries of a log from behind `after_seq` to its head into a file; None when it has none.

    Precondition: `set_aside_locked`.

    What is pruned already is not in it. Raise LogGap when the log changes meanwhile, StorageFull and the like; then
    there is no file.
    """
    first = max(after_seq + 1, oldest_seq(head.shard_id))
    if first > head.last_seq:
        return None
    directory = settings.NODE_FILES.set_aside
    make_directories(directory)
    temporary = directory / f".writing-{os.getpid()}-{threading.get_ident()}"
    try:
        _write(temporary, head, first)
        path, is_new = _place(temporary, directory, f"{head.label}-{head.uid[:8]}-{head.term}-{head.last_seq}")
        sync_directory(directory)
    finally:
        temporary.unlink(missing_ok=True)
    return SetAside(path, head.last_seq - first + 1, first, head.last_seq, is_new)


def set_aside_undo(aside: SetAside | None, seen: log.Head) -> None:
    """Remove the file of an attempt that left the log as it was seen; where that cannot be told the file stays."""
    if aside is None or not aside.is_new:
        return
    with suppress(MLVectorDBError):
        now = log.read_head(seen.shard_id)
        if now is not None and now.incarnation == seen.incarnation:
            aside.path.unlink(missing_ok=True)


def _write(path: Path, head: log.Head, first: int) -> None:
    history = read_terms(head.shard_id)
    last = first - 1
    with path.open("wb") as file:
        while last < head.last_seq:
            entries = read_slice(head.shard_id, last, through=head.last_seq, max_bytes=settings.MLVDB_SLICE_BYTES)
            before = Position(term_at(history, last), last) if last else START
            file.write(encode_slice(before, entries))
            last = entries[-1].seq
        file.flush()
        os.fsync(file.fileno())


def _place(temporary: Path, directory: Path, name: str) -> tuple[Path, bool]:
    """Give the file its name, or one with a number behind it where another file has that; the same file is kept."""
    for number in count(1):
        path = directory / (f"{name}.slice" if number == 1 else f"{name}.{number}.slice")
        try:
            os.link(temporary, path)
            return path, True
        except FileExistsError:
            if filecmp.cmp(temporary, path, shallow=False):
                return path, False
    raise AssertionError("unreachable")
