"""The layout of a file of columns: arrays one after the other, and a directory of them at the end.

    magic       16 bytes, the format in them
    arrays      each at a multiple of 64 bytes, little-endian
    directory   a JSON object that names the arrays by (offset, values, dtype)
    trailer     offset and size of the directory, uint64 each; its CRC-32, uint64; magic again

Sizes come last, so the file is written in one go while the columns are made one by one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

MAGIC = b"MLVDB columns 1\n"
_ALIGNMENT = 64
_TRAILER = struct.Struct(f"<QQQ{len(MAGIC)}s")

Section = list[Any]
"""Offset in bytes, values and dtype of an array, as the directory has them."""


class SectionWriter:
    """Hands out the bytes of a file piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = [MAGIC]
        self._offset = len(MAGIC)

    def add(self, array: np.ndarray | bytearray) -> Section:
        """Append an array (n,), or bytes, and return what the directory is to say of it."""
        values = np.frombuffer(array, dtype=np.uint8) if isinstance(array, bytearray) else np.ascontiguousarray(array)
        self._put(bytes(-self._offset % _ALIGNMENT))
        section: Section = [self._offset, len(values), values.dtype.newbyteorder("<").str]
        self._put(values.astype(section[2], copy=False).data.cast("B") if len(values) else b"")
        return section

    def finish(self, directory: Mapping[str, Any]) -> None:
        """Append the directory and the trailer."""
        text = orjson.dumps(directory)
        trailer = _TRAILER.pack(self._offset, len(text), zlib.crc32(text), MAGIC)
        self._put(text)
        self._put(trailer)

    def take(self) -> list[bytes | memoryview]:
        """Return the bytes that were appended since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _put(self, piece: bytes | memoryview) -> None:
        if piece:
            self._pieces.append(piece)
            self._offset += len(piece)


class SectionReader:
    """The arrays and the directory of a file whose bytes are `buffer` (uint8). Raise ValueError for any other."""

    def __init__(self, buffer: np.ndarray) -> None:
        if len(buffer) < len(MAGIC) + _TRAILER.size or buffer[: len(MAGIC)].tobytes() != MAGIC:
            raise ValueError("this is no file of columns, or one of another format")
        start, size, crc32, magic = _TRAILER.unpack(buffer[-_TRAILER.size :].tobytes())
        if magic != MAGIC or start + size + _TRAILER.size != len(buffer):
            raise ValueError("the file of columns has no end")
        text = buffer[start : start + size].tobytes()
        if zlib.crc32(text) != crc32:
            raise ValueError("the checksum of the directory of columns is wrong")
        self._buffer = buffer
        self._end = start
        self.directory: dict[str, Any] = orjson.loads(text)

    def array(self, section: Section, *dtypes: str, length: int | None = None) -> np.ndarray:
        """Return an array, which is not copied: of one of `dtypes`, with `length` values where that is given."""
        offset, values, dtype = section
        if dtype not in dtypes or (length is not None and values != length):
            raise ValueError(f"an array of columns is {values} {dtype}")
        if not 0 <= offset <= offset + values * np.dtype(dtype).itemsize <= self._end:
            raise ValueError("an array of columns lies outside of its file")
        return np.frombuffer(self._buffer, dtype=dtype, count=values, offset=offset)
