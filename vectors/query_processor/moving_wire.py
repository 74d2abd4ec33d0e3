"""The binary form of a move's pages, as they go from node to node.

A page is `<magic: 4 bytes> <version: u8> <msgpack map> <CRC-32 of all before: u32 LE>`. Operations are in it as
`[uid of the namespace, kind, payload]`, the payload as in a log (`vectors.engine.operations`): values stay raw float32.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from vectors.engine.distances import METRICS, Metric
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Delete, Operation, Patch, PayloadError, Upsert, decode, encode
from vectors.query_processor.moving_pages import EntriesPage, RowsPage
from vectors.store.log import Position

VERSION = 1
_MAGIC = b"MLVM"
_PREFIX = struct.Struct("<4sB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TakeRequest:
    """The arguments of `MovingCopy.take`."""

    move: str
    before: str
    after: str
    operations: Sequence[tuple[str, Operation]]
    namespaces: Mapping[str, NamespaceSpec]


def encode_rows(page: RowsPage) -> bytes:
    """Return the binary form of a page of rows."""
    return _packed(
        {
            "namespaces": [_spec_document(spec) for spec in page.namespaces.values()],
            "operations": _operation_documents(page.operations),
            "cursor": page.cursor,
            "last": page.is_last,
            "bytes": page.size_bytes,
        }
    )


def decode_rows(data: bytes | memoryview) -> RowsPage:
    """Return what `encode_rows` was given. Raise PayloadError for anything else."""
    with _reading(data) as part:
        specs = _specs(part["namespaces"])
        batches = []
        for uid, operation in _operations(part["operations"]):
            if not isinstance(operation, Upsert):
                raise PayloadError("a page of rows has something else in it")
            batches.append((specs[uid], operation))
        cursor, is_last, size_bytes = part["cursor"], part["last"], part["bytes"]
        if type(cursor) is not str or type(is_last) is not bool or type(size_bytes) is not int:
            raise PayloadError("cursor, last and bytes of a page are a string, a boolean and a number")
        return RowsPage(batches, cursor, is_last, sum(upsert.rows for _, upsert in batches), size_bytes)


def encode_entries(page: EntriesPage) -> bytes:
    """Return the binary form of a page of entries."""
    return _packed(
        {
            "operations": _operation_documents(page.operations),
            "position": list(page.position),
            "at_head": page.is_at_head,
        }
    )


def decode_entries(data: bytes | memoryview) -> EntriesPage:
    """Return what `encode_entries` was given. Raise PayloadError for anything else."""
    with _reading(data) as part:
        term, seq = part["position"]
        if type(term) is not int or type(seq) is not int or type(part["at_head"]) is not bool:
            raise PayloadError("a position is two numbers")
        return EntriesPage(_operations(part["operations"]), Position(term, seq), part["at_head"])


def encode_take(request: TakeRequest) -> bytes:
    """Return the binary form of a request to take rows."""
    return _packed(
        {
            "move": request.move,
            "before": request.before,
            "after": request.after,
            "operations": _operation_documents(request.operations),
            "namespaces": [_spec_document(spec) for spec in request.namespaces.values()],
        }
    )


def decode_take(data: bytes | memoryview) -> TakeRequest:
    """Return what `encode_take` was given. Raise PayloadError for anything else."""
    with _reading(data) as part:
        move, before, after = (part[name] for name in ("move", "before", "after"))
        if not all(type(text) is str for text in (move, before, after)):
            raise PayloadError("move and cursors are strings")
        return TakeRequest(move, before, after, _operations(part["operations"]), _specs(part["namespaces"]))


@contextmanager
def _reading(data: bytes | memoryview) -> Iterator[dict[str, Any]]:
    """Yield the map in a page, checked; what its reading raises for a missing or wrong part is a PayloadError."""
    view = memoryview(data)
    try:
        magic, version = _PREFIX.unpack_from(view)
        if magic != _MAGIC or version != VERSION:
            raise PayloadError("not a page of a move, or of a version that is not known here")
        end = len(view) - _CRC.size
        if end < _PREFIX.size or zlib.crc32(view[:end]) != _CRC.unpack_from(view, end)[0]:
            raise PayloadError("the checksum of the page is wrong")
        yield msgpack.unpackb(view[_PREFIX.size : end], max_bin_len=len(view), max_array_len=len(view))
    except PayloadError:
        raise
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"the page cannot be read: {error!r}") from error


def _packed(part: Mapping[str, Any]) -> bytes:
    data = _PREFIX.pack(_MAGIC, VERSION) + msgpack.packb(part)
    return data + _CRC.pack(zlib.crc32(data))


def _operation_documents(operations: Sequence[tuple[str, Operation]]) -> list[list[Any]]:
    return [[uid, int(operation.kind), encode(operation)] for uid, operation in operations]


def _operations(documents: Sequence[Any]) -> list[tuple[str, Operation]]:
    operations: list[tuple[str, Operation]] = []
    for uid, kind, payload in documents:
        operation = decode(kind, payload)
        if type(uid) is not str or not isinstance(operation, (Upsert, Delete, Patch)):
            raise PayloadError("a page has rows, patches and deletes of namespaces")
        operations.append((uid, operation))
    return operations


def _spec_document(spec: NamespaceSpec) -> list[Any]:
    return [spec.uid, spec.name, spec.dimension, spec.metric, spec.recall_target, spec.picture]


def _specs(documents: Sequence[Any]) -> dict[str, NamespaceSpec]:
    specs = {}
    for uid, name, dimension, metric, recall_target, picture in documents:
        texts = all(type(text) is str for text in (uid, name, metric, picture))
        if not texts or metric not in METRICS or type(dimension) is not int or dimension < 1:
            raise PayloadError("a namespace of the page is none")
        specs[uid] = NamespaceSpec(uid, name, dimension, cast(Metric, metric), float(recall_target), picture)
    return specs
