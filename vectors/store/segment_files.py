"""The files of a segment: written once, checksummed, mapped by every process that searches.

A segment is a directory with one file per array:

    vectors.f32.npy        (n, d) float32, rows in key order
    squared_norms.f64.npy  (n,)   float64
    slots.u16.npy          (n,)   uint16
    seqs.i64.npy           (n,)   int64, the seq that last changed the row
    keys.bin, keys.u64.npy        ids as keys, packed, and their n + 1 offsets
    metadata.bin, metadata.u64.npy  compact JSON objects, packed, and their n + 1 offsets
    hashes.u64.npy, hash_rows.u32.npy  hashes of the keys in order, and the row of each
    index/                        the search index of the segment, when it has one

Later deletions are a new `deleted.<seq>.<token>.npy` (one bit per row) that the manifest names. A directory appears
under its name only when all its files are on disk. Small files are read, the others mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from vectors.engine import ids
from vectors.engine.filters import ColumnBudget
from vectors.engine.packed import PackedBytes, pack
from vectors.engine.parts import FrozenPart, Part
from vectors.errors import CorruptSegment

FILE_NAMES = frozenset(
    {
        "vectors.f32.npy",
        "squared_norms.f64.npy",
        "slots.u16.npy",
        "seqs.i64.npy",
        "keys.bin",
        "keys.u64.npy",
        "metadata.bin",
        "metadata.u64.npy",
        "hashes.u64.npy",
        "hash_rows.u32.npy",
    }
)
"""The files every segment has."""

_CHUNK_ROWS = 8192
_READ_BYTES = 4 * 1024 * 1024
_TOKEN_DIGITS = 8
BUILDING = ".building-"
"""Begins the name of a segment's directory until all its files are in it."""
# A mapping holds a file descriptor and one of the system's few map entries: small files are read instead.
_MAP_FROM_BYTES = 128 * 1024
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_LOST = frozenset({errno.ENOENT, errno.EIO, errno.ENOTDIR, errno.EISDIR})


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size and CRC-32 of a file, as a manifest records them."""

    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What a manifest says of a segment. `deleted` names the file of deletions, None when there is none."""

    uid: str
    rows: int
    dimension: int
    files: Mapping[str, FileStamp]
    deleted: str | None = None
    deleted_stamp: FileStamp | None = None
    deleted_rows: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(stamp.size for stamp in self.files.values())

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON types."""
        stamp = self.deleted_stamp
        return {
            "uid": self.uid,
            "rows": self.rows,
            "dimension": self.dimension,
            "files": {name: [entry.size, entry.crc32] for name, entry in self.files.items()},
            "deleted": None if stamp is None else [self.deleted, stamp.size, stamp.crc32, self.deleted_rows],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SegmentRecord:
        """Read `to_document`'s result."""
        files = {name: FileStamp(*stamp) for name, stamp in document["files"].items()}
        deleted = document["deleted"]
        if deleted is None:
            return cls(document["uid"], document["rows"], document["dimension"], files)
        name, size, crc32, rows = deleted
        return cls(document["uid"], document["rows"], document["dimension"], files, name, FileStamp(size, crc32), rows)


Rows = Sequence[tuple[Part, int]]


