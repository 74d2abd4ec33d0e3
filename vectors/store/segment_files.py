"""The files of a segment: written once, checksummed, mapped by every process that searches.

A segment is a directory with one file per array:

    vectors.f32.npy        (n, d) float32, rows in key order
    squared_norms.f64.npy  (n,)   float64
    slots.u16.npy          (n,)   uint16
    seqs.i64.npy           (n,)   int64, the seq that last changed the row
    keys.bin, keys.u64.npy        ids as keys, packed, and their n + 1 offsets
    metadata.bin, metadata.u64.npy  compact JSON objects, packed, and their n + 1 offsets
    hashes.u64.npy, hash_rows.u32.npy  hashes of the keys in order, and the row of each
    columns.bin            columns of the metadata for filters, in segments of many rows

Later deletions are a new `deleted.<seq>.<token>.npy` (one bit per row) that the manifest names, and a search index is
an `index.<manifest>.<token>.bin`. A directory appears under its name only when all its files are on disk. Small files
are read, the others mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vectors.engine.filters import ColumnBudget
from vectors.engine.packed import PackedBytes
from vectors.engine.parts import FrozenPart
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

COLUMNS_FILE = "columns.bin"
"""The file that segments of many rows have too; filters are answered without it."""

_READ_BYTES = 4 * 1024 * 1024
_TOKEN_DIGITS = 8
_MOST_CHECKED = 4096
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
class IndexRecord:
    """What a manifest says of a segment's index: its file, and what its builder says of it, in JSON types."""

    name: str
    stamp: FileStamp
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What a manifest says of a segment. `deleted` names the file of deletions, None when there is none.

    `unindexed` says why there is no index although one was to be made: `recall_target`, which no setting reaches, and
    `reason`. `wish` is the newest wish that was heeded when its index was made, or when none could be (the key of an
    `IndexRequest` of this node), 0 for none.
    """

    uid: str
    rows: int
    dimension: int
    files: Mapping[str, FileStamp]
    deleted: str | None = None
    deleted_stamp: FileStamp | None = None
    deleted_rows: int = 0
    index: IndexRecord | None = None
    unindexed: Mapping[str, Any] | None = None
    wish: int = 0

    @property
    def alive(self) -> int:
        """Rows that are not deleted."""
        return self.rows - self.deleted_rows

    @property
    def size_bytes(self) -> int:
        """Bytes of its files, the index among them."""
        size = sum(stamp.size for stamp in self.files.values())
        return size if self.index is None else size + self.index.stamp.size

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON types."""
        stamp, index = self.deleted_stamp, self.index
        indexing: dict[str, Any] = {}
        if index is not None:
            indexing["index"] = [index.name, index.stamp.size, index.stamp.crc32, dict(index.summary)]
        if self.unindexed is not None:
            indexing["unindexed"] = dict(self.unindexed)
        if self.wish:
            indexing["wish"] = self.wish
        return {
            **indexing,
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
        record = cls(
            document["uid"],
            document["rows"],
            document["dimension"],
            files,
            unindexed=document.get("unindexed"),
            wish=document.get("wish", 0),
        )
        if document["deleted"] is not None:
            name, size, crc32, rows = document["deleted"]
            record = replace(record, deleted=name, deleted_stamp=FileStamp(size, crc32), deleted_rows=rows)
        if document.get("index") is not None:
            name, size, crc32, summary = document["index"]
            record = replace(record, index=IndexRecord(name, FileStamp(size, crc32), dict(summary)))
        return record


def stamps_of(segment: SegmentRecord) -> Mapping[str, FileStamp]:
    """Return size and checksum of a segment's files by name, deletions and index included."""
    stamps = dict(segment.files)
    if segment.deleted is not None and segment.deleted_stamp is not None:
        stamps[segment.deleted] = segment.deleted_stamp
    if segment.index is not None:
        stamps[segment.index.name] = segment.index.stamp
    return stamps


def segment_uid(token: int) -> str:
    """Return the uid of a new segment, which says under which lease it was written."""
    return f"{token:0{_TOKEN_DIGITS}x}{uuid.uuid4().hex[_TOKEN_DIGITS:]}"


def deleted_name(seq: int, token: int) -> str:
    """Return the name of a file of deletions as of `seq`, which says under which lease it was written."""
    return f"deleted.{seq}.{token:x}.npy"


def index_name(number: int, token: int) -> str:
    """Return the name of an index made for manifest `number`, which says under which lease it was written."""
    return f"index.{number}.{token:x}.bin"


class CheckedFiles:
    """Files that this process has found to be what they should be: they never change, so once is enough.

    For background work, which opens the same segments again and again and serves nobody from them.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, int, FileStamp]] = {}

    def check(self, path: Path, stamp: FileStamp) -> None:
        """Raise CorruptSegment unless the file has, or had when it was last looked at, the size and checksum."""
        try:
            about = path.stat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size, stamp)
        except OSError:
            seen = None
        if seen is None or self._known.get(path) != seen:
            check_file(path, stamp)
            if len(self._known) >= _MOST_CHECKED:
                self._known.clear()
            if seen is not None:
                self._known[path] = seen


def open_segment(
    directory: Path,
    record: SegmentRecord,
    *,
    budget: ColumnBudget | None = None,
    progress: Callable[[int], None] | None = None,
    checked: CheckedFiles | None = None,
) -> FrozenPart:
    """Map a segment without its index and columns, checking size and checksum of all other files.

    That also brings them into memory.
    `progress` is told the bytes as they are read. With `checked`, files that were checked before are not read again.
    Raise CorruptSegment when a file is missing, short or altered.
    """
    for name, stamp in record.files.items():
        if name == COLUMNS_FILE:
            continue
        if checked is None:
            check_file(directory / name, stamp, progress=progress)
        else:
            checked.check(directory / name, stamp)
    part = map_segment(directory, record, deleted=read_deleted(directory, record, progress=progress), budget=budget)
    if checked is None:
        _prefault(part.matrix)
    return part


def read_deleted(
    directory: Path, record: SegmentRecord, *, progress: Callable[[int], None] | None = None
) -> np.ndarray | None:
    """Return which rows of a segment are deleted, (n,) bool, None for none of them. Raise CorruptSegment."""
    if record.deleted is None or record.deleted_stamp is None:
        return None
    check_file(directory / record.deleted, record.deleted_stamp, progress=progress)
    try:
        bits = np.load(directory / record.deleted, allow_pickle=False)
        return np.unpackbits(bits, count=record.rows).astype(bool)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise CorruptSegment(f"segment {record.uid}: {error}", detail={"segment": record.uid}) from error


def map_segment(
    directory: Path, record: SegmentRecord, *, deleted: np.ndarray | None, budget: ColumnBudget | None = None
) -> FrozenPart:
    """Map a segment whose files are known to be right. Raise CorruptSegment when they are not."""
    try:
        part = FrozenPart(
            uid=record.uid,
            matrix=_map_array(directory / "vectors.f32.npy"),
            squared_norms=_map_array(directory / "squared_norms.f64.npy"),
            slots=_map_array(directory / "slots.u16.npy"),
            seqs=_map_array(directory / "seqs.i64.npy"),
            keys=map_texts(directory, "keys"),
            metadata=map_texts(directory, "metadata"),
            sorted_hashes=_map_array(directory / "hashes.u64.npy"),
            hash_rows=_map_array(directory / "hash_rows.u32.npy"),
            deleted=deleted,
            budget=budget,
        )
    except (FileNotFoundError, ValueError) as error:
        raise CorruptSegment(f"segment {record.uid}: {error}", detail={"segment": record.uid}) from error
    if part.matrix.shape != (record.rows, record.dimension):
        raise CorruptSegment(f"segment {record.uid} has another shape", detail={"segment": record.uid})
    return part


def map_texts(directory: Path, name: str) -> PackedBytes:
    """Map the `keys` or the `metadata` of a segment. Raise FileNotFoundError or ValueError when they are not there."""
    return PackedBytes(_map_bytes(directory / f"{name}.bin"), _map_array(directory / f"{name}.u64.npy"))


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


def remove_unlisted(parent: Path, *, keep: Mapping[str, set[str]], is_over: Callable[[int], bool]) -> int:
    """Remove segments below `parent`, and files of deletions and indexes, that `keep` ({segment uid: names of such
    files}) does not list; return how many paths went.

    Only what was written under a lease token that `is_over` says is no longer at work: a cleaner that was overtaken
    while it slept leaves alone what its successor has written and not yet listed, and all of them what a merge writes.
    """
    removed = 0
    if not parent.is_dir():
        return 0
    for directory in parent.iterdir():
        uid = directory.name.removeprefix(BUILDING)
        if uid not in keep or uid != directory.name:
            if is_over(_token_of(uid[:_TOKEN_DIGITS])):
                shutil.rmtree(directory, ignore_errors=True)
                removed += 1
            continue
        for path in [*directory.glob("*deleted.*"), *directory.glob("*index.*")]:
            token = _token_of(path.name.lstrip(".").split(".")[2])
            if path.name not in keep[uid] and is_over(token):
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


def _map_array(path: Path) -> np.ndarray:
    if path.stat().st_size < _MAP_FROM_BYTES:
        return np.load(path, allow_pickle=False)
    # A plain view: slices of a memmap object cost several times those of an array.
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _map_bytes(path: Path) -> np.ndarray:
    if path.stat().st_size < _MAP_FROM_BYTES:
        return np.frombuffer(path.read_bytes(), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
