"""Rows as pictures: what the PNG says is what the vector says."""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode

import numpy as np
import pytest

from vectors.admin.pictures import PictureSize, picture_size, picture_uri


def _decoded(uri: str) -> np.ndarray:
    """Return the grey levels of a PNG data URI: (height, width) uint8."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    png = b64decode(data, validate=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(png):
        length, name = struct.unpack_from(">I4s", png, place)
        body = png[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", png, place + 8 + length) == (zlib.crc32(name + body),)
        chunks[name] = body
        place += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_a_picture_runs_from_black_at_the_least_to_white_at_the_largest_value() -> None:
    levels = _decoded(picture_uri(np.asarray([-2, 0, 2, 6, 4, -2], dtype=np.float32), PictureSize(3, 2)))
    assert levels.tolist() == [[0, 64, 128], [255, 191, 0]]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([0, 0, 0, 0], id="all the same"),
        pytest.param([3.4e38, -3.4e38, 0, 0], id="a range beyond float32"),
        pytest.param([1e-45, 0, 0, 0], id="the smallest range"),
    ],
)
def test_a_picture_of_extreme_values_is_still_a_picture(values: list[float]) -> None:
    levels = _decoded(picture_uri(np.asarray(values, dtype=np.float32), PictureSize(2, 2)))
    assert levels.shape == (2, 2)
    assert int(levels.max()) == (0 if len(set(values)) == 1 else 255)


def test_the_size_of_a_picture_is_read_from_its_namespace_and_enlarged_for_the_page() -> None:
    assert picture_size("") is None
    assert picture_size("8x4") == PictureSize(8, 4)
    assert PictureSize(8, 4).shown == PictureSize(64, 32)
    assert PictureSize(100, 40).shown == PictureSize(100, 40)
