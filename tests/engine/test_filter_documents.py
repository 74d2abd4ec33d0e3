"""A filter's way back: the document of a filter is a filter, and the same one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectors.engine.filters import Filter, parse_filter

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = NUMBERS | TEXT | st.booleans()
IDS = (
    st.integers(-(2**63), 2**63 - 1)
    | TEXT.filter(bool)
    | st.uuids().map(str)
    | st.uuids().map(lambda u: str(u).upper())
)
PATHS = st.sampled_from(["a", "a.b", "AND", "OR", "NOT", "x__y", "__", "é", "in", "id.x"])


def conditions(path: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    def with_lookup(lookup: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.builds(lambda name, value: {f"{name}__{lookup}": value}, path, values)

    return st.one_of(
        st.builds(lambda value: {"plain": value}, SCALARS | st.none()),
        *[with_lookup(lookup, SCALARS | st.none()) for lookup in ("exact", "ne")],
        *[with_lookup(lookup, NUMBERS | TEXT) for lookup in ("lt", "lte", "gt", "gte")],
        with_lookup("in", st.lists(SCALARS, max_size=5)),
        with_lookup("range", st.lists(NUMBERS, min_size=2, max_size=2) | st.lists(TEXT, min_size=2, max_size=2)),
        with_lookup("isnull", st.booleans()),
        with_lookup("contains", SCALARS),
        *[with_lookup(lookup, TEXT) for lookup in ("startswith", "endswith", "icontains")],
    )


ID_CONDITIONS = st.one_of(
    *[IDS.map(lambda value, lookup=lookup: {f"id__{lookup}": value}) for lookup in ("exact", "ne", "lt", "gte")],
    st.lists(IDS, max_size=5).map(lambda values: {"id__in": values}),
    st.lists(st.uuids().map(str), min_size=2, max_size=2).map(lambda values: {"id__range": values}),
    st.booleans().map(lambda value: {"id__isnull": value}),
    TEXT.map(lambda value: {"id__icontains": value}),
    st.just({"id": None}),
)


def merged(members: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for member in members for key, value in member.items()}


FILTERS = st.recursive(
    conditions(PATHS) | ID_CONDITIONS | st.just({}),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda members: {"AND": members}),
        st.lists(inner, min_size=1, max_size=3).map(lambda members: {"OR": members}),
        inner.map(lambda member: {"NOT": member}),
        st.lists(inner, max_size=3).map(merged),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(FILTERS)
def test_the_document_of_a_filter_parses_to_the_same_filter(obj: dict[str, Any]) -> None:
    parsed = parse_filter(obj)

    again = parse_filter(parsed.document, max_conditions=10**9, max_depth=10**9)

    assert again == parsed
    assert types_of(again) == types_of(parsed)
    assert again.document == parsed.document


@pytest.mark.parametrize(
    "obj",
    [
        {},
        {"AND": []},
        {"a": 1, "b": 2},
        {"a__in": [True, 1, "1", 1.5, False, 0]},
        {"icontains__icontains": "ẞ"},
        {"id__in": []},
        {"id": str(uuid.UUID(int=7)).upper()},
        {"NOT": {"OR": [{"a": None}, {"AND": [{"b__ne": None}, {"NOT": {}}]}]}},
    ],
    ids=str,
)
def test_the_document_of_odd_filters_too(obj: dict[str, Any]) -> None:
    parsed = parse_filter(obj)

    assert parse_filter(parsed.document) == parsed


def types_of(parsed: Filter) -> str:
    # 1 == 1.0 to Python, and so to the equality of filters; their text tells them apart.
    return repr(parsed.root)
