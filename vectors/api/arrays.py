"""Vectors of a body as float32 arrays: one pass in C per row, one check of the whole.

A row is a list of numbers, or raw little-endian float32 `bin` in msgpack. `struct` packs a row in a third of the time
of a numpy assignment and refuses strings, nulls and numbers beyond float32 by itself. It takes booleans for numbers:
these become exactly 0 or 1, so only entries with such a value have their types looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from django.conf import settings

from vectors.errors import DimensionMismatch, InvalidInput

Naming = Callable[[int], str]

_FLOAT32 = np.dtype("<f4")


def matrix(rows: Sequence[Any], *, name: Naming) -> np.ndarray:
    """Return rows as (n, d) float32, C-contiguous and finite; `name(i)` is the field of row i in errors.

    Raise InvalidInput for a row that is no vector, DimensionMismatch for rows of different lengths.
    """
    first = rows[0]
    binary = type(first) is bytes
    if type(first) is not list and not binary:
        raise InvalidInput("must be a list of numbers", field=name(0))
    dimension = len(first) // 4 if binary else len(first)
    _check_dimension(dimension, exact=not binary or len(first) % 4 == 0, field=name(0))
    try:
        joined = b"".join(rows) if binary else b"".join([_packer(dimension)(*row) for row in rows])
        values = np.frombuffer(joined, dtype="<f4").reshape(len(rows), dimension)
        regular = all(len(row) == len(first) for row in rows)
    except (struct.error, TypeError, ValueError, OverflowError):
        regular = False
    if not regular:
        return _row_by_row(rows, dimension, name)
    _check_finite(values, name)
    if not binary:
        _check_types(rows, values, name)
    return values


def vector(values: Any, *, field: str) -> np.ndarray:
    """Return one vector as (d,) float32, C-contiguous and finite. Raise as `matrix` does."""
    found = _plain_vector(values)
    return matrix((values,), name=lambda _: field)[0] if found is None else found


def _plain_vector(values: Any) -> np.ndarray | None:
    """Return the vector that `values` are for sure, None when that takes a closer look."""
    try:
        packed = values if type(values) is bytes else _packer(len(values))(*values)
        found = np.frombuffer(packed, dtype=_FLOAT32)
    except (struct.error, TypeError, ValueError, OverflowError):
        return None
    if type(values) not in (list, bytes) or not 1 <= len(found) <= settings.MLVDB_MAX_DIMENSION:
        return None
    if not np.isfinite(found).all():
        return None
    return found if packed is values or not _has_boolean(values, found) else None


@lru_cache(maxsize=128)
def _packer(dimension: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{dimension}f").pack


def _row_by_row(rows: Sequence[Any], dimension: int, name: Naming) -> np.ndarray:
    """Convert rows of mixed forms, or name the first that cannot be converted."""
    packed = []
    for position, row in enumerate(rows):
        field = name(position)
        if type(row) is bytes:
            if len(row) % 4:
                raise InvalidInput("bin must be float32: a multiple of 4 bytes", field=field)
            length = len(row) // 4
        elif type(row) is list:
            length = len(row)
        else:
            raise InvalidInput("must be a list of numbers", field=field)
        if length != dimension:
            raise DimensionMismatch(
                f"has {length} numbers where the first row has {dimension}",
                field=field,
                detail={"expected": dimension, "got": length},
            )
        if type(row) is bytes:
            packed.append(row)
            continue
        try:
            packed.append(_packer(dimension)(*row))
        except (struct.error, TypeError, OverflowError):
            raise _bad_number(row, field) from None
        if bool in map(type, row):
            raise _bad_number(row, field)
    values = np.frombuffer(b"".join(packed), dtype="<f4").reshape(len(rows), dimension)
    _check_finite(values, name)
    return values


def _check_dimension(dimension: int, *, exact: bool, field: str) -> None:
    if not exact:
        raise InvalidInput("bin must be float32: a multiple of 4 bytes", field=field)
    if not 1 <= dimension <= settings.MLVDB_MAX_DIMENSION:
        raise InvalidInput(
            f"a vector has 1 to {settings.MLVDB_MAX_DIMENSION} numbers, got {dimension}",
            field=field,
            detail={"limit": settings.MLVDB_MAX_DIMENSION, "got": dimension},
        )


def _check_finite(values: np.ndarray, name: Naming) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        position = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise InvalidInput("every number must be finite", field=name(position))


def _check_types(rows: Sequence[Any], values: np.ndarray, name: Naming) -> None:
    suspects = ((values == 0) | (values == 1)).any(axis=1)
    for position in np.flatnonzero(suspects).tolist():
        if _has_boolean(rows[position], values[position]):
            raise _bad_number(rows[position], name(position))


def _has_boolean(row: Sequence[Any], values: np.ndarray) -> bool:
    suspects = np.flatnonzero(values == (values != 0)).tolist()
    return bool in [type(row[place]) for place in suspects]


def _bad_number(row: Sequence[Any], field: str) -> InvalidInput:
    for position, value in enumerate(row):
        if type(value) not in (int, float):
            return InvalidInput(f"entry {position} must be a number, got {type(value).__name__}", field=field)
        try:
            struct.pack("<f", value)
        except (struct.error, OverflowError):
            # An integer may be beyond every float, and has no short form then.
            shown = f": {value:g}" if type(value) is float or value.bit_length() < 1024 else ""
            return InvalidInput(f"entry {position} is beyond float32{shown}", field=field)
    return InvalidInput("must be a list of numbers", field=field)
