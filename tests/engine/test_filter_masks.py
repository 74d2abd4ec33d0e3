"""Filters: which rows every lookup matches, by table and against the reference on random rows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.segment_columns import columns_of_segment
from vectors.engine.filters import ColumnBudget, Columns, mask, matches, parse_filter
from vectors.engine.ids import key_of

UUID_A = "0a000000-0000-4000-8000-00000000000a"
UUID_B = "ff000000-0000-4000-8000-00000000000b"


def columns_over(
    documents: Sequence[dict[str, Any]], ids: Sequence[int | str] | None = None, *, budget: ColumnBudget | None = None
) -> tuple[Columns, list[bytes], list[bytes]]:
    metadata = [orjson.dumps(document) for document in documents]
    keys = [key_of(value) for value in ids or range(len(documents))]
    return Columns(lambda a, b: metadata[a:b], lambda a, b: keys[a:b], budget=budget), metadata, keys


def rows_matching(
    obj: object, documents: Sequence[dict[str, Any]], ids: Sequence[int | str] | None = None
) -> list[int]:
    """Return the rows a mask selects, having seen that the reference and the columns of a segment select the same."""
    columns, metadata, keys = columns_over(documents, ids)
    parsed = parse_filter(obj)
    found = mask(parsed, columns, len(documents))
    assert found.dtype == np.bool_
    assert found.tolist() == [matches(parsed, *row) for row in zip(metadata, keys, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    segment = columns_of_segment([metadata[row] for row in order], [keys[row] for row in order])
    assert mask(parsed, segment, len(documents)).tolist() == found[order].tolist()
    return np.flatnonzero(found).tolist()


SCALARS: list[dict[str, Any]] = [
    {"a": 1},
    {"a": 2.5},
    {"a": "1"},
    {"a": "Red"},
    {"a": True},
    {"a": False},
    {"a": None},
    {},
    {"a": {}},
    {"a": 0},
]


@pytest.mark.parametrize(
    ("obj", "rows"),
    [
        ({}, list(range(10))),
        ({"AND": []}, list(range(10))),
        ({"a": 1}, [0]),
        ({"a": 1.0}, [0]),
        ({"a": True}, [4]),
        ({"a": "1"}, [2]),
        ({"a": 0}, [9]),
        ({"a": -0.0}, [9]),
        ({"a": None}, [6, 7]),
        ({"a__ne": 1}, [1, 9]),
        ({"a__ne": "Red"}, [2]),
        ({"a__ne": True}, [5]),
        ({"a__ne": None}, [0, 1, 2, 3, 4, 5, 8, 9]),
        ({"a__in": [1, "Red", False]}, [0, 3, 5]),
        ({"a__in": []}, []),
        ({"a__lt": 1}, [9]),
        ({"a__lte": 1}, [0, 9]),
        ({"a__gt": 1}, [1]),
        ({"a__gte": 1}, [0, 1]),
        ({"a__lt": "Red"}, [2]),
        ({"a__lte": "Red"}, [2, 3]),
        ({"a__gt": "1"}, [3]),
        ({"a__gte": "1"}, [2, 3]),
        ({"a__range": [0, 1]}, [0, 9]),
        ({"a__range": [1, 0]}, []),
        ({"a__range": ["1", "R"]}, [2]),
        ({"a__contains": "e"}, [3]),
        ({"a__contains": ""}, [2, 3]),
        ({"a__contains": 1}, []),
        ({"a__contains": True}, []),
        ({"a__startswith": "Re"}, [3]),
        ({"a__startswith": "re"}, []),
        ({"a__endswith": "ed"}, [3]),
        ({"a__icontains": "RED"}, [3]),
        ({"a__isnull": True}, [6, 7]),
        ({"a__isnull": False}, [0, 1, 2, 3, 4, 5, 8, 9]),
        ({"NOT": {"a": 1}}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"NOT": {}}, []),
        ({"NOT": {"NOT": {"a": 1}}}, [0]),
        ({"OR": [{"a": 1}, {"a": "1"}]}, [0, 2]),
        ({"AND": [{"a__gte": 0}, {"a__lt": 2}]}, [0, 9]),
        ({"a__gte": 0, "OR": [{"a": 0}, {"a": 2.5}, {"a": True}], "NOT": {"a": 0}}, [1]),
    ],
    ids=repr,
)
def test_every_lookup_on_scalars(obj: object, rows: list[int]) -> None:
    assert rows_matching(obj, SCALARS) == rows


ARRAYS: list[dict[str, Any]] = [
    {"a": ["new", "red"]},
    {"a": ["old", 5, True]},
    {"a": []},
    {"a": [None, None]},
    {"a": [None, 5]},
    {"a": [["deep", [7]]]},
    {"a": 5},
    {"a": [{"b": 5}]},
    {"a": [[], None]},
    {"a": [[None]]},
]


@pytest.mark.parametrize(
    ("obj", "rows"),
    [
        ({"a": "red"}, [0]),
        ({"a": 7}, [5]),
        ({"a": 5}, [1, 4, 6]),
        ({"a__ne": "red"}, [0, 1, 5]),
        ({"a__ne": 5}, [5]),
        ({"a__in": ["new", 7]}, [0, 5]),
        ({"a__contains": "e"}, [0, 5]),
        ({"a__contains": 5}, [1, 4]),
        ({"a__contains": 7}, [5]),
        ({"a__contains": True}, [1]),
        ({"a__startswith": "o"}, [1]),
        ({"a__endswith": "p"}, [5]),
        ({"a__gt": 5}, [5]),
        ({"a__isnull": True}, [3, 9]),
        ({"a__isnull": False}, [0, 1, 2, 4, 5, 6, 7, 8]),
        ({"a.b": 5}, [7]),
        ({"a.b__contains": 5}, []),
        ({"NOT": {"a": "red"}}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
    ids=repr,
)
def test_an_array_matches_if_any_element_does(obj: object, rows: list[int]) -> None:
    assert rows_matching(obj, ARRAYS) == rows


def test_as_many_values_as_rows_need_not_be_one_value_a_row() -> None:
    assert rows_matching({"a": 2}, [{"a": [1, 2]}, {}]) == [0]
    assert rows_matching({"a": "y"}, [{}, {"a": ["x", "y"]}]) == [1]


PATHS: list[dict[str, Any]] = [
    {"author": {"country": "DE"}},
    {"author.country": "DE"},
    {"author": {"country": "FR"}, "author.country": "DE"},
    {"author": [{"country": "FR"}, {"country": ["IT", "DE"]}, 5]},
    {"author": "DE"},
    {"author": {"country": None}},
    {"author": [[{"country": "DE"}]]},
    {"author": {}},
    {"a": {"b.c": 1}},
    {"a.b": {"c": 1}},
    {"a": {"b": {"c": [1]}}},
    {"AND": 1, "x__y": 2, "": {"": 3}},
]


@pytest.mark.parametrize(
    ("obj", "rows"),
    [
        ({"author.country": "DE"}, [0, 1, 2, 3, 6]),
        ({"author.country__ne": "DE"}, [2, 3]),
        ({"author.country__isnull": False}, [0, 1, 2, 3, 6]),
        ({"author__isnull": False}, [0, 2, 3, 4, 5, 6, 7]),
        ({"a.b.c": 1}, [8, 9, 10]),
        ({"a.b.c__contains": 1}, [10]),
        ({"a.b__isnull": False}, [9, 10]),
        ({"AND__exact": 1}, [11]),
        ({"x__y__exact": 2}, [11]),
        ({".": 3}, [11]),
    ],
    ids=repr,
)
def test_dotted_paths_reach_into_objects_and_arrays_of_objects(obj: object, rows: list[int]) -> None:
    assert rows_matching(obj, PATHS) == rows


BIG = [
    2**53,
    2**53 + 1,
    2**53 + 2,
    -(2**53) - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    float(2**53),
    1e300,
    0.5,
    2.0**63,
]


@pytest.mark.parametrize("lookup", ["exact", "ne", "lt", "lte", "gt", "gte"])
def test_integers_beyond_two_to_the_53_compare_exactly(lookup: str) -> None:
    documents = [{"a": value} for value in BIG]
    tests = {
        "exact": lambda x, y: x == y,
        "ne": lambda x, y: x != y,
        "lt": lambda x, y: x < y,
        "lte": lambda x, y: x <= y,
        "gt": lambda x, y: x > y,
        "gte": lambda x, y: x >= y,
    }
    for operand in [*BIG, 2**64, -(2**64), 10**400, -(10**400), 2**60 + 1, 0, -0.5, 1e19]:
        expected = [row for row, value in enumerate(BIG) if tests[lookup](value, operand)]
        assert rows_matching({f"a__{lookup}": operand}, documents) == expected, operand


def test_large_integers_alone_are_as_exact_as_among_other_numbers() -> None:
    for sign in (1, -1):
        documents = [{"a": sign * (2**53 + row)} for row in range(4)]
        for row in range(4):
            assert rows_matching({"a": sign * (2**53 + row)}, documents) == [row]


def test_long_lists_of_numbers_are_exact_too() -> None:
    wanted = [2**53 + 1, 2**64 - 1, 2**64, 0.5, *range(100, 130)]
    documents = [{"a": value} for value in [*BIG, 100, 129, 130]]
    assert rows_matching({"a__in": wanted}, documents) == [1, 6, 10, 12, 13]
    assert rows_matching({"a__range": [2**53 + 1, 2**63 - 1]}, documents) == [1, 2, 4]


TEXTS = ["straße", "STRASSE", "z", "ä", "\uffff", "\U0001f600", "日本", "e\u0301", "é", ""]


@pytest.mark.parametrize(
    ("obj", "rows"),
    [
        ({"t__icontains": "Strasse"}, [0, 1]),
        ({"t__icontains": "SSE"}, [0, 1]),
        ({"t__contains": "本"}, [6]),
        ({"t": "é"}, [8]),
        ({"t__gt": "\uffff"}, [5]),
        ({"t__lte": "z"}, [0, 1, 2, 7, 9]),
        ({"t__startswith": "日"}, [6]),
        ({"t__endswith": ""}, list(range(10))),
        ({"t__endswith": "e"}, [0]),
        ({"t__contains": "e"}, [0, 7]),
        ({"ключ": "да"}, []),
    ],
    ids=repr,
)
def test_text_is_unicode_in_order_of_code_points(obj: object, rows: list[int]) -> None:
    assert rows_matching(obj, [{"t": text} for text in TEXTS]) == rows


IDS: list[int | str] = [-5, 7, 2**63 - 1, "7", "abc", "Ábc", UUID_A, UUID_B, -(2**63)]


@pytest.mark.parametrize(
    ("obj", "rows"),
    [
        ({"id": 7}, [1]),
        ({"id": "7"}, [3]),
        ({"id": UUID_A.upper()}, [6]),
        ({"id__ne": 7}, [0, 2, 3, 4, 5, 6, 7, 8]),
        ({"id__ne": UUID_B}, [0, 1, 2, 3, 4, 5, 6, 8]),
        ({"id__in": [7, "abc", UUID_B, "nobody"]}, [1, 4, 7]),
        ({"id__in": []}, []),
        ({"id__in": [*range(20), UUID_A, *(str(uuid.UUID(int=i)) for i in range(20)), *"0123456789"]}, [1, 3, 6]),
        ({"id__lt": 7}, [0, 8]),
        ({"id__lte": 7}, [0, 1, 8]),
        ({"id__gt": "7"}, [4, 5]),
        ({"id__gte": UUID_A}, [6, 7]),
        ({"id__lt": UUID_B}, [6]),
        ({"id__lte": UUID_B}, [6, 7]),
        ({"id__gt": UUID_A}, [7]),
        ({"id__range": [-5, 7]}, [0, 1]),
        ({"id__range": ["7", "abc"]}, [3, 4]),
        ({"id__range": [UUID_A, UUID_B]}, [6, 7]),
        ({"id__range": [UUID_B, UUID_A]}, []),
        ({"id__contains": "-4000-"}, [6, 7]),
        ({"id__startswith": "a"}, [4]),
        ({"id__startswith": "0a"}, [6]),
        ({"id__endswith": "bc"}, [4, 5]),
        ({"id__icontains": "ÁB"}, [5]),
        ({"id__icontains": "FF00"}, [7]),
        ({"id__isnull": False}, list(range(9))),
        ({"id__isnull": True}, []),
        ({"id": None}, []),
        ({"NOT": {"id__gt": 0}}, [0, 3, 4, 5, 6, 7, 8]),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_every_lookup_on_ids(obj: object, rows: list[int]) -> None:
    assert rows_matching(obj, [{}] * len(IDS), IDS) == rows


@pytest.mark.parametrize("count", [1, 40])
def test_uuids_that_share_a_half_are_told_apart(count: int) -> None:
    ids: list[int | str] = [str(uuid.UUID(int=(high << 64) + low)) for high in (1, 2, 2**63) for low in (1, 2, 2**63)]
    others = [str(uuid.UUID(int=(high << 64) + 7)) for high in range(count - 1)]
    documents: list[dict[str, Any]] = [{}] * len(ids)
    for row, row_id in enumerate(ids):
        assert rows_matching({"id__in": [row_id, *others]}, documents, ids) == [row]
        assert rows_matching({"id__lt": row_id}, documents, ids) == list(range(row))
        assert rows_matching({"id__gte": row_id}, documents, ids) == list(range(row, len(ids)))


def test_many_distinct_strings_give_the_same_rows_as_few() -> None:
    documents = [{"t": f"{(row * 7919) % 5000:05}"} for row in range(5000)]
    columns, metadata, keys = columns_over([*documents, *({"t": f"{row:05}x"} for row in range(700))])
    for n in (5000, 5700):  # the second: strings newer than the sorted copy
        for obj in (
            {"t__lt": "02500"},
            {"t__lte": "02500"},
            {"t__gt": "00699x"},
            {"t__gte": "04999"},
            {"t__range": ["00010", "00020"]},
            {"t__range": ["00020", "00010"]},
            {"t__startswith": "0049"},
            {"t__startswith": ""},
            {"t__contains": "99"},
        ):
            for salt in range(2):
                parsed = parse_filter({**obj, "NOT": {"t": f"none {salt} {n}"}})
                expected = [matches(parsed, *row) for row in zip(metadata[:n], keys[:n], strict=True)]
                assert mask(parsed, columns, n).tolist() == expected


def test_json_nested_deeper_than_python_calls_is_walked() -> None:
    deep = b'{"a":' + b"[" * 1000 + b"5" + b"]" * 1000 + b"}"
    columns = Columns(lambda a, b: [deep], lambda a, b: [key_of(1)])
    objects = b'{"a":' * 600 + b"5" + b"}" * 600
    segment = columns_of_segment([deep, objects], [key_of(1), key_of(2)])
    parsed = parse_filter({"a__contains": 5})
    assert mask(parsed, columns, 1).tolist() == [True] == [matches(parsed, deep, key_of(1))]
    assert mask(parsed, segment, 2).tolist() == [True, False]
    assert mask(parse_filter({"a.a.a.a__isnull": False}), segment, 2).tolist() == [False, True]


NAMES = ["a", "b", "a.b", "b.a", "a.b.a", "c", "id"]
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
    st.sampled_from([0.5, -0.0, 1.0, float(2**53), 2.0**63, 1e300]),
)
STRINGS = st.text(alphabet="aAbß0é😀", max_size=3)
SCALAR_VALUES = st.one_of(NUMBERS, STRINGS, st.booleans())
JSON_VALUES = st.recursive(
    st.one_of(st.none(), SCALAR_VALUES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4)
ROW_IDS = st.one_of(st.integers(-3, 3), STRINGS.filter(bool), st.sampled_from([UUID_A, UUID_B]))
PATH_NAMES = st.sampled_from(NAMES[:-1])
RANGES = st.one_of(st.tuples(NUMBERS, NUMBERS), st.tuples(STRINGS, STRINGS)).map(list)
CONDITIONS = st.one_of(
    st.tuples(PATH_NAMES, st.sampled_from(["", "__exact", "__ne"]), st.one_of(st.none(), SCALAR_VALUES)),
    st.tuples(PATH_NAMES, st.just("__in"), st.lists(SCALAR_VALUES, max_size=20)),
    st.tuples(PATH_NAMES, st.sampled_from(["__lt", "__lte", "__gt", "__gte"]), st.one_of(NUMBERS, STRINGS)),
    st.tuples(PATH_NAMES, st.just("__range"), RANGES),
    st.tuples(PATH_NAMES, st.just("__contains"), SCALAR_VALUES),
    st.tuples(PATH_NAMES, st.sampled_from(["__startswith", "__endswith", "__icontains"]), STRINGS),
    st.tuples(PATH_NAMES, st.just("__isnull"), st.booleans()),
    st.tuples(st.just("id"), st.sampled_from(["", "__ne", "__lt", "__lte", "__gt", "__gte"]), ROW_IDS),
    st.tuples(st.just("id"), st.just("__in"), st.lists(ROW_IDS, max_size=4)),
    st.tuples(st.just("id"), st.sampled_from(["__contains", "__startswith", "__endswith", "__icontains"]), STRINGS),
).map(lambda parts: {parts[0] + parts[1]: parts[2]})
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda members: {"AND": members}),
        st.lists(inner, min_size=1, max_size=3).map(lambda members: {"OR": members}),
        inner.map(lambda member: {"NOT": member}),
        st.tuples(inner, inner).map(lambda pair: {**pair[0], **pair[1]}),
    ),
    max_leaves=5,
)
ROWS = st.lists(st.tuples(DOCUMENTS, ROW_IDS), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, filters=st.lists(FILTERS, min_size=1, max_size=4), data=st.data())
def test_a_mask_is_the_reference_row_by_row(
    rows: list[tuple[dict[str, Any], int | str]], filters: list[dict[str, Any]], data: st.DataObject
) -> None:
    limit = data.draw(st.sampled_from([None, 0, 2000]))
    columns, metadata, keys = columns_over(
        [document for document, _ in rows], [row_id for _, row_id in rows], budget=ColumnBudget(limit)
    )
    # Any order of lengths: growth extends columns and masks, and a shorter reader gets a part of a longer mask.
    for n in data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=4)):
        for obj in filters:
            parsed = parse_filter(obj)
            expected = [matches(parsed, *row) for row in zip(metadata[:n], keys[:n], strict=True)]
            assert mask(parsed, columns, n).tolist() == expected
