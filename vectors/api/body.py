"""Reading the fields of a body: typed, bounded, and refused by name when something else was sent.

A field that is optional may also be null, which is the same as leaving it out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

from rest_framework.request import Request

from vectors.errors import InvalidInput

Body = Mapping[str, Any]

METRICS = ("cosine", "ip", "l2")


class UnknownField(InvalidInput):
    """Raised when a body has a field that its endpoint does not know."""

    code = "unknown_field"


class MissingField(InvalidInput):
    """Raised when a body lacks a field."""

    code = "missing_field"


def body_of(request: Request) -> dict[str, Any]:
    """Return the body of a request; the parsers let nothing but an object through, and no body is an empty one."""
    return cast(dict[str, Any], request.data)


def check_fields(body: Body, allowed: Collection[str], *, prefix: str = "") -> None:
    """Raise UnknownField for the first field that is not among `allowed`."""
    for name in body:
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise UnknownField(f"unknown field {_shown(name)}; known are: {known}", field=f"{prefix}{_shown(name)}")


def required(body: Body, name: str, *, prefix: str = "") -> Any:
    """Return a field that must be there and not null."""
    value = body.get(name)
    if value is None:
        raise MissingField(f"{name} is required", field=f"{prefix}{name}")
    return value


def objects(body: Body, name: str, *, maximum: int) -> list[dict[str, Any]]:
    """Return a required, non-empty list of objects."""
    rows = items(body, name, maximum=maximum)
    for position, row in enumerate(rows):
        if type(row) is not dict:
            raise InvalidInput("must be an object", field=f"{name}[{position}]")
    return rows


def items(body: Body, name: str, *, maximum: int) -> list[Any]:
    """Return a required, non-empty list."""
    rows = required(body, name)
    if type(rows) is not list:
        raise InvalidInput(f"{name} must be a list", field=name)
    if not rows:
        raise InvalidInput(f"{name} must not be empty", field=name)
    if len(rows) > maximum:
        raise InvalidInput(
            f"{name} has at most {maximum} entries, got {len(rows)}", field=name, detail={"limit": maximum}
        )
    return rows


def integer(body: Body, name: str, default: int, *, minimum: int, maximum: int, prefix: str = "") -> int:
    """Return an integer between two bounds; 10.0 and true are none."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidInput(
            f"{name} must be a whole number from {minimum} to {maximum}",
            field=f"{prefix}{name}",
            detail={"minimum": minimum, "maximum": maximum},
        )
    return value


def number(body: Body, name: str, *, prefix: str = "") -> float | None:
    """Return a finite number, None when there is none."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number", field=f"{prefix}{name}")
    return float(value)


def recall(body: Body, name: str, *, prefix: str = "") -> float | None:
    """Return a share of the true neighbours: above 0 and at most 1."""
    value = number(body, name, prefix=prefix)
    if value is not None and not 0 < value <= 1:
        raise InvalidInput(f"{name} must be above 0 and at most 1", field=f"{prefix}{name}")
    return value


def boolean(body: Body, name: str, default: bool, *, prefix: str = "") -> bool:
    """Return true or false; 1 and "true" are neither."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise InvalidInput(f"{name} must be true or false", field=f"{prefix}{name}")
    return value


def metric(body: Body, name: str = "metric", *, prefix: str = "") -> str | None:
    """Return the name of a metric, None when there is none."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not str or value not in METRICS:
        raise InvalidInput(f"{name} must be one of {', '.join(METRICS)}", field=f"{prefix}{name}")
    return value


def _shown(name: object) -> str:
    """Return a field's name fit for a message: msgpack keys may be bytes, and any name may be long."""
    text = name if isinstance(name, str) else repr(name)
    return text if len(text) <= 64 else f"{text[:61]}..."
