"""Digests of contents: equal for two copies that hold the same rows, however these lie in segments and tail.

A row's digest is BLAKE2b (RFC 7693) over its namespace, key, value bytes and metadata; that of a set of rows is the
sum of theirs mod 2^128, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import orjson

from vectors.engine.ids import SLOT_COUNT
from vectors.engine.namespace import NamespaceView
from vectors.engine.parts import PartView
from vectors.engine.shard import ShardEngine

_BYTES = 16
_CHUNK_BYTES = 4 * 1024 * 1024
_CHUNK_ROWS = 8192
# A sum of fewer than 2^32 numbers of 32 bits fits in 64.
_LIMBS = _BYTES // 4


class _Chunk(NamedTuple):
    """Living rows of one part: `slots` (n,) uint16 and digests as `limbs` (n, 4) uint32, the lowest first."""

    slots: np.ndarray
    limbs: np.ndarray


def view_digest(view: NamespaceView) -> tuple[int, str]:
    """Return the number of living rows of a namespace and their digest, which is the same under any uid."""
    total, count = 0, 0
    for chunk in _chunks(view, prefix=b""):
        total += _number(chunk.limbs.sum(axis=0, dtype=np.uint64))
        count += len(chunk.slots)
    return count, _text(total)


def range_digests(engine: ShardEngine, ranges: int = 64) -> list[tuple[int, str]]:
    """Return rows and digest of each of `ranges` equal ranges of slots, over all namespaces.

    All at one position: the engine's when this is called, which goes on applying entries meanwhile. Memory is bound by
    a chunk of rows.
    """
    with engine.lock:
        views = [namespace.view() for namespace in engine.namespaces()]
    totals = [0] * ranges
    counts = np.zeros(ranges, dtype=np.int64)
    for view in views:
        uid = view.spec.uid.encode()
        for chunk in _chunks(view, prefix=bytes((len(uid),)) + uid):
            owners = chunk.slots.astype(np.int64) * ranges // SLOT_COUNT
            order = np.argsort(owners, kind="stable")
            numbers, starts = np.unique(owners[order], return_index=True)
            sums = np.add.reduceat(chunk.limbs[order].astype(np.uint64), starts, axis=0)
            for number, limbs in zip(numbers.tolist(), sums, strict=True):
                totals[number] += _number(limbs)
            counts += np.bincount(owners, minlength=ranges)
    return [(count, _text(total)) for count, total in zip(counts.tolist(), totals, strict=True)]


def _chunks(view: NamespaceView, *, prefix: bytes) -> Iterator[_Chunk]:
    step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (4 * view.spec.dimension)))
    for part in view.parts:
        for start in range(0, part.rows, step):
            stop = min(start + step, part.rows)
            chosen = None if part.living is None else np.flatnonzero(part.living[start:stop])
            if chosen is None or len(chosen) == stop - start:
                yield _chunk(part, start, stop, None, prefix)
            elif len(chosen):
                yield _chunk(part, start, stop, chosen, prefix)


def _chunk(part: PartView, start: int, stop: int, chosen: np.ndarray | None, prefix: bytes) -> _Chunk:
    slots, values = part.part.slots[start:stop], part.part.matrix[start:stop]
    keys, metadata = part.part.keys[start:stop], part.part.metadata[start:stop]
    if chosen is not None:
        slots, values = slots[chosen], values[chosen]
        keys, metadata = [keys[row] for row in chosen.tolist()], [metadata[row] for row in chosen.tolist()]
    block = np.ascontiguousarray(values, dtype="<f4")
    width = block.shape[1] * 4
    rows = block.reshape(-1).data.cast("B")
    # One buffer and one call of the hash for each row: this loop is most of the time.
    digests = b"".join(
        [
            blake2b(
                b"".join((prefix, len(key).to_bytes(4, "big"), key, rows[at : at + width], _canonical(text))),
                digest_size=_BYTES,
            ).digest()
            for key, text, at in zip(keys, metadata, range(0, width * len(keys), width), strict=True)
        ]
    )
    return _Chunk(slots, np.frombuffer(digests, dtype="<u4").reshape(len(keys), _LIMBS))


def _canonical(metadata: bytes) -> bytes:
    """Return metadata with sorted keys: two nodes may have merged the same patches in another order of keys."""
    if metadata == b"{}":
        return metadata
    return orjson.dumps(orjson.loads(metadata), option=orjson.OPT_SORT_KEYS)


def _number(limbs: np.ndarray) -> int:
    return sum(int(limb) << 32 * place for place, limb in enumerate(limbs.tolist()))


def _text(total: int) -> str:
    return f"{total % (1 << 8 * _BYTES):0{2 * _BYTES}x}"
