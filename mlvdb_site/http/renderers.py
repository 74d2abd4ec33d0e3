"""What goes out: JSON and msgpack of the same answers.

An answer is made of plain values and two kinds of leaves: numpy arrays (vectors) and `RawJSON` (metadata, kept in the
compact JSON it is stored in). JSON writes both without a Python object per number or key; msgpack sends vectors as
raw little-endian float32 `bin` and metadata as maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgpack
import numpy as np
import orjson
from rest_framework.renderers import BaseRenderer

JSON_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
PIECE_ROWS = 256
"""Rows that a streamed list renders at a time."""


class RawJSON:
    """Text that is JSON already, embedded as it is."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawJSON) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"RawJSON({self.text!r})"

    def load(self) -> Any:
        """Return the value."""
        return orjson.loads(self.text)


def dump_json(data: Any) -> bytes:
    """Return an answer as compact JSON; raise TypeError for an object that has no JSON form."""
    return orjson.dumps(data, default=_json_leaf, option=JSON_OPTIONS)


def dump_msgpack(data: Any) -> bytes:
    """Return an answer as msgpack; raise TypeError for an object that has no such form."""
    return msgpack.packb(data, default=_msgpack_leaf)


class JSONRenderer(BaseRenderer):
    """Compact UTF-8 JSON (RFC 8259)."""

    media_type = "application/json"
    format = "json"
    charset = None
    render_style = "text"

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return the body; no data is no body."""
        return b"" if data is None else dump_json(data)

    def stream(self, rows: Iterable[Any], count: int) -> Iterator[bytes]:
        """Yield a list piece by piece, so that a long one is never held whole."""
        before = b"["
        for piece in _pieces(rows):
            yield before + dump_json(piece)[1:-1]
            before = b","
        yield b"]" if count else b"[]"


class MsgpackRenderer(BaseRenderer):
    """msgpack; vectors are raw little-endian float32."""

    media_type = "application/msgpack"
    format = "msgpack"
    charset = None
    render_style = "binary"

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return the body; no data is no body."""
        return b"" if data is None else dump_msgpack(data)

    def stream(self, rows: Iterable[Any], count: int) -> Iterator[bytes]:
        """Yield a list piece by piece, so that a long one is never held whole."""
        yield msgpack.Packer().pack_array_header(count)
        for piece in _pieces(rows):
            yield b"".join([dump_msgpack(row) for row in piece])


def _json_leaf(value: Any) -> Any:
    if type(value) is RawJSON:
        return orjson.Fragment(value.text)
    if isinstance(value, np.ndarray):
        # orjson takes exactly numpy.ndarray, C-contiguous and native: not a memmap, not a column.
        return np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True, subok=False)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _msgpack_leaf(value: Any) -> Any:
    if type(value) is RawJSON:
        return orjson.loads(value.text)
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no msgpack form")


def _pieces(rows: Iterable[Any]) -> Iterator[list[Any]]:
    piece: list[Any] = []
    for row in rows:
        piece.append(row)
        if len(piece) == PIECE_ROWS:
            yield piece
            piece = []
    if piece:
        yield piece
