"""The operations of a log and their binary form.

A payload is `<version: u8> <header length: u32 LE> <header: msgpack map> <body: raw little-endian float32>`. Only an
upsert has a body: its vectors, row after row.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np

from vectors.engine.slots import PACKED_BYTES

VERSION = 1
_PREFIX = struct.Struct("<BI")


class Kind(IntEnum):
    """What an entry does. The values are in every log: never renumber."""

    NAMESPACE_PUT = 1
    NAMESPACE_DROP = 2
    UPSERT = 3
    DELETE = 4
    PATCH = 5
    TERM_START = 6
    SLOTS_SET = 7
    SLOTS_CLEARED = 8


class PayloadError(ValueError):
    """Raised when bytes are not a payload of a known version and form."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """Rows to write: `keys` (n), `values` (n, d) float32 C-contiguous, `metadata` (n) compact JSON objects.

    Keys are unique within one operation.
    """

    keys: Sequence[bytes]
    values: np.ndarray
    metadata: Sequence[bytes]

    kind = Kind.UPSERT

    @property
    def rows(self) -> int:
        """Rows in it."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Delete:
    """Keys to delete; with `resolved_at`, only rows last changed at or before that seq (a delete by filter)."""

    keys: Sequence[bytes]
    resolved_at: int | None = None

    kind = Kind.DELETE

    @property
    def rows(self) -> int:
        """Rows in it."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Patch:
    """Metadata to merge (compact JSON objects), key by key; keys that are not there are passed over."""

    keys: Sequence[bytes]
    patches: Sequence[bytes]

    kind = Kind.PATCH

    @property
    def rows(self) -> int:
        """Rows in it."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class NamespacePut:
    """A namespace is made or changed; dimension and metric are fixed by the first one of a uid."""

    name: str
    dimension: int
    metric: str
    recall_target: float
    picture: str = ""

    kind = Kind.NAMESPACE_PUT
    rows = 0


@dataclass(frozen=True, slots=True)
class NamespaceDrop:
    """A namespace ends; its uid never returns."""

    kind = Kind.NAMESPACE_DROP
    rows = 0


@dataclass(frozen=True, slots=True)
class StartTerm:
    """A new primary begins its term: the first entry of that term, with the id of its node.

    `after` is the term of the entry before it, so that a log says of itself how its terms follow one another. It
    changes no rows.
    """

    node: str
    after: int

    kind = Kind.TERM_START
    rows = 0


@dataclass(frozen=True, slots=True)
class SetSlots:
    """Which slots the shard's rows may be written in from here on: `writable`, a packed `SlotSet`.

    `epoch` is that of the slot table at which this was decided: reads that were planned by an older one are refused by
    whoever has applied this, for rows may have come or gone since. It changes no rows.
    """

    epoch: int
    writable: bytes

    kind = Kind.SLOTS_SET
    rows = 0


@dataclass(frozen=True, slots=True)
class ClearSlots:
    """All rows of some slots go, in every namespace: `slots`, a packed `SlotSet`.

    It names no ids and needs none: what rows a log has in a slot at an entry, the entries before it say. It stands only
    where clients may not write the slots.
    """

    slots: bytes

    kind = Kind.SLOTS_CLEARED
    rows = 0


Operation = ClearSlots | SetSlots | StartTerm | Upsert | Delete | Patch | NamespacePut | NamespaceDrop


def encode(operation: Operation) -> bytes:
    """Return the payload of an operation."""
    body = b""
    header: Mapping[str, Any]
    if isinstance(operation, Upsert):
        header = {"keys": list(operation.keys), "meta": list(operation.metadata), "dim": int(operation.values.shape[1])}
        body = np.ascontiguousarray(operation.values, dtype="<f4").tobytes()
    elif isinstance(operation, Delete):
        header = {"keys": list(operation.keys), "at": operation.resolved_at}
    elif isinstance(operation, Patch):
        header = {"keys": list(operation.keys), "meta": list(operation.patches)}
    elif isinstance(operation, NamespacePut):
        header = {
            "name": operation.name,
            "dim": operation.dimension,
            "metric": operation.metric,
            "recall": operation.recall_target,
            "picture": operation.picture,
        }
    elif isinstance(operation, SetSlots):
        header = {"epoch": operation.epoch, "writable": operation.writable}
    elif isinstance(operation, ClearSlots):
        header = {"slots": operation.slots}
    elif isinstance(operation, StartTerm):
        header = {"node": operation.node, "after": operation.after}
    else:
        header = {}
    packed = msgpack.packb(header)
    return b"".join((_PREFIX.pack(VERSION, len(packed)), packed, body))


def decode(kind: int, payload: bytes | memoryview) -> Operation:
    """Return the operation in a payload; its arrays share the payload's memory. Raise PayloadError."""
    try:
        version, length = _PREFIX.unpack_from(payload)
        if version != VERSION:
            raise PayloadError(f"payload version {version} is unknown")
        start = _PREFIX.size + length
        header = msgpack.unpackb(
            memoryview(payload)[_PREFIX.size : start], max_bin_len=len(payload), max_array_len=len(payload)
        )
        if kind == Kind.UPSERT:
            keys, dimension = header["keys"], header["dim"]
            values = np.frombuffer(payload, dtype="<f4", offset=start)
            return Upsert(keys, values.reshape(len(keys), dimension), header["meta"])
        if kind == Kind.DELETE:
            return Delete(header["keys"], header["at"])
        if kind == Kind.PATCH:
            return Patch(header["keys"], header["meta"])
        if kind == Kind.NAMESPACE_PUT:
            return NamespacePut(header["name"], header["dim"], header["metric"], header["recall"], header["picture"])
        if kind == Kind.NAMESPACE_DROP:
            return NamespaceDrop()
        if kind == Kind.TERM_START:
            return StartTerm(header["node"], header["after"])
        if kind == Kind.SLOTS_SET:
            if len(header["writable"]) != PACKED_BYTES:
                raise PayloadError("a set of slots has another length")
            return SetSlots(header["epoch"], header["writable"])
        if kind == Kind.SLOTS_CLEARED:
            if len(header["slots"]) != PACKED_BYTES:
                raise PayloadError("a set of slots has another length")
            return ClearSlots(header["slots"])
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise PayloadError(f"payload cannot be read: {error}") from error
    raise PayloadError(f"kind {kind} is unknown")
