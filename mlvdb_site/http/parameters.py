"""Query parameters: what an endpoint takes, declared once for checking, for the browsable API and for the schema.

A parameter that the endpoint does not take is refused, as is one of the wrong form or given twice; the error names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from django.http import QueryDict

from mlvdb_site.http.errors import RequestError

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"([0-9]{1,18}\.?[0-9]{0,24}|\.[0-9]{1,24})([eE][+-]?[0-9]{1,3})?")
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


def check_query(query: QueryDict, allowed: Iterable[QueryParameter]) -> None:
    """Raise RequestError for a query parameter that is not among `allowed`, and for one that is given twice."""
    names = {parameter.name for parameter in allowed}
    for name, values in query.lists():
        if name not in names and name != FORMAT.name:
            known = ", ".join(sorted(names)) or "none"
            raise RequestError(
                f"unknown query parameter {name!r}; this endpoint takes: {known}", code="unknown_field", field=name
            )
        if len(values) > 1:
            raise RequestError(
                f"{name} is given {len(values)} times; once is enough", code="repeated_parameter", field=name
            )


def check_encoding(query: str) -> None:
    """Raise RequestError for a query string whose percent-encoded bytes are not UTF-8.

    Django would read replacement characters in their place: an id that nobody has sent.
    """
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise RequestError("the query is not UTF-8", code="invalid_encoding", field="query") from None


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
    return positive(text, field=field, maximum=maximum, what="a number of seconds")


def positive(text: str, *, field: str, maximum: float, what: str = "a number") -> float:
    """Return a number above 0."""
    # Not every text that is a float to Python is a number to others: 1_0, ١.
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not 0 < value <= maximum:
        raise RequestError(f"{field} must be {what} above 0 and at most {maximum:g}", field=field)
    return value
