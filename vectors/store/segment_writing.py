"""Writing segments: every file checksummed on the way, on disk before the segment gets its name."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from vectors.engine.filters.stored import write_columns
from vectors.store.row_order import RowOrder
from vectors.store.segment_files import (
    BUILDING,
    COLUMNS_FILE,
    FileStamp,
    IndexRecord,
    SegmentRecord,
    deleted_name,
    index_name,
    make_directories,
    map_texts,
    segment_uid,
    sync_directory,
)

logger = logging.getLogger(__name__)


def write_segment(
    parent: Path, *, rows: RowOrder, dimension: int, token: int, with_columns: bool = False
) -> SegmentRecord:
    """Write `rows` as a new segment below `parent`, `with_columns` for filters or without, and return its record.

    The uid begins with the writer's lease token. On an error, a full disk say, nothing of it stays.
    """
    uid = segment_uid(token)
    make_directories(parent)
    building = parent / f"{BUILDING}{uid}"
    building.mkdir()
    try:
        files = _write_files(building, rows, dimension)
        if with_columns:
            files |= _write_columns(building)
        sync_directory(building)
        building.rename(parent / uid)
        sync_directory(parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return SegmentRecord(uid, len(rows), dimension, files)


def write_deleted(directory: Path, *, seq: int, deleted: np.ndarray, token: int) -> tuple[str, FileStamp]:
    """Write the deletions (n,) bool of a segment as of `seq`; return the file's name and stamp."""
    name = deleted_name(seq, token)
    return name, _write_beside(directory, name, lambda path: _write_array(path, np.packbits(deleted)))


def write_index(
    directory: Path, *, number: int, token: int, chunks: Iterable[bytes | memoryview], summary: dict[str, object]
) -> IndexRecord:
    """Write the index of a segment for manifest `number` from its bytes in order; return its record."""
    name = index_name(number, token)
    return IndexRecord(name, _write_beside(directory, name, lambda path: _write_chunks(path, chunks)), summary)


def _write_beside(directory: Path, name: str, write: Callable[[Path], FileStamp]) -> FileStamp:
    """Write one more file of a segment, which has its name when its bytes are on disk."""
    temporary = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        stamp = write(temporary)
        temporary.rename(directory / name)
        sync_directory(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return stamp


def _write_files(directory: Path, rows: RowOrder, dimension: int) -> dict[str, FileStamp]:
    hashes = rows.hashes()
    order = np.argsort(hashes, kind="stable")
    shape = (len(rows), dimension)
    return {
        "vectors.f32.npy": _write_rows(directory / "vectors.f32.npy", rows.chunks("matrix"), shape=shape, dtype="<f4"),
        "squared_norms.f64.npy": _write_array(directory / "squared_norms.f64.npy", rows.whole("squared_norms", "<f8")),
        "slots.u16.npy": _write_array(directory / "slots.u16.npy", rows.whole("slots", "<u2")),
        "seqs.i64.npy": _write_array(directory / "seqs.i64.npy", rows.whole("seqs", "<i8")),
        "keys.bin": _write_chunks(directory / "keys.bin", rows.texts("keys")),
        "keys.u64.npy": _write_array(directory / "keys.u64.npy", _offsets(rows.lengths("keys"))),
        "metadata.bin": _write_chunks(directory / "metadata.bin", rows.texts("metadata")),
        "metadata.u64.npy": _write_array(directory / "metadata.u64.npy", _offsets(rows.lengths("metadata"))),
        "hashes.u64.npy": _write_array(directory / "hashes.u64.npy", hashes[order]),
        "hash_rows.u32.npy": _write_array(directory / "hash_rows.u32.npy", order.astype("<u4")),
    }


def _write_columns(directory: Path) -> dict[str, FileStamp]:
    """Write the columns of a segment's metadata. Where that fails for another reason than the disk, it goes without."""
    path = directory / COLUMNS_FILE
    try:
        return {COLUMNS_FILE: _write_chunks(path, write_columns(map_texts(directory, "metadata")))}
    except (ValueError, MemoryError):
        logger.exception("columns_not_written segment=%s", directory.name.removeprefix(BUILDING))
        path.unlink(missing_ok=True)
        return {}


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype="<u8")
    np.cumsum(lengths, out=offsets[1:].view("<i8"))
    return offsets


class _ChecksummedFile:
    """A file being written whose size and checksum are taken on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = self.crc32 = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes


def _write(path: Path, write: Callable[[_ChecksummedFile], None]) -> FileStamp:
    with path.open("xb") as file:
        checked = _ChecksummedFile(file)
        write(checked)
        file.flush()
        os.fsync(file.fileno())
    return FileStamp(checked.size, checked.crc32)


def _write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> FileStamp:
    def write(file: _ChecksummedFile) -> None:
        for chunk in chunks:
            if len(chunk):
                file.write(chunk)

    return _write(path, write)


def _write_array(path: Path, array: np.ndarray) -> FileStamp:
    return _write_rows(path, [array], shape=array.shape, dtype=array.dtype.str)


def _write_rows(path: Path, chunks: Iterable[np.ndarray], *, shape: tuple[int, ...], dtype: str) -> FileStamp:
    def write(file: _ChecksummedFile) -> None:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(file, header)
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype=dtype)
            if data.size:
                file.write(data.data.cast("B"))

    return _write(path, write)
