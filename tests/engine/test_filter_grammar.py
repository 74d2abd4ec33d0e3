"""Filters: what is refused, and where the error says it is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vectors.engine.filters import parse_filter
from vectors.errors import InvalidFilter

DEEP: dict[str, Any] = {"a": 1}
for _ in range(17):
    DEEP = {"NOT": DEEP}


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (None, "filter"),
        ([], "filter"),
        ("a", "filter"),
        ({1: 2}, "filter"),
        ({"a\ud800": 1}, "filter"),
        ({"price__less": 1}, "filter.price__less"),
        ({"price__": 1}, "filter.price__"),
        ({"a__b": 1}, "filter.a__b"),
        ({"price__LT": 1}, "filter.price__LT"),
        ({"price__lt__gt": 1, "b__lt__x": 1}, "filter.b__lt__x"),
        ({"": 1}, "filter."),
        ({"__lt": 1}, "filter.__lt"),
        ({"x" * 1025: 1}, "filter." + "x" * 1024),
        ({".".join("x" * 33): 1}, "filter." + ".".join("x" * 33)),
        ({"a": [1]}, "filter.a"),
        ({"a": {"b": 1}}, "filter.a"),
        ({"a__exact": []}, "filter.a__exact"),
        ({"a__ne": [1]}, "filter.a__ne"),
        ({"a__ne": {}}, "filter.a__ne"),
        ({"a": math.nan}, "filter.a"),
        ({"a__lt": math.inf}, "filter.a__lt"),
        ({"a": b"x"}, "filter.a"),
        ({"a": "\ud800"}, "filter.a"),
        ({"a__in": "abc"}, "filter.a__in"),
        ({"a__in": 1}, "filter.a__in"),
        ({"a__in": None}, "filter.a__in"),
        ({"a__in": {"x": 1}}, "filter.a__in"),
        ({"a__in": [1, None]}, "filter.a__in[1]"),
        ({"a__in": [[1]]}, "filter.a__in[0]"),
        ({"a__in": [1, -math.inf]}, "filter.a__in[1]"),
        ({"a__in": list(range(10_001))}, "filter.a__in"),
        ({"a__range": [1]}, "filter.a__range"),
        ({"a__range": [1, 2, 3]}, "filter.a__range"),
        ({"a__range": 1}, "filter.a__range"),
        ({"a__range": "ab"}, "filter.a__range"),
        ({"a__range": [1, "b"]}, "filter.a__range"),
        ({"a__range": [True, False]}, "filter.a__range"),
        ({"a__range": [1, True]}, "filter.a__range"),
        ({"a__range": [1, None]}, "filter.a__range[1]"),
        ({"a__isnull": 1}, "filter.a__isnull"),
        ({"a__isnull": "true"}, "filter.a__isnull"),
        ({"a__isnull": None}, "filter.a__isnull"),
        ({"a__lt": True}, "filter.a__lt"),
        ({"a__lte": None}, "filter.a__lte"),
        ({"a__gt": [1]}, "filter.a__gt"),
        ({"a__gte": {}}, "filter.a__gte"),
        ({"a__contains": None}, "filter.a__contains"),
        ({"a__contains": ["x"]}, "filter.a__contains"),
        ({"a__startswith": 1}, "filter.a__startswith"),
        ({"a__endswith": True}, "filter.a__endswith"),
        ({"a__icontains": 1.5}, "filter.a__icontains"),
        ({"AND": {"a": 1}}, "filter.AND"),
        ({"AND": "a"}, "filter.AND"),
        ({"AND": [1]}, "filter.AND[0]"),
        ({"AND": [{"a": 1}, {"price__lt": None}]}, "filter.AND[1].price__lt"),
        ({"OR": []}, "filter.OR"),
        ({"OR": {}}, "filter.OR"),
        ({"OR": [{"a": 1}, None]}, "filter.OR[1]"),
        ({"NOT": [{"a": 1}]}, "filter.NOT"),
        ({"NOT": None}, "filter.NOT"),
        ({"NOT": {"OR": [{"a": 1}, {"AND": [{"b__x": 1}]}]}}, "filter.NOT.OR[1].AND[0].b__x"),
        (DEEP, "filter" + ".NOT" * 17),
        ({str(i): i for i in range(257)}, "filter.256"),
        ({"AND": [{}] * 257}, "filter.AND[256]"),
        ({"id": True}, "filter.id"),
        ({"id": 1.0}, "filter.id"),
        ({"id": ""}, "filter.id"),
        ({"id": 2**63}, "filter.id"),
        ({"id__ne": "x" * 256}, "filter.id__ne"),
        ({"id__in": [1, 2.5]}, "filter.id__in[1]"),
        ({"id__range": [1, "a"]}, "filter.id__range"),
        ({"id__range": [1, ""]}, "filter.id__range[1]"),
        ({"id__lt": None}, "filter.id__lt"),
        ({"id__contains": 5}, "filter.id__contains"),
        ({"id__isnull": 0}, "filter.id__isnull"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_is_not_a_filter_is_refused_naming_the_place(obj: object, field: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(obj)
    assert (caught.value.field, caught.value.status) == (field, 400)


def test_the_place_begins_with_the_field_of_the_caller() -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter({"AND": [{"a__in": 1}]}, field="searches[3].filter")
    assert caught.value.field == "searches[3].filter.AND[0].a__in"


@pytest.mark.parametrize(
    ("obj", "limits"),
    [
        ({"a": 1, "b": 2, "c": 3}, {"max_conditions": 2}),
        ({"OR": [{}, {}, {}]}, {"max_conditions": 2}),
        ({"NOT": {"NOT": {"a": 1}}}, {"max_depth": 1}),
        ({"a__in": [1, 2, 3]}, {"max_values": 2}),
    ],
)
def test_limits_hold_and_one_more_passes(obj: object, limits: dict[str, int]) -> None:
    with pytest.raises(InvalidFilter):
        parse_filter(obj, **limits)  # type: ignore[arg-type]
    parse_filter(obj, **{name: limit + 1 for name, limit in limits.items()})  # type: ignore[arg-type]


def test_equal_filters_are_one_key_and_types_keep_them_apart() -> None:
    assert parse_filter({"a__in": [1, 2], "NOT": {"b": "x"}}) == parse_filter({"a__in": [1, 2], "NOT": {"b": "x"}})
    assert hash(parse_filter({"a": "x"})) == hash(parse_filter({"a__exact": "x"}))
    alike = [
        {"a": 1},
        {"a": True},
        {"a": "1"},
        {"a__ne": 1},
        {"b": 1},
        {"NOT": {"a": 1}},
        {"a__in": [1, True]},
        {"id": 1},
    ]
    assert len({parse_filter(obj) for obj in alike}) == len(alike)


def test_a_filter_knows_what_it_looks_at() -> None:
    parsed = parse_filter({"a.b": 1, "OR": [{"id": 1}, {"NOT": {"c__lt": 2, "a.b__ne": 3}}]})
    assert (parsed.paths, parsed.uses_id, parsed.matches_all) == (("a.b", "c"), True, False)
    assert parse_filter({}).matches_all
    assert parse_filter({"AND": []}).matches_all
