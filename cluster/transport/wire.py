"""Reads and writes between nodes in binary: requests and answers of the port, as msgpack with a checksum.

A request is a map `{"op", "body", "crc"}` whose `body` is a packed list: arguments, options, and the position that the
copy must have. An answer is a CRC-32 (4 bytes, little-endian) and a packed list: of a read the value, and the accounts
of the shards; of a write its result. Rows travel by columns: keys, metadata as stored, scores as float64, and the
values of all rows as one block of little-endian float32. What has no form in msgpack is an extension: an array, a
filter (as its document), a search, a scope, a batch, an integer beyond 64 bits.

Everything that cannot be read raises WireError. Sender and receiver are of one `PROTOCOL`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np

from vectors.engine.filters import Filter, parse_filter
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import SlotSet
from vectors.errors import MLVectorDBError
from vectors.query_processor.port import (
    DEFAULT_OPTIONS,
    Answer,
    Fetched,
    Hit,
    NamespaceInfo,
    Page,
    Record,
    RequestOptions,
    Scope,
    SearchRequest,
    ShardAccount,
    StorageInfo,
    VectorBatch,
    WriteResult,
)

_ARRAY, _FILTER, _SEARCH, _INTEGER, _SCOPE, _BATCH = 1, 2, 3, 4, 5, 6
_CRC_BYTES = 4
_ANY_NUMBER: Final = 1 << 62


class WireError(ValueError):
    """Raised when bytes from another node are not what they should be."""


class ReadRequest(NamedTuple):
    """A read or a write as it arrives; `position` is the (term, seq) that the copy must have, None for any."""

    operation: str
    arguments: Mapping[str, Any]
    options: RequestOptions
    position: tuple[int, int] | None


def read_request(
    operation: str,
    arguments: Mapping[str, Any],
    options: RequestOptions = DEFAULT_OPTIONS,
    position: tuple[int, int] | None = None,
) -> bytes:
    """Return the body of a request for a read or a write: a method of the port and its arguments."""
    body = _packed([dict(arguments), _fields_of(options), None if position is None else list(position)])
    packed: bytes = msgpack.packb({"op": operation, "body": body, "crc": zlib.crc32(body)})
    return packed


def read_of(data: bytes) -> ReadRequest:
    """Read a request; one of nothing but `{"op"}` has no arguments. Raise WireError."""
    envelope = _unpacked(data)
    try:
        operation, body = envelope["op"], envelope.get("body")
        if body is None:
            return ReadRequest(_checked(operation, str, "op"), {}, DEFAULT_OPTIONS, None)
        if zlib.crc32(body) != envelope["crc"]:
            raise WireError("the checksum of a request is wrong")
        arguments, options, position = _unpacked(body)
        allowed = _ARGUMENTS[operation]
        for name, value in arguments.items():
            _checked(value, allowed[name], name)
        if position is not None:
            term, seq = position
            position = (_checked(term, int, "position"), _checked(seq, int, "position"))
        return ReadRequest(operation, arguments, RequestOptions(**options), position)
    except WireError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"not a request for a read: {error!r}") from None


def answer_body(operation: str, answer: Answer[Any]) -> bytes:
    """Return the body of what a method of the port has returned."""
    encode, _ = _VALUES[operation]
    body = _packed([encode(answer.value), [_fields_of(account) for account in answer.shards]])
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def answer_of(operation: str, data: bytes) -> Answer[Any]:
    """Return what `answer_body` was given; arrays are read-only. Raise WireError."""
    body = memoryview(data)[_CRC_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[:_CRC_BYTES], "little"):
        raise WireError("the checksum of an answer is wrong")
    try:
        _, decode = _VALUES[operation]
        document, shards = _unpacked(body)
        return Answer(decode(document), [ShardAccount(**account) for account in shards])
    except WireError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"not the answer of a read: {error!r}") from None


def write_answer_body(result: WriteResult) -> bytes:
    """Return the body of what a write has returned."""
    positions = {label: list(position) for label, position in result.positions.items()}
    body = _packed([list(result.keys), result.count, dict(result.seq), positions])
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def write_answer_of(data: bytes) -> WriteResult:
    """Return what `write_answer_body` was given. Raise WireError."""
    body = memoryview(data)[_CRC_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[:_CRC_BYTES], "little"):
        raise WireError("the checksum of an answer is wrong")
    try:
        keys, count, seq, positions = _unpacked(body)
        places = {
            label: (_checked(uid, str, "uid"), _checked(term, int, "term"), _checked(at, int, "seq"))
            for label, (uid, term, at) in positions.items()
        }
        return WriteResult(_checked(keys, list, "keys"), _checked(count, int, "count"), dict(seq), places)
    except WireError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"not the answer of a write: {error!r}") from None


def _encode_rows(rows: Sequence[Record | Hit]) -> dict[str, Any]:
    return {
        "keys": [row.key for row in rows],
        "metadata": [row.metadata for row in rows],
        "values": _block([row.values for row in rows]),
        "scores": np.array([row.score for row in rows if isinstance(row, Hit)], dtype="<f8").tobytes(),
    }


def _block(values: Sequence[np.ndarray | None]) -> Any:
    """Return the values of rows: one block, nil for none, and row by row where only some searches asked for them."""
    known = [row for row in values if row is not None]
    if not known:
        return None
    return np.asarray(known, dtype="<f4") if len(known) == len(values) else list(values)


def _decode_rows(document: Mapping[str, Any]) -> list[Record]:
    keys, metadata, values = document["keys"], document["metadata"], document["values"]
    block: Sequence[np.ndarray | None] = [None] * len(keys) if values is None else list(values)
    return [Record(*row) for row in zip(keys, block, metadata, strict=True)]


def _encode_hits(hits: Sequence[Hit]) -> dict[str, Any]:
    return _encode_rows(hits)


def _decode_hits(document: Mapping[str, Any]) -> list[Hit]:
    scores = np.frombuffer(document["scores"], dtype="<f8").tolist()
    return [Hit(*record, score) for record, score in zip(_decode_rows(document), scores, strict=True)]


def _encode_hit_lists(lists: Sequence[Sequence[Hit]]) -> list[Any]:
    # One block for all searches: a batch of a thousand small answers is not a thousand small arrays.
    return [[len(hits) for hits in lists], _encode_rows([hit for hits in lists for hit in hits])]


def _decode_hit_lists(document: Any) -> list[list[Hit]]:
    counts, rows = document
    hits = iter(_decode_hits(rows))
    return [[next(hits) for _ in range(count)] for count in counts]


def _encode_info(info: NamespaceInfo | StorageInfo) -> dict[str, Any]:
    return _fields_of(info)


_VALUES: Final[Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "get": (lambda record: _encode_rows([record]), lambda document: _decode_rows(document)[0]),
    "fetch": (
        lambda fetched: [_encode_rows(fetched.records), fetched.missing],
        lambda document: Fetched(_decode_rows(document[0]), document[1]),
    ),
    "find_similar": (_encode_hits, _decode_hits),
    "search_batch": (_encode_hit_lists, _decode_hit_lists),
    "count": (int, int),
    "scroll": (
        lambda page: [_encode_rows(page.records), page.next_after],
        lambda document: Page(_decode_rows(document[0]), document[1]),
    ),
    "list_namespaces": (list, list),
    "namespace_details": (
        lambda infos: [_encode_info(info) for info in infos],
        lambda documents: [NamespaceInfo(**document) for document in documents],
    ),
    "storage_info": (_encode_info, lambda document: StorageInfo(**document)),
}
"""How the value of each operation is packed and unpacked."""

_Kind = type | UnionType
_ARGUMENTS: Final[Mapping[str, Mapping[str, _Kind]]] = {
    "get": {"key": bytes, "namespace": str},
    "fetch": {"keys": list, "namespace": str},
    "find_similar": {"request": SearchRequest, "namespace": str},
    "search_batch": {"requests": list, "namespace": str},
    "count": {"namespace": str, "filter": Filter | None},
    "scroll": {
        "namespace": str,
        "limit": int,
        "after": bytes | None,
        "filter": Filter | None,
        "with_values": bool,
    },
    "list_namespaces": {},
    "namespace_details": {},
    "storage_info": {},
    "upsert_many": {"batch": VectorBatch, "namespace": str},
    "delete": {"namespace": str, "keys": list | None, "filter": Filter | None},
    "patch": {"key": bytes, "metadata": bytes, "namespace": str},
}
"""The arguments that each operation may have. What else they must be is for the query processor to say."""


def _checked(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise WireError(f"{name} is {type(value).__name__}, which it must not be")
    return value


def _fields_of(item: Any) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in fields(item)}


def _packed(document: Any) -> bytes:
    packed: bytes = msgpack.packb(document, default=_extension)
    return packed


def _unpacked(data: bytes | memoryview) -> Any:
    try:
        # Keys of maps are names; bytes as keys, or more levels than anyone sends, are refused by msgpack itself.
        return msgpack.unpackb(data, ext_hook=_of_extension)
    except (ValueError, TypeError, LookupError, RecursionError, MLVectorDBError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack as nodes send it: {error!r}") from None


def _extension(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        shape = msgpack.packb(list(value.shape))
        return msgpack.ExtType(_ARRAY, shape + np.ascontiguousarray(value, dtype="<f4").tobytes())
    if isinstance(value, Filter):
        return msgpack.ExtType(_FILTER, _packed(value.document))
    if isinstance(value, SearchRequest):
        return msgpack.ExtType(_SEARCH, _packed(_fields_of(value)))
    if isinstance(value, Scope):
        owned = None if value.owned is None else value.owned.packed
        spec = None if value.namespace is None else _fields_of(value.namespace)
        return msgpack.ExtType(_SCOPE, _packed([value.epoch, owned, spec]))
    if isinstance(value, VectorBatch):
        return msgpack.ExtType(_BATCH, _packed([list(value.keys), value.values, list(value.metadata)]))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, int):
        return msgpack.ExtType(_INTEGER, str(value).encode())
    raise TypeError(f"{type(value).__name__} has no form between nodes")


def _of_extension(code: int, data: bytes) -> Any:
    if code == _ARRAY:
        return _array(data)
    if code == _FILTER:
        # The limits of the grammar are for clients; this one has passed them.
        return parse_filter(_unpacked(data), max_conditions=_ANY_NUMBER, max_depth=_ANY_NUMBER, max_values=_ANY_NUMBER)
    if code == _SEARCH:
        return SearchRequest(**_unpacked(data))
    if code == _INTEGER:
        return int(data)
    if code == _SCOPE:
        epoch, owned, spec = _unpacked(data)
        return Scope(
            _checked(epoch, int, "epoch"),
            None if owned is None else SlotSet(_checked(owned, bytes, "owned")),
            None if spec is None else NamespaceSpec(**spec),
        )
    if code == _BATCH:
        return _batch(data)
    raise WireError(f"an extension of the unknown kind {code}")


def _batch(data: bytes) -> VectorBatch:
    keys, values, metadata = _unpacked(data)
    values = _checked(values, np.ndarray, "values")
    if values.ndim != 2 or not len(keys) == len(values) == len(metadata):
        raise WireError("a batch has not as many keys, values and metadata as rows")
    return VectorBatch(keys, values, metadata)


def _array(data: bytes) -> np.ndarray:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data[:64])
    shape = unpacker.unpack()
    values = np.frombuffer(data, dtype="<f4", offset=unpacker.tell())
    if values.size != math.prod(shape):
        raise WireError("an array has not as many numbers as its shape says")
    return values.reshape(shape)
