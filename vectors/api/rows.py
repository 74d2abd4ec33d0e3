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
from vectors.errors import InvalidInput
from vectors.query_processor.parsing import NO_METADATA, metadata_of
from vectors.query_processor.port import VectorBatch

ROW_FIELDS: Final = frozenset({"id", "values", "metadata"})


def row_batch(row: dict[str, Any]) -> VectorBatch:
    """Return the one row of an insert's body."""
    return _batch([row], prefix=lambda _: "")


def rows_batch(rows: Sequence[dict[str, Any]], *, field: str) -> VectorBatch:
    """Return many rows; errors name `field[i].values` and so on."""
    return _batch(rows, prefix=lambda position: f"{field}[{position}].")


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
                        text = metadata_of(value, field=f"{prefix(position)}metadata")
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
        metadata_of(rows[position]["metadata"], field=f"{prefix(position)}metadata")
        raise
    except KeyError:
        missing = next(place for place, row in enumerate(rows) if "values" not in row)
        raise MissingField("values is required", field=f"{prefix(missing)}values") from None
    return VectorBatch(keys, matrix(values, name=lambda place: f"{prefix(place)}values"), texts)