def write_segment(parent: Path, *, rows: Rows, dimension: int, token: int) -> SegmentRecord:
    """Write the `rows` (already in key order) as a new segment below `parent` and return its record.

    The uid begins with the writer's lease token. On an error, a full disk say, nothing of it stays.
    """
    uid = segment_uid(token)
    make_directories(parent)
    building = parent / f"{BUILDING}{uid}"
    building.mkdir()
    try:
        files = _write_files(building, rows, dimension)
        sync_directory(building)
        building.rename(parent / uid)
        sync_directory(parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return SegmentRecord(uid, len(rows), dimension, files)


def segment_uid(token: int) -> str:
    """Return the uid of a new segment, which says under which lease it was written."""
    return f"{token:0{_TOKEN_DIGITS}x}{uuid.uuid4().hex[_TOKEN_DIGITS:]}"


def deleted_name(seq: int, token: int) -> str:
    """Return the name of a file of deletions as of `seq`, which says under which lease it was written."""
    return f"deleted.{seq}.{token:x}.npy"


def write_deleted(directory: Path, *, seq: int, deleted: np.ndarray, token: int) -> tuple[str, FileStamp]:
    """Write the deletions (n,) bool of a segment as of `seq`; return the file's name and stamp."""
    name = deleted_name(seq, token)
    temporary = directory / f".{name}-{uuid.uuid4().hex}"
    try:
        stamp = _write_array(temporary, np.packbits(deleted))
        temporary.rename(directory / name)
        sync_directory(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return name, stamp


def open_segment(
    directory: Path,
    record: SegmentRecord,
    *,
    budget: ColumnBudget | None = None,
    progress: Callable[[int], None] | None = None,
) -> FrozenPart:
    """Map a segment, checking every file's size and checksum, which also brings it into memory.

    `progress` is told the bytes as they are read. Raise CorruptSegment when a file is missing, short or altered.
    """
    for name, stamp in record.files.items():
        check_file(directory / name, stamp, progress=progress)
    deleted = None
    if record.deleted is not None and record.deleted_stamp is not None:
        check_file(directory / record.deleted, record.deleted_stamp, progress=progress)
    try:
        if record.deleted is not None:
            bits = np.load(directory / record.deleted, allow_pickle=False)
            deleted = np.unpackbits(bits, count=record.rows).astype(bool)
        part = FrozenPart(
            uid=record.uid,
            matrix=_map_array(directory / "vectors.f32.npy"),
            squared_norms=_map_array(directory / "squared_norms.f64.npy"),
            slots=_map_array(directory / "slots.u16.npy"),
            seqs=_map_array(directory / "seqs.i64.npy"),
            keys=PackedBytes(_map_bytes(directory / "keys.bin"), _map_array(directory / "keys.u64.npy")),
            metadata=PackedBytes(_map_bytes(directory / "metadata.bin"), _map_array(directory / "metadata.u64.npy")),
            sorted_hashes=_map_array(directory / "hashes.u64.npy"),
            hash_rows=_map_array(directory / "hash_rows.u32.npy"),
            deleted=deleted,
            budget=budget,
        )
    except (FileNotFoundError, ValueError) as error:
        raise CorruptSegment(f"segment {record.uid}: {error}", detail={"segment": record.uid}) from error
    if part.matrix.shape != (record.rows, record.dimension):
        raise CorruptSegment(f"segment {record.uid} has another shape", detail={"segment": record.uid})
    _prefault(part.matrix)
    return part


def _prefault(matrix: np.ndarray) -> None:
    """Touch every page, so that the first search pays no page faults: the file is in the page cache, not yet mapped."""
    page = matrix.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE]
    if page.size:
        page.max()


def check_file(path: Path, stamp: FileStamp, *, progress: Callable[[int], None] | None = None) -> None:
    """Raise CorruptSegment unless the file has the size and checksum of `stamp`."""
    where = {"segment": path.parent.name, "file": path.name}
    crc32 = size = 0
    try:
        with path.open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(min(_READ_BYTES, max(stamp.size, 1))))
            while count := file.readinto(buffer):
                crc32 = zlib.crc32(buffer[:count], crc32)
                size += count
                if progress is not None:
                    progress(count)
    except OSError as error:
        if error.errno not in _LOST:
            # Too many open files, no memory: this process cannot read it now, which says nothing about the file.
            raise
        raise CorruptSegment(f"{path.name} of segment {path.parent.name}: {error.strerror}", detail=where) from error
    if size != stamp.size:
        raise CorruptSegment(
            f"{path.name} of segment {path.parent.name} has {size} bytes instead of {stamp.size}", detail=where
        )
    if crc32 != stamp.crc32:
        raise CorruptSegment(f"the checksum of {path.name} of segment {path.parent.name} is wrong", detail=where)


def remove_unlisted(parent: Path, *, keep: Mapping[str, set[str]], below: int) -> int:
    """Remove segments below `parent` and deletion files that `keep` ({segment uid: names of deletion files}) does not
    list; return how many paths went.

    Only what a holder of a lease before `below` wrote: a cleaner that was overtaken while it slept leaves alone what
    its successor has written and not yet listed.
    """
    removed = 0
    if not parent.is_dir():
        return 0
    for directory in parent.iterdir():
        uid = directory.name.removeprefix(BUILDING)
        if uid not in keep or uid != directory.name:
            if _token_of(uid[:_TOKEN_DIGITS]) < below:
                shutil.rmtree(directory, ignore_errors=True)
                removed += 1
            continue
        for path in directory.glob("*deleted.*"):
            token = _token_of(path.name.lstrip(".").split(".")[2])
            if path.name not in keep[uid] and token < below:
                path.unlink(missing_ok=True)
                removed += 1
    with suppress(OSError):
        # Fails, as it should, while something is in it.
        parent.rmdir()
    return removed


