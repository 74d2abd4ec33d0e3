"""The grammar of a filter: from a JSON object to a `Filter`, or to an error that names the place.

A filter is an object whose members must all hold. A member is a condition, `<path>__<lookup>` or `<path>` (which means
`exact`), or a combination: `{"AND": [..]}`, `{"OR": [..]}`, `{"NOT": {..}}` over further filters. An empty object and
an empty AND match every row; an empty OR is an error. What follows the last `__` of a key is its lookup, so a metadata
key that has `__` in it, or is called AND, OR or NOT, is reached with the lookup written out (`AND__exact`). The path
`id` is the id of the row. What each lookup matches is told in `vectors.engine.filters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vectors.engine.filters.tree import (
    ID,
    LOOKUPS,
    ORDER_LOOKUPS,
    TEXT_LOOKUPS,
    Condition,
    Conjunction,
    Disjunction,
    Filter,
    IdCondition,
    Negation,
    Node,
)
from vectors.engine.ids import key_of
from vectors.errors import InvalidFilter, InvalidInput

MAX_PATH_PARTS = 32
MAX_PATH_CHARACTERS = 1024


def parse_filter(
    obj: object,
    *,
    field: str = "filter",
    max_conditions: int = 256,
    max_depth: int = 16,
    max_values: int = 10_000,
) -> Filter:
    """Return the filter in a decoded JSON object.

    `max_conditions` bounds the conditions and, separately, the members of AND, OR and NOT in the whole filter,
    `max_depth` the nesting of combinations, `max_values` the list of one `in`. Raise InvalidFilter, whose `field`
    begins with `field` and names the place, for example `filter.AND[1].price__lt`.
    """
    return Filter(_Parser(max_conditions, max_depth, max_values).parse(obj, field, 0))


@dataclass
class _Parser:
    max_conditions: int
    max_depth: int
    max_values: int
    conditions: int = 0
    members: int = 0

    def parse(self, obj: object, field: str, depth: int) -> Node:
        if not isinstance(obj, dict):
            raise InvalidFilter(f"a filter is an object, got {_kind(obj)}", field=field)
        if depth > self.max_depth:
            raise InvalidFilter(f"a filter is nested at most {self.max_depth} deep", field=field)
        parts: list[Node] = []
        for key, value in obj.items():
            if not isinstance(key, str):
                raise InvalidFilter(f"a key of a filter is a string, got {_kind(key)}", field=field)
            _check_text(key, field, "a key of a filter")
            here = f"{field}.{key[:MAX_PATH_CHARACTERS]}"
            if key in ("AND", "OR"):
                parts.append(self._combination(key, value, here, depth))
            elif key == "NOT":
                self._count_member(here)
                parts.append(Negation(self.parse(value, here, depth + 1)))
            else:
                parts.append(self._condition(key, value, here))
        return parts[0] if len(parts) == 1 else Conjunction(tuple(parts))

    def _combination(self, word: str, value: object, field: str, depth: int) -> Node:
        if not isinstance(value, list | tuple):
            raise InvalidFilter(f"{word} takes a list of filters, got {_kind(value)}", field=field)
        if word == "OR" and not value:
            raise InvalidFilter("OR needs at least one filter", field=field)
        parts = []
        for position, member in enumerate(value):
            here = f"{field}[{position}]"
            self._count_member(here)
            parts.append(self.parse(member, here, depth + 1))
        if len(parts) == 1:
            return parts[0]
        return Conjunction(tuple(parts)) if word == "AND" else Disjunction(tuple(parts))

    def _count_member(self, field: str) -> None:
        self.members += 1
        if self.members > self.max_conditions:
            raise InvalidFilter(f"a filter combines at most {self.max_conditions} filters", field=field)

    def _condition(self, key: str, value: object, field: str) -> Node:
        self.conditions += 1
        if self.conditions > self.max_conditions:
            raise InvalidFilter(f"a filter has at most {self.max_conditions} conditions", field=field)
        path, separator, lookup = key.rpartition("__")
        if not separator:
            path, lookup = key, "exact"
        if lookup not in LOOKUPS:
            known = ", ".join(sorted(LOOKUPS))
            raise InvalidFilter(f"unknown lookup {lookup[:80]!r}; the lookups are {known}", field=field)
        if not path:
            raise InvalidFilter("a condition needs a metadata key before its lookup", field=field)
        if len(path) > MAX_PATH_CHARACTERS or path.count(".") >= MAX_PATH_PARTS:
            raise InvalidFilter(
                f"a path has at most {MAX_PATH_CHARACTERS} characters and {MAX_PATH_PARTS} parts", field=field
            )
        values = self._values(lookup, value, field)
        if lookup in ("exact", "ne") and value is None:
            lookup, values = "isnull", [lookup == "exact"]
        if path == ID:
            return _id_condition(lookup, values, field, listed=isinstance(value, list | tuple))
        return _metadata_condition(path, lookup, values, field)

    def _values(self, lookup: str, value: object, field: str) -> list[Any]:
        """Return the values of a condition, checked as far as they are the same for ids and metadata."""
        if lookup == "in":
            if not isinstance(value, list | tuple):
                raise InvalidFilter(f"in takes a list, got {_kind(value)}", field=field)
            if len(value) > self.max_values:
                raise InvalidFilter(f"in takes at most {self.max_values} values, got {len(value)}", field=field)
            return [_scalar(item, f"{field}[{position}]") for position, item in enumerate(value)]
        if lookup == "range":
            if not isinstance(value, list | tuple) or len(value) != 2:
                raise InvalidFilter("range takes a list of two values, [lowest, highest]", field=field)
            return [_scalar(item, f"{field}[{position}]") for position, item in enumerate(value)]
        if lookup == "isnull":
            if not isinstance(value, bool):
                raise InvalidFilter(f"isnull takes true or false, got {_kind(value)}", field=field)
            return [value]
        if value is None and lookup in ("exact", "ne"):
            return []
        return [_scalar(value, field)]


def _metadata_condition(path: str, lookup: str, values: list[Any], field: str) -> Condition:
    numbers = tuple(dict.fromkeys(value for value in values if type(value) in (int, float)))
    strings = tuple(dict.fromkeys(value for value in values if type(value) is str))
    booleans = tuple(dict.fromkeys(value for value in values if type(value) is bool))
    if lookup in ORDER_LOOKUPS and booleans:
        raise InvalidFilter(f"{lookup} takes a number or a string, got a boolean", field=field)
    if lookup == "range":
        if booleans or (numbers and strings):
            raise InvalidFilter("range takes two numbers or two strings", field=field)
        numbers, strings = (tuple(values), ()) if numbers else ((), tuple(values))
    if lookup in TEXT_LOOKUPS and lookup != "contains" and not strings:
        raise InvalidFilter(f"{lookup} takes a string, got {_kind(values[0])}", field=field)
    if lookup == "icontains":
        strings = (strings[0].casefold(),)
    return Condition(path, lookup, numbers, strings, booleans)


def _id_condition(lookup: str, values: list[Any], field: str, *, listed: bool) -> IdCondition:
    if lookup == "isnull":
        return IdCondition(lookup, null=values[0])
    if lookup in TEXT_LOOKUPS:
        if type(values[0]) is not str:
            raise InvalidFilter(f"{lookup} takes a string, got {_kind(values[0])}", field=field)
        return IdCondition(lookup, text=values[0].casefold() if lookup == "icontains" else values[0])
    keys = []
    for position, value in enumerate(values):
        try:
            keys.append(key_of(value))
        except InvalidInput as error:
            raise InvalidFilter(error.message, field=f"{field}[{position}]" if listed else field) from None
    if lookup == "range" and keys[0][0] != keys[1][0]:
        raise InvalidFilter("range takes two ids of one kind: integers, UUIDs or strings", field=field)
    return IdCondition(lookup, keys=tuple(keys if lookup == "range" else dict.fromkeys(keys)))


def _scalar(value: object, field: str) -> int | float | str | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilter("a number must be finite", field=field)
        return float(value)
    if isinstance(value, str):
        _check_text(value, field, "a string")
        return str(value)
    raise InvalidFilter(f"a value is a string, number or boolean, got {_kind(value)}", field=field)


def _check_text(text: str, field: str, what: str) -> None:
    """Refuse lone surrogates: no stored text has them, and they have no place in an order by UTF-8 bytes."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidFilter(f"{what} must be valid Unicode text", field=field) from None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    for kinds, name in (
        (bool, "a boolean"),
        (int | float, "a number"),
        (str, "a string"),
        (list | tuple, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return type(value).__name__
