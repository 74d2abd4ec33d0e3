"""Rows of several parts in key order, gathered column by column: what a new segment is written from.

Rows are named by two numbers each, and texts are copied a chunk of rows at a time, so what is in memory of a merge does
not grow with the size of its rows. Keys of up to `_WIDEST` bytes (integers, UUIDs, short strings) are put in order by
numpy; longer ones are sorted as Python does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from vectors.engine import ids
from vectors.engine.packed import PackedBytes, pack
from vectors.engine.parts import FrozenPart, Part

Texts = Literal["keys", "metadata"]

_CHUNK_ROWS = 8192
_WIDEST = 40
_WORD_BYTES = 8


class RowOrder:
    """Living rows of `parts` in key order: the part of each, `owners` (n,) int32, and its row there, `rows` (n,) int64.

    At most one row of a key is alive in all of the parts.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        alive = [np.flatnonzero(part.living) for part in self.parts]
        owners = np.repeat(np.arange(len(alive), dtype=np.int32), [len(rows) for rows in alive])
        rows = np.concatenate(alive) if alive else np.empty(0, dtype=np.int64)
        if sum(1 for chosen in alive if len(chosen)) > 1 or not all(
            isinstance(part, FrozenPart) for part in self.parts
        ):
            order = _key_order(self.parts, alive)
            owners, rows = owners[order], rows[order]
        self.owners, self.rows = owners, rows.astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.rows)

    def positions_of(self, part: Part, rows: np.ndarray) -> np.ndarray:
        """Return where some rows of a part, (m,) int64, stand in this order; those that are not in it are left out."""
        inside = np.flatnonzero(self.owners == self.parts.index(part))
        positions = np.full(part.rows, -1, dtype=np.int64)
        positions[self.rows[inside]] = inside
        found = positions[rows]
        return found[found >= 0]

    def chunks(self, column: str) -> Iterator[np.ndarray]:
        """Yield a column's rows, some thousands at a time."""
        for start in range(0, len(self), _CHUNK_ROWS):
            yield self._gather(column, slice(start, start + _CHUNK_ROWS))

    def whole(self, column: str, dtype: str) -> np.ndarray:
        """Return a whole column."""
        if not len(self):
            return np.empty(0, dtype=dtype)
        return self._gather(column, slice(None)).astype(dtype, copy=False)

    def lengths(self, texts: Texts) -> np.ndarray:
        """Return the bytes of each key or of each row's metadata: (n,) int64."""
        found = np.empty(len(self), dtype=np.int64)
        for number, part in enumerate(self.parts):
            inside = np.flatnonzero(self.owners == number)
            found[inside] = _lengths(getattr(part, texts), self.rows[inside])
        return found

    def texts(self, texts: Texts) -> Iterator[bytes]:
        """Yield the keys, or the rows' metadata, one after the other, some thousands joined."""
        for start in range(0, len(self), _CHUNK_ROWS):
            yield b"".join(self._texts(texts, slice(start, start + _CHUNK_ROWS)))

    def hashes(self) -> np.ndarray:
        """Return the hashes of the keys: (n,) uint64; those of frozen rows are known."""
        found = np.empty(len(self), dtype="<u8")
        for number, part in enumerate(self.parts):
            inside = np.flatnonzero(self.owners == number)
            rows = self.rows[inside]
            found[inside] = part.hashes[rows] if isinstance(part, FrozenPart) else ids.hashes_of(_take(part.keys, rows))
        return found

    def _gather(self, column: str, where: slice) -> np.ndarray:
        owners, rows = self.owners[where], self.rows[where]
        first: np.ndarray = getattr(self.parts[owners[0]], column)
        gathered = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for number in np.unique(owners):
            chosen = owners == number
            gathered[chosen] = getattr(self.parts[number], column)[rows[chosen]]
        return gathered

    def _texts(self, texts: Texts, where: slice) -> list[bytes]:
        owners, rows = self.owners[where], self.rows[where]
        numbers = np.unique(owners).tolist()
        if len(numbers) == 1:
            return _take(getattr(self.parts[numbers[0]], texts), rows)
        gathered = np.empty(len(rows), dtype=object)
        for number in numbers:
            chosen = owners == number
            gathered[chosen] = _take(getattr(self.parts[number], texts), rows[chosen])
        found: list[bytes] = gathered.tolist()
        return found


def _key_order(parts: Sequence[Part], alive: Sequence[np.ndarray]) -> np.ndarray:
    """Return the positions that put the living rows of all parts, one after the other, in key order: (n,) int64."""
    if sum(map(len, alive)) == 0:
        return np.empty(0, dtype=np.int64)
    lengths = np.concatenate([_lengths(part.keys, rows) for part, rows in zip(parts, alive, strict=True)])
    if lengths.max() > _WIDEST:
        keys = [key for part, rows in zip(parts, alive, strict=True) for key in _take(part.keys, rows)]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    words = -(-int(lengths.max()) // _WORD_BYTES)
    columns = np.concatenate(
        [_words(part.keys, rows, words) for part, rows in zip(parts, alive, strict=True) if len(rows)], axis=1
    )
    # Of two keys that differ only in zero bytes at the end of one, the shorter comes first, as bytes compare.
    telling = [column for column in (lengths, *columns[::-1]) if column.min() != column.max()]
    if not telling:
        return np.arange(len(lengths))
    return np.lexsort(telling)


def _words(keys: Sequence[bytes], rows: np.ndarray, words: int) -> np.ndarray:
    """Return keys as big-endian numbers, filled up with zero bytes: (words, n) uint64."""
    packed = keys if isinstance(keys, PackedBytes) else PackedBytes(*pack(_take(keys, rows)))
    chosen = rows if isinstance(keys, PackedBytes) else np.arange(len(rows))
    blob = packed.blob
    starts = packed.offsets[chosen].astype(np.int64)
    lengths = packed.lengths[chosen]
    last = len(blob) - 1
    found = np.zeros((words, len(rows)), dtype=np.uint64)
    for place in range(words * _WORD_BYTES):
        letters = np.where(place < lengths, blob[np.minimum(starts + place, last)], 0).astype(np.uint64)
        found[place // _WORD_BYTES] |= letters << np.uint64(8 * (_WORD_BYTES - 1 - place % _WORD_BYTES))
    return found


def _lengths(texts: Sequence[bytes], rows: np.ndarray) -> np.ndarray:
    if isinstance(texts, PackedBytes):
        return texts.lengths[rows]
    return np.fromiter((len(texts[row]) for row in rows.tolist()), dtype=np.int64, count=len(rows))


def _take(texts: Sequence[bytes], rows: np.ndarray) -> list[bytes]:
    if isinstance(texts, PackedBytes):
        return texts.take(rows)
    return [texts[row] for row in rows.tolist()]