def make_directories(path: Path) -> None:
    """Make a directory and those above it, each on disk in its parent before anything is in it."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` be the same file as `source`; where the file systems cannot link, a copy that is on disk.

    Raise FileNotFoundError when there is no source.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_directory(directory: Path) -> None:
    """Put on disk which names a directory has."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _token_of(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _write_files(directory: Path, rows: Rows, dimension: int) -> dict[str, FileStamp]:
    keys = [part.keys[row] for part, row in rows]
    key_blob, key_offsets = pack(keys)
    metadata_blob, metadata_offsets = pack([part.metadata[row] for part, row in rows])
    hashes = ids.hashes_of(keys)
    order = np.argsort(hashes, kind="stable")
    columns = _Gathered(rows)
    return {
        "vectors.f32.npy": _write_rows(
            directory / "vectors.f32.npy", columns.chunks("matrix"), shape=(len(rows), dimension), dtype="<f4"
        ),
        "squared_norms.f64.npy": _write_array(
            directory / "squared_norms.f64.npy", columns.whole("squared_norms", "<f8")
        ),
        "slots.u16.npy": _write_array(directory / "slots.u16.npy", columns.whole("slots", "<u2")),
        "seqs.i64.npy": _write_array(directory / "seqs.i64.npy", columns.whole("seqs", "<i8")),
        "keys.bin": _write_bytes(directory / "keys.bin", key_blob),
        "keys.u64.npy": _write_array(directory / "keys.u64.npy", key_offsets),
        "metadata.bin": _write_bytes(directory / "metadata.bin", metadata_blob),
        "metadata.u64.npy": _write_array(directory / "metadata.u64.npy", metadata_offsets),
        "hashes.u64.npy": _write_array(directory / "hashes.u64.npy", hashes[order]),
        "hash_rows.u32.npy": _write_array(directory / "hash_rows.u32.npy", order.astype("<u4")),
    }


class _Gathered:
    """Columns of rows that lie scattered over parts, gathered part by part with numpy."""

    def __init__(self, rows: Rows) -> None:
        numbers: dict[int, int] = {}
        self._parts: list[Part] = []
        owners = np.empty(len(rows), dtype=np.int32)
        self._rows = np.empty(len(rows), dtype=np.int64)
        for position, (part, row) in enumerate(rows):
            number = numbers.get(id(part))
            if number is None:
                number = numbers[id(part)] = len(self._parts)
                self._parts.append(part)
            owners[position], self._rows[position] = number, row
        self._owners = owners

    def chunks(self, column: str) -> Iterable[np.ndarray]:
        """Yield the column's rows, `_CHUNK_ROWS` at a time."""
        for start in range(0, len(self._rows), _CHUNK_ROWS):
            yield self._gather(column, slice(start, start + _CHUNK_ROWS))

    def whole(self, column: str, dtype: str) -> np.ndarray:
        """Return the whole column."""
        if not len(self._rows):
            return np.empty(0, dtype=dtype)
        return self._gather(column, slice(None)).astype(dtype, copy=False)

    def _gather(self, column: str, where: slice) -> np.ndarray:
        owners, rows = self._owners[where], self._rows[where]
        first: np.ndarray = getattr(self._parts[owners[0]], column)
        gathered = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for number in np.unique(owners):
            chosen = owners == number
            gathered[chosen] = getattr(self._parts[number], column)[rows[chosen]]
        return gathered


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


def _write_bytes(path: Path, blob: np.ndarray) -> FileStamp:
    def write(file: _ChecksummedFile) -> None:
        if blob.size:
            file.write(blob.data)

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


def _map_array(path: Path) -> np.ndarray:
    if path.stat().st_size < _MAP_FROM_BYTES:
        return np.load(path, allow_pickle=False)
    # A plain view: slices of a memmap object cost several times those of an array.
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _map_bytes(path: Path) -> np.ndarray:
    if path.stat().st_size < _MAP_FROM_BYTES:
        return np.frombuffer(path.read_bytes(), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
