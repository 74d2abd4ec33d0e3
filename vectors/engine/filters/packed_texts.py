"""Strings of a column in a segment's file: the distinct ones in order, packed, and compared as they lie there.

Each string is followed by a byte that no UTF-8 has, so that what is found in a stretch of the buffer is found in one
string. The order of UTF-8 bytes is that of code points: a lookup by order or prefix is two bisections and then a
comparison of codes. Text lookups read the buffer a stretch at a time; no string is kept as a Python object.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import overload

import numpy as np

from vectors.engine.filters.blocks import Block

END = b"\xff"
_STRETCH = 4096
_FEW_VALUES = 16


class PackedTexts(Sequence[bytes]):
    """Distinct strings as UTF-8, ascending: `buffer` uint8, each followed by `END`, and where each begins.

    `offsets` (n + 1,) of any unsigned type; the last is the end of the buffer.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        self._buffer = buffer.data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, position: int) -> bytes: ...
    @overload
    def __getitem__(self, position: slice) -> list[bytes]: ...
    def __getitem__(self, position: int | slice) -> bytes | list[bytes]:
        if isinstance(position, slice):
            return [self[place] for place in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(position)
        return bytes(self._buffer[int(self._offsets[position]) : int(self._offsets[position + 1]) - 1])

    def place(self, text: str) -> int | None:
        """Return where a string is, None when it is not there."""
        wanted = text.encode()
        place = bisect_left(self, wanted)
        return place if place < len(self) and self[place] == wanted else None

    def interval(self, lookup: str, operands: Sequence[str]) -> tuple[int, int]:
        """Return where the strings are that are hit by lt, lte, gt, gte, range or startswith: from, to."""
        first = operands[0].encode()
        if lookup == "lt":
            return 0, bisect_left(self, first)
        if lookup == "lte":
            return 0, bisect_right(self, first)
        if lookup == "gt":
            return bisect_right(self, first), len(self)
        if lookup == "gte":
            return bisect_left(self, first), len(self)
        if lookup == "range":
            return bisect_left(self, first), bisect_right(self, operands[1].encode())
        return bisect_left(self, first), bisect_left(self, first + END)

    def hits(self, lookup: str, operand: str) -> np.ndarray:
        """Return which strings are hit by contains, endswith or icontains (operand casefolded): (n,) bool."""
        found = np.zeros(len(self), dtype=bool)
        wanted = operand.encode() + (END if lookup == "endswith" else b"")
        for start in range(0, len(self), _STRETCH):
            offsets = self._offsets[start : start + _STRETCH + 1].astype(np.int64)
            stretch = bytes(self._buffer[offsets[0] : offsets[-1]])
            if lookup == "icontains":
                if not stretch.translate(None, END).isascii():
                    texts = stretch[:-1].split(END)
                    found[start : start + len(texts)] = [operand in text.decode().casefold() for text in texts]
                    continue
                stretch = stretch.lower()
            if wanted in stretch:
                places = _occurrences(wanted, np.frombuffer(stretch, dtype=np.uint8)) + offsets[0]
                found[start + offsets.searchsorted(places, side="right") - 1] = True
        return found


def _occurrences(wanted: bytes, stretch: np.ndarray) -> np.ndarray:
    """Return where `wanted` begins in a stretch of bytes: (m,) int64, of an empty one everywhere."""
    counts = np.bincount(stretch, minlength=256)
    rarest = min(range(len(wanted)), key=lambda place: counts[wanted[place]], default=0)
    places = np.flatnonzero(stretch == wanted[rarest]) - rarest if wanted else np.arange(len(stretch))
    places = places[(places >= 0) & (places <= len(stretch) - len(wanted))]
    for offset, byte in enumerate(wanted):
        places = places[stretch[places + offset] == byte]
    return places


class PackedTextBlock(Block):
    """Strings by their places in `distinct`: `values` of an unsigned type, all complete and read-only."""

    def __init__(self, distinct: PackedTexts) -> None:
        super().__init__(np.uint8)
        self._distinct = distinct

    def compare(self, lookup: str, operands: Sequence[str], span: slice) -> np.ndarray:
        """Return which values in `span` are hit by any lookup but isnull: (m,) bool."""
        codes = self.values.view[span]
        if lookup in ("exact", "ne", "in"):
            wanted = [place for place in map(self._distinct.place, operands) if place is not None]
            found = self._among(codes, np.array(wanted, dtype=np.int64))
            return ~found if lookup == "ne" else found
        if lookup in ("contains", "endswith", "icontains"):
            return self._among(codes, np.flatnonzero(self._distinct.hits(lookup, operands[0])))
        low, high = self._distinct.interval(lookup, operands)
        if low >= high:
            return np.zeros(len(codes), dtype=bool)
        if high == len(self._distinct):
            return np.asarray(codes >= low)
        return np.asarray(codes < high) if low == 0 else (codes >= low) & (codes < high)

    def _among(self, codes: np.ndarray, places: np.ndarray) -> np.ndarray:
        if len(places) <= _FEW_VALUES:
            found = np.zeros(len(codes), dtype=bool)
            for place in places.tolist():
                found |= codes == place
            return found
        table = np.zeros(len(self._distinct), dtype=bool)
        table[places] = True
        return table.take(codes)
