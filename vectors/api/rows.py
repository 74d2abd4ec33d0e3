"""Rows of a body: id, values and metadata of many vectors in as few steps per row as Python allows.

Metadata is stored as the compact JSON text of one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from django.conf import settings

from vectors.api.arrays import matrix
from vectors.api.body import MissingField, check_fields
from vectors.engine.ids import key_of
from vectors.errors import InvalidInput, TooLarge
from vectors.query_processor.port import VectorBatch

ROW_FIELDS: Final = frozenset({"id", "values", "metadata"})
NO_METADATA: Final = b"{}"


def row_batch(row: dict[str, Any]) -> VectorBatch:
    """Return the one row of an insert's body."""
    return _batch([row], prefix=lambda _: "")


def rows_batch(rows: Sequence[dict[str, Any]], *, field: str) -> VectorBatch:
    """Return many rows; errors name `field[i].values` and so on."""
    return _batch(rows, prefix=lambda position: f"{field}[{position}].")


def metadata_text(value: Any, *, field: str) -> bytes:
    """Return metadata as the compact JSON it is stored in (null is none); raise InvalidInput or TooLarge."""
    if value is None:
        return NO_METADATA
    if type(value) is not dict:
        raise InvalidInput("metadata must be an object", field=field)
    try:
        text = orjson.dumps(value)
    except TypeError as error:
        raise InvalidInput(f"metadata cannot be kept as JSON: {error}", field=field) from None
    limit = settings.MLVDB_MAX_METADATA_BYTES
    if len(text) > limit:
        raise TooLarge(
            f"metadata has at most {limit} bytes as JSON, got {len(text)}",
            field=field,
            detail={"limit_bytes": limit, "got": len(text)},
        )
    # orjson writes NaN and infinity, which msgpack can carry, as null.
    if b"null" in text and _has_non_finite(value):
        raise InvalidInput("metadata must hold finite numbers", field=field)
    return text


def _batch(rows: Sequence[dict[str, Any]], *, prefix: Any) -> VectorBatch:
    keys: list[bytes | None] = []
    texts: list[bytes] = []
    limit = settings.MLVDB_MAX_METADATA_BYTES
    dumps = orjson.dumps
    position = 0
    try:
        for position, row in enumerate(rows):
            size = 1
            key = None
            text = NO_METADATA
            if "id" in row:
                size += 1
                if (value := row["id"]) is not None:
                    key = key_of(value)
            if "metadata" in row:
                size += 1
                if (value := row["metadata"]) is not None:
                    text = dumps(value)
                    if type(value) is not dict or len(text) > limit or b"null" in text:
                        text = metadata_text(value, field=f"{prefix(position)}metadata")
            if len(row) != size:
                check_fields(row, ROW_FIELDS, prefix=prefix(position))
            keys.append(key)
            texts.append(text)
        values = [row["values"] for row in rows]
    except InvalidInput as error:
        if error.field == "id":
            error.field = f"{prefix(position)}id"
        raise
    except TypeError:
        # dumps refused the metadata of this row: say why.
        metadata_text(rows[position]["metadata"], field=f"{prefix(position)}metadata")
        raise
    except KeyError:
        missing = next(place for place, row in enumerate(rows) if "values" not in row)
        raise MissingField("values is required", field=f"{prefix(missing)}values") from None
    return VectorBatch(keys, matrix(values, name=lambda place: f"{prefix(place)}values"), texts)


def _has_non_finite(value: Any) -> bool:
    if type(value) is float:
        return value - value != 0
    if type(value) is dict:
        return any(map(_has_non_finite, value.values()))
    if type(value) is list:
        return any(map(_has_non_finite, value))
    return False
