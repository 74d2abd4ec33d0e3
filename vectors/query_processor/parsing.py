"""What comes from outside as plain Python values, in the forms of the port: metadata and filters, within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from django.conf import settings

from vectors.engine.filters import Filter, parse_filter
from vectors.errors import InvalidInput, TooLarge

NO_METADATA: Final = b"{}"


def metadata_of(value: Mapping[str, Any] | None, *, field: str) -> bytes:
    """Return metadata as the compact JSON it is stored in (None is none); raise InvalidInput or TooLarge."""
    if value is None:
        return NO_METADATA
    if not isinstance(value, Mapping):
        raise InvalidInput("metadata must be an object", field=field)
    try:
        text = orjson.dumps(dict(value), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidInput(f"metadata cannot be kept as JSON: {error}", field=field) from None
    check_metadata_size(len(text), field=field)
    # orjson writes NaN and infinity as null.
    if b"null" in text and _has_non_finite(value):
        raise InvalidInput("metadata must hold finite numbers", field=field)
    return text


def check_metadata_size(size_bytes: int, *, field: str) -> None:
    """Raise TooLarge when a row's metadata would have more bytes as JSON than it may."""
    if size_bytes > settings.MLVDB_MAX_METADATA_BYTES:
        raise TooLarge(
            f"metadata has at most {settings.MLVDB_MAX_METADATA_BYTES} bytes as JSON, got {size_bytes}",
            field=field,
            detail={"limit_bytes": settings.MLVDB_MAX_METADATA_BYTES, "got": size_bytes},
        )


def filter_of(value: object, *, field: str = "filter") -> Filter:
    """Return a parsed filter, bounded by the settings; raise InvalidFilter."""
    return parse_filter(
        value,
        field=field,
        max_conditions=settings.MLVDB_MAX_FILTER_CONDITIONS,
        max_depth=settings.MLVDB_MAX_FILTER_DEPTH,
        max_values=settings.MLVDB_MAX_FILTER_VALUES,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return value - value != 0
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_non_finite, value))
    return False
