"""Many byte strings in one buffer: how a segment holds ids and metadata."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np


class PackedBytes(Sequence[bytes]):
    """A sequence of byte strings over `blob` (bytes, uint8) and `offsets` (n + 1, uint64), neither of them copied."""

    __slots__ = ("_blob", "_offsets")

    def __init__(self, blob: np.ndarray, offsets: np.ndarray) -> None:
        self._blob = blob.data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, position: int) -> bytes: ...
    @overload
    def __getitem__(self, position: slice) -> list[bytes]: ...
    def __getitem__(self, position: int | slice) -> bytes | list[bytes]:
        if isinstance(position, slice):
            start, stop, step = position.indices(len(self))
            if step != 1:
                return [self[row] for row in range(start, stop, step)]
            bounds = self._offsets[start : stop + 1].tolist()
            blob = self._blob
            return [bytes(blob[low:high]) for low, high in pairwise(bounds)]
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(position)
        return bytes(self._blob[int(self._offsets[position]) : int(self._offsets[position + 1])])

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    @property
    def nbytes(self) -> int:
        """Bytes of buffer and offsets."""
        return self._blob.nbytes + self._offsets.nbytes

    @property
    def blob(self) -> np.ndarray:
        """The buffer: (bytes,) uint8, not to be written."""
        return np.frombuffer(self._blob, dtype=np.uint8)

    @property
    def offsets(self) -> np.ndarray:
        """Where each string begins in the buffer, and at last its end: (n + 1,) uint64, not to be written."""
        return self._offsets

    @property
    def lengths(self) -> np.ndarray:
        """The bytes of each string: (n,) int64."""
        return np.diff(self._offsets).astype(np.int64)

    def take(self, positions: np.ndarray) -> list[bytes]:
        """Return the strings at some positions (n,), in that order."""
        blob = self._blob
        lows, highs = self._offsets[positions].tolist(), self._offsets[positions + 1].tolist()
        return [bytes(blob[low:high]) for low, high in zip(lows, highs, strict=True)]

    def position(self, key: bytes, *, after: bool) -> int:
        """Return where `key` would stand in this sorted sequence; `after`: behind an equal one."""
        return bisect_right(self, key) if after else bisect_left(self, key)


def pack(items: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return (blob uint8, offsets (n + 1,) uint64) of the items."""
    offsets = np.zeros(len(items) + 1, dtype=np.uint64)
    np.cumsum(np.fromiter(map(len, items), dtype=np.uint64, count=len(items)), out=offsets[1:])
    return np.frombuffer(b"".join(items), dtype=np.uint8), offsets
