"""Files that come in by pieces: `.<name>` until all bytes are on disk and have the right checksum, then `<name>`.

The checksum is carried along from chunk to chunk in the memory of the process that writes them, and read back from the
file where that process did not write all of it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from vectors.store.file_lock import lock_descriptor
from vectors.store.segment_files import FileStamp, make_directories

logger = logging.getLogger(__name__)

# Bytes of a file that may wait for the disk: they bound how long its last chunk takes.
_FLUSH_BYTES = 64 * 1024 * 1024
_READ_BYTES = 4 * 1024 * 1024
_MOST_RUNNING = 256


@dataclass(slots=True)
class _Running:
    """The checksum of a partial file as this process has written it so far, and the file as it left it."""

    inode: int
    size: int
    written_ns: int
    crc32: int


# Path → checksum carried along. Lost with the process, so after a crash the bytes are read back from the disk.
_running: dict[Path, _Running] = {}


def chunk_add(whole: Path, stamp: FileStamp, offset: int, data: bytes | memoryview) -> int:
    """Add bytes at the end of a file; return its size, which is where the next ones are to begin.

    Bytes that do not begin there are not written. With the last ones the file gets its name, or is emptied when its
    checksum is wrong. Raise OSError; then what was there before stays, as far as the disk can be trusted.
    """
    if whole.exists():
        return stamp.size
    make_directories(whole.parent)
    partial = partial_path(whole)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_descriptor(descriptor, fcntl.LOCK_EX, timeout_s=settings.MLVDB_DATABASE_TIMEOUT_S)
        if whole.exists():
            # Another request completed it while this one waited.
            return stamp.size
        before = os.fstat(descriptor)
        if before.st_size < stamp.size:
            if offset != before.st_size:
                return before.st_size
            try:
                _write_all(descriptor, offset, data)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, offset)
                raise
            crc32 = _carry_on(partial, before, offset, data, os.fstat(descriptor))
            size = offset + len(data)
            if size < stamp.size:
                if offset // _FLUSH_BYTES != size // _FLUSH_BYTES:
                    _flush(descriptor)
                return size
        else:
            # The process that wrote its last byte died before it gave it its name.
            crc32 = None
        return _finish(descriptor, whole, stamp, crc32)
    finally:
        os.close(descriptor)


def is_whole(path: Path, stamp: FileStamp) -> bool:
    """Whether a file has its name: its bytes were checked then."""
    try:
        return path.stat().st_size == stamp.size
    except FileNotFoundError:
        return False


def size_here(path: Path, stamp: FileStamp) -> int:
    """Return how many bytes of a file are here, checked or not yet."""
    if is_whole(path, stamp):
        return stamp.size
    try:
        size = partial_path(path).stat().st_size
    except FileNotFoundError:
        return 0
    # Full length and no name yet: asking for its last byte gets it finished.
    return min(size, stamp.size - 1)


def partial_path(path: Path) -> Path:
    """Return the name of a file until it is whole."""
    return path.with_name(f".{path.name}")


def _finish(descriptor: int, whole: Path, stamp: FileStamp, crc32: int | None) -> int:
    """Give a file of full length its name if its bytes are what they should be, else empty it; return its size."""
    partial = partial_path(whole)
    _running.pop(partial, None)
    if (_crc32_of(descriptor) if crc32 is None else crc32) != stamp.crc32:
        logger.warning("sync_file_checksum_wrong path=%s", whole)
        os.ftruncate(descriptor, 0)
        return 0
    _flush(descriptor)
    partial.rename(whole)
    return stamp.size


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError:
        # What the kernel could not write it may not try again: these bytes are not to be trusted.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        raise


def _write_all(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        offset, rest = offset + written, rest[written:]


def _carry_on(
    partial: Path, before: os.stat_result, offset: int, data: bytes | memoryview, after: os.stat_result
) -> int | None:
    """Return the checksum of the file so far, None when others have written to it since this process did."""
    known = _running.pop(partial, None)
    if offset == 0:
        crc32 = 0
    elif known is not None and (known.inode, known.size, known.written_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    ):
        crc32 = known.crc32
    else:
        return None
    crc32 = zlib.crc32(data, crc32)
    if len(_running) >= _MOST_RUNNING:
        _running.clear()
    _running[partial] = _Running(after.st_ino, after.st_size, after.st_mtime_ns, crc32)
    return crc32


def _crc32_of(descriptor: int) -> int:
    crc32, offset = 0, 0
    while chunk := os.pread(descriptor, _READ_BYTES, offset):
        crc32, offset = zlib.crc32(chunk, crc32), offset + len(chunk)
    return crc32
