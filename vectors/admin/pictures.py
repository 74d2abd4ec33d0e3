"""Rows as pictures: a vector's values as the grey levels of a PNG (ISO/IEC 15948), in a data URI. Pure."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from typing import NamedTuple

import numpy as np

_SHOWN_SIDE = 64
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_8_BIT = (8, 0, 0, 0, 0)
_NO_LINE_FILTER = 0


class PictureSize(NamedTuple):
    """Points in a line, and lines."""

    width: int
    height: int

    @property
    def shown(self) -> PictureSize:
        """The size on a page: a whole multiple, the longer side near 64 pixels, never less than its own."""
        factor = max(1, round(_SHOWN_SIDE / max(self)))
        return PictureSize(self.width * factor, self.height * factor)


def picture_size(text: str) -> PictureSize | None:
    """Return the size in a namespace's `picture` (WIDTHxHEIGHT, checked when it was stored); None when it is empty."""
    if not text:
        return None
    width, _, height = text.partition("x")
    return PictureSize(int(width), int(height))


def picture_uri(values: np.ndarray, size: PictureSize) -> str:
    """Return values (width * height,) float32 as a picture, black at the row's least value and white at its largest."""
    return "data:image/png;base64," + b64encode(_png(_grey_levels(values).reshape(size.height, size.width))).decode()


def _grey_levels(values: np.ndarray) -> np.ndarray:
    # float64: the range of two large float32 values may lie beyond float32.
    levels = values.astype(np.float64)
    least, largest = levels.min(), levels.max()
    if least == largest:
        return np.zeros(len(levels), dtype=np.uint8)
    return np.rint((levels - least) * (255 / (largest - least))).astype(np.uint8)


def _png(levels: np.ndarray) -> bytes:
    height, width = levels.shape
    lines = np.insert(levels, 0, _NO_LINE_FILTER, axis=1).tobytes()
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">II5B", width, height, *_GREY_8_BIT)),
            _chunk(b"IDAT", zlib.compress(lines)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
