"""Query parameters: what an endpoint takes, declared once for checking, for the browsable API and for the schema.

A parameter that the endpoint does not take is refused, as is one of the wrong form; the error names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mlvdb_site.http.errors import RequestError

NAME_PATTERN: Final = "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
"""Names of namespaces, shards and replicas."""

_NAME = re.compile(NAME_PATTERN)
_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """One query parameter: its JSON schema, and the header that may carry it instead."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    header: str | None = None
    example: str = ""
    required: bool = False
    json: bool = False
    """Whether the value is JSON text of the schema."""

    @property
    def choices(self) -> list[str]:
        """The words it may be, empty when it is free."""
        return list(self.schema.get("enum", ()))


FORMAT = QueryParameter("format", "Form of the answer; overrides the Accept header.")


def check_query(query: Mapping[str, str], allowed: Iterable[QueryParameter]) -> None:
    """Raise RequestError for a query parameter that is not among `allowed`."""
    names = {parameter.name for parameter in allowed}
    for name in query:
        if name not in names and name != FORMAT.name:
            known = ", ".join(sorted(names)) or "none"
            raise RequestError(
                f"unknown query parameter {name!r}; this endpoint takes: {known}", code="unknown_field", field=name
            )


def checked_name(text: str, *, field: str, reserved: Collection[str] = ()) -> str:
    """Return the name of a namespace, shard or replica; raise RequestError when it cannot be one."""
    if not _NAME.fullmatch(text):
        raise RequestError(
            f"{field} must be 1 to 128 letters, digits, '.', '_' or '-', and not begin with '.' or '-'", field=field
        )
    if text in reserved:
        raise RequestError(f"{text!r} is a word of the API's paths and cannot be a name", field=field)
    return text


def flag(text: str, *, field: str) -> bool:
    """Return a switch: true, 1, false or 0."""
    value = _FLAGS.get(text.lower())
    if value is None:
        raise RequestError(f"{field} must be true or false", field=field)
    return value


def choice(text: str, *, field: str, choices: Collection[str]) -> str:
    """Return one of some words."""
    if text not in choices:
        raise RequestError(f"{field} must be one of {', '.join(choices)}", field=field)
    return text


def whole_number(text: str, *, field: str, minimum: int, maximum: int) -> int:
    """Return an integer between two bounds."""
    if not _WHOLE.fullmatch(text) or not minimum <= (value := int(text)) <= maximum:
        raise RequestError(f"{field} must be a whole number from {minimum} to {maximum}", field=field)
    return value


def seconds(text: str, *, field: str, maximum: float) -> float:
    """Return a time above 0 s."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= maximum:
        raise RequestError(f"{field} must be a number of seconds above 0 and at most {maximum:g}", field=field)
    return value
