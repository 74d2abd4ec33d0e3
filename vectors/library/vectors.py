"""Vectors as a program holds them: what is to be stored, and what is."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vectors.engine.ids import UUID_TAG, id_of, key_of
from vectors.errors import DimensionMismatch, InvalidInput

Id = int | str | uuid.UUID


@dataclass(eq=False, slots=True)
class VectorDTO:
    """A vector to store or to search by: `values` (d,) numbers, `metadata` JSON values.

    `id` may be given; otherwise it is set, to a new UUID, by the first call that needs one.
    """

    values: ArrayLike
    metadata: Mapping[str, Any] | None = field(default_factory=dict)
    id: Id | None = None


class Vector:
    """A vector with an id: `values` (d,) float32, read-only."""

    __slots__ = ("id", "metadata", "values")

    def __init__(self, values: ArrayLike, metadata: Mapping[str, Any] | None = None, id: Id | None = None) -> None:
        self.id: Id = uuid.uuid4() if id is None else id
        self.values: np.ndarray = float32_vector(values)
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def dimension(self) -> int:
        """How many values it has."""
        return len(self.values)

    def shape(self) -> tuple[int, ...]:
        """Return the shape of its values: (dimension,)."""
        return self.values.shape

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vector):
            return NotImplemented
        return self.id == other.id and np.array_equal(self.values, other.values) and self.metadata == other.metadata

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Vector(id={self.id!r}, dimension={self.dimension}, metadata={self.metadata!r})"


AnyVector = VectorDTO | Vector


def float32_vector(values: ArrayLike, *, field: str = "values") -> np.ndarray:
    """Return one vector as (d,) float32, read-only; raise InvalidInput for another shape or a number not finite."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidInput(f"must be a list of numbers: {error}", field=field) from None
    if array.ndim != 1 or not len(array):
        raise InvalidInput(f"must be of shape (dimension,), got {array.shape}", field=field)
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"must hold numbers, got {array.dtype}", field=field)
    with np.errstate(over="ignore"):
        row = np.array(array, dtype=np.float32)
    if not np.isfinite(row).all():
        raise InvalidInput("every number must be finite in float32", field=field)
    row.flags.writeable = False
    return row


def float32_matrix(vectors: Sequence[AnyVector]) -> np.ndarray:
    """Return the values of vectors as (n, d) float32, C-contiguous; raise DimensionMismatch when lengths differ."""
    rows = [float32_vector(item.values, field=f"vectors[{place}].values") for place, item in enumerate(vectors)]
    for place, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise DimensionMismatch(
                f"has {len(row)} numbers where the first vector has {len(rows[0])}",
                field=f"vectors[{place}].values",
                detail={"expected": len(rows[0]), "got": len(row)},
            )
    return np.stack(rows)


def keys_of(ids: Iterable[object]) -> list[bytes]:
    """Return the keys of ids; raise InvalidInput for what is none."""
    return [key_of(int(value) if isinstance(value, np.integer) else value) for value in ids]


def id_from(key: bytes) -> Id:
    """Return the id of a key, a UUID as such."""
    return uuid.UUID(bytes=key[1:]) if key[:1] == UUID_TAG else id_of(key)
