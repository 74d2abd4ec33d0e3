"""Rows as they travel: values are raw little-endian float32 in msgpack, metadata are maps."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgpack
import numpy as np
from numpy.typing import ArrayLike

Id = int | str | uuid.UUID
T = TypeVar("T")

_DIGITS = re.compile(r"-?[0-9]+", re.ASCII)


class Record(NamedTuple):
    """One row: `values` is (d,) float32, read-only."""

    id: int | str
    values: np.ndarray
    metadata: dict[str, Any]


class Hit(NamedTuple):
    """One row of a search's answer; `values` is (d,) float32, read-only, None where it was not asked for."""

    id: int | str
    score: float
    values: np.ndarray | None
    metadata: dict[str, Any] | None


class Fetched(NamedTuple):
    """Rows found for a list of ids, and the ids not found, both in the order asked."""

    records: list[Record]
    missing: list[int | str]


class Explanation(NamedTuple):
    """A search's hits with the account of each shard (the object of `explain=1`)."""

    hits: list[Hit]
    complete: bool
    shards: list[dict[str, Any]]
    took_ms: float


class Rows(list[T], Generic[T]):
    """A list that says on which shards it stands.

    `complete` is false when `failed_shards` are missing from it; `stale_shards` answered from an old state.
    """

    complete: bool = True
    failed_shards: tuple[str, ...] = ()
    stale_shards: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[T], headers: Mapping[str, str]) -> Rows[T]:
        """Return rows with what the headers of their answer say."""
        answer = cls(rows)
        answer.complete = headers.get("X-MLVDB-Complete", "true") == "true"
        answer.failed_shards = _labels(headers.get("X-MLVDB-Failed"))
        answer.stale_shards = _labels(headers.get("X-MLVDB-Stale"))
        return answer


def matrix(values: ArrayLike) -> np.ndarray:
    """Return rows as (n, d) float32, C-contiguous; raise ValueError for another shape or a number not finite."""
    rows = np.asarray(values)
    if rows.size == 0 and rows.ndim <= 2:
        return np.zeros((0, 0), dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"values must be of shape (rows, dimension), got {rows.shape}")
    return _finite(rows)


def vector(values: ArrayLike) -> np.ndarray:
    """Return one vector as (d,) float32; raise ValueError for another shape or a number that is not finite."""
    row = np.asarray(values)
    if row.ndim != 1 or row.size == 0:
        raise ValueError(f"a vector must be of shape (dimension,), got {row.shape}")
    finite: np.ndarray = _finite(row[np.newaxis])[0]
    return finite


def plain_id(value: Id) -> int | str:
    """Return an id as the API takes it; raise TypeError for what is none."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError("an id is an integer, a string or a UUID, got a boolean")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"an id is an integer, a string or a UUID, got {type(value).__name__}")


def needs_id_type(value: int | str) -> bool:
    """Return whether a path or query would take this id for an integer though it is a string."""
    return isinstance(value, str) and _DIGITS.fullmatch(value) is not None


def pack(body: Any) -> bytes:
    """Return a body as msgpack; raise TypeError for an object that has no such form."""
    packed = msgpack.packb(body, default=_plain)
    assert isinstance(packed, bytes)
    return packed


def packed_batches(
    ids: Sequence[int | str], values: np.ndarray, metadata: Sequence[Mapping[str, Any]] | None, *, max_bytes: int
) -> Iterable[tuple[int, bytes]]:
    """Yield the rows as bodies of `PUT /vectors/batch` with the number of rows in each, none much over `max_bytes`."""
    count, dimension = values.shape
    raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
    size = 4 * dimension
    rows: list[dict[str, Any]] = [
        {"id": row_id, "values": raw[place * size : (place + 1) * size]} for place, row_id in enumerate(ids)
    ]
    if metadata is not None:
        for row, extra in zip(rows, metadata, strict=True):
            row["metadata"] = extra
    body = pack({"vectors": rows})
    if len(body) <= max_bytes or count == 1:
        yield count, body
        return
    half = count // 2
    for part in (slice(0, half), slice(half, count)):
        yield from packed_batches(
            ids[part], values[part], None if metadata is None else metadata[part], max_bytes=max_bytes
        )


def record_of(row: Mapping[str, Any]) -> Record:
    """Return an answered row."""
    return Record(row["id"], np.frombuffer(row["values"], dtype="<f4"), row["metadata"])


def hit_of(row: Mapping[str, Any]) -> Hit:
    """Return an answered hit."""
    values = row.get("values")
    return Hit(
        row["id"], row["score"], None if values is None else np.frombuffer(values, dtype="<f4"), row.get("metadata")
    )


def _finite(rows: np.ndarray) -> np.ndarray:
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"values must be numbers, got {rows.dtype}")
    with np.errstate(over="ignore"):
        values: np.ndarray = np.ascontiguousarray(rows, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise ValueError(f"row {row} has a number that is not finite in float32")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _labels(header: str | None) -> tuple[str, ...]:
    return tuple(part.partition(":")[0] for part in header.split(",")) if header else ()
