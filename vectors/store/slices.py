"""Slices: consecutive entries of a log in one binary body, as they are sent to other copies and set aside in files.

A slice is `<magic: 4 bytes> <version: u8> <size of the rest: u64> <term, seq of the entry before: 2 × i64>
<count: u32>`, then for each entry `<seq, term: 2 × i64> <kind: u8> <namespace: 32 bytes> <crc32: u32> <length: u32>
<payload>`, and at the end the CRC-32 of all that. Little-endian. The size makes it possible to put slices one behind
the other in a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vectors.engine.operations import PayloadError
from vectors.errors import LogGap
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.log import Entry, Position
from vectors.store.statements import every, one

VERSION = 1
_MAGIC = b"MLVS"
_PREFIX = struct.Struct("<4sBQ")
_BEFORE = struct.Struct("<qqI")
_ENTRY = struct.Struct("<qqB32sII")
_CRC = struct.Struct("<I")
_SIZES_READ = 1024

# length(payload) is in the row itself: no payload is read for it, on either database.
_READ_SIZES = (
    "SELECT seq, length(payload) FROM vectors_logentry WHERE shard_id = %s AND seq > %s AND seq <= %s"
    f" ORDER BY seq LIMIT {_SIZES_READ}"
)
_READ_OLDEST = (
    "SELECT coalesce((SELECT min(seq) FROM vectors_logentry WHERE shard_id = h.id), h.last_seq + 1)"
    " FROM vectors_shardhead h WHERE h.id = %s"
)


def encode_slice(before: Position, entries: Sequence[Entry]) -> bytes:
    """Return the slice of entries that follow `before`."""
    parts = [_BEFORE.pack(*before, len(entries))]
    for entry in entries:
        parts.append(
            _ENTRY.pack(entry.seq, entry.term, entry.kind, entry.namespace.encode(), entry.crc32, len(entry.payload))
        )
        parts.append(entry.payload)
    parts.insert(0, _PREFIX.pack(_MAGIC, VERSION, sum(map(len, parts)) + _CRC.size))
    crc32 = 0
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    parts.append(_CRC.pack(crc32))
    return b"".join(parts)


def decode_slice(data: bytes | memoryview) -> tuple[Position, list[Entry]]:
    """Return what `encode_slice` was given; raise PayloadError for anything else than a whole and unaltered slice.

    The entries' own checksums are not looked at: `Entry.operation` does that.
    """
    view = memoryview(data)
    try:
        magic, version, size = _PREFIX.unpack_from(view)
        if magic != _MAGIC or version != VERSION:
            raise PayloadError("not a slice of a log, or of a version that is not known here")
        if len(view) != _PREFIX.size + size:
            raise PayloadError(f"the slice has {len(view)} bytes instead of {_PREFIX.size + size}")
        end = len(view) - _CRC.size
        if zlib.crc32(view[:end]) != _CRC.unpack_from(view, end)[0]:
            raise PayloadError("the checksum of the slice is wrong")
        term, seq, count = _BEFORE.unpack_from(view, _PREFIX.size)
        at = _PREFIX.size + _BEFORE.size
        entries = []
        for _ in range(count):
            number, entry_term, kind, namespace, crc32, length = _ENTRY.unpack_from(view, at)
            at += _ENTRY.size
            if at + length > end:
                raise PayloadError(f"entry {number} ends behind the slice")
            uid = namespace.rstrip(b"\0").decode()
            entries.append(Entry(number, entry_term, uid, kind, bytes(view[at : at + length]), crc32))
            at += length
        if at != end:
            raise PayloadError("the slice has more bytes than entries")
    except (struct.error, UnicodeDecodeError) as error:
        raise PayloadError(f"the slice cannot be read: {error}") from error
    return Position(term, seq), entries


def slices_in(path: Path) -> Iterator[tuple[Position, list[Entry]]]:
    """Yield the slices of a file that holds one behind the other; raise PayloadError where it is altered or torn."""
    with path.open("rb") as file:
        while prefix := file.read(_PREFIX.size):
            if len(prefix) < _PREFIX.size:
                raise PayloadError("the file ends within a slice")
            # A size that is altered may be of any size.
            left = path.stat().st_size - file.tell()
            yield decode_slice(prefix + file.read(min(left, _PREFIX.unpack(prefix)[2])))


def read_slice(shard_id: int, after_seq: int, *, through: int, max_bytes: int) -> list[Entry]:
    """Return the entries that follow `after_seq`, up to `through` and to `max_bytes` of payload, but at least one.

    Empty when there is nothing after `after_seq`. Raise LogGap when the next one is pruned, and StorageError and the
    like. A log that is cut back meanwhile may give entries of its new history: receivers refuse what is of a later
    term than the sender's.
    """
    if through <= after_seq:
        return []
    last = through if through == after_seq + 1 else _last_within(shard_id, after_seq, through, max_bytes)
    entries = list(log.read_after(shard_id, after_seq, through=last))
    if [entry.seq for entry in entries] != list(range(after_seq + 1, last + 1)):
        raise LogGap(
            f"the log of shard copy {shard_id} does not have all entries {after_seq + 1} to {last}",
            detail={"seq": after_seq + 1, "oldest_seq": oldest_seq(shard_id)},
        )
    return entries


@storage_faults()
def oldest_seq(shard_id: int) -> int:
    """Return the seq of the oldest entry that the log still has, that of the next one when it has none."""
    row = one(_READ_OLDEST, (shard_id,))
    if row is None:
        raise LogGap(f"shard copy {shard_id} is not on this node")
    return int(row[0])


@storage_faults()
def _last_within(shard_id: int, after_seq: int, through: int, max_bytes: int) -> int:
    last, total = after_seq + 1, 0
    for seq, size in every(_READ_SIZES, (shard_id, after_seq, through)):
        total += size
        if total > max_bytes and seq > last:
            break
        last = seq
    return last
