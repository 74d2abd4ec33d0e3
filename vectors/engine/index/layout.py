"""The file of an index: a header in JSON, small arrays, and behind them the lists that are mapped.

    8 bytes magic, 8 bytes length of the header (little-endian), the header, zeros up to a multiple of 64
    each array of the header, from its offset on
    the lists (`Scanner.list_chunks`), from a multiple of 4096 on to the end of the file

Offsets are from the beginning of the file. A reader checks all of them before it believes any.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

_MAGIC = b"MLVIDX\x00\x02"
_PREFIX = struct.Struct("<8sQ")
_ALIGNMENT = 64
_PAGE = 4096
_HEADER_BYTES = 16 * 1024 * 1024


class IndexFile(NamedTuple):
    """What a file has: `document` (JSON types), small arrays by name, and where the mapped lists are."""

    document: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    lists_offset: int
    size: int


def chunks(
    document: Mapping[str, Any], arrays: Mapping[str, np.ndarray], lists: Iterator[memoryview]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file in order."""
    entries = {}
    offset = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += _rounded(array.nbytes, _ALIGNMENT)
    header = orjson.dumps({"document": document, "arrays": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    first = _rounded(_PREFIX.size + len(header), _ALIGNMENT)
    yield _PREFIX.pack(_MAGIC, len(header)) + header.ljust(first - _PREFIX.size, b"\0")
    for array in arrays.values():
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).data.cast("B")
        yield bytes(_rounded(array.nbytes, _ALIGNMENT) - array.nbytes)
    yield bytes(_rounded(first + offset, _PAGE) - first - offset)
    yield from lists


def read(path: Path) -> IndexFile:
    """Return what a file has, its arrays read, its lists not. Raise ValueError for a file of another form."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise ValueError("the file of the index is too short")
        magic, length = _PREFIX.unpack(prefix)
        if magic != _MAGIC:
            raise ValueError("this is no index, or one of another format")
        first = _rounded(_PREFIX.size + length, _ALIGNMENT)
        if length > _HEADER_BYTES or first > size:
            raise ValueError("the header of the index is longer than it may be")
        try:
            header = orjson.loads(file.read(length))
            arrays, end = {}, 0
            for name, entry in header["arrays"].items():
                shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
                count = int(np.prod(shape, dtype=np.int64))
                if entry["offset"] != end or dtype.hasobject or min(shape, default=0) < 0:
                    raise ValueError("an array of the index is not where it should be")
                end += _rounded(count * dtype.itemsize, _ALIGNMENT)
                if first + end > size:
                    raise ValueError("an array of the index is longer than its file")
                file.seek(first + entry["offset"])
                arrays[name] = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype).reshape(shape)
            return IndexFile(header["document"], arrays, _rounded(first + end, _PAGE), size)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the header of the index cannot be read: {error!r}") from error


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to
