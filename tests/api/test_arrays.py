"""Vectors of a body: the quick look at one agrees with the close one, and neither takes a boolean for a number."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vectors.api.arrays import matrix, vector
from vectors.errors import DimensionMismatch, InvalidInput

ENTRIES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0, 1, 0.0, 1.0, -0.0, True, False, None, "1", [1], 10**400, 1e39, 3.4e38, 1e-46]),
    st.integers(-(2**70), 2**70),
)


def outcome(call: Any) -> Any:
    """Return the bytes of the vector, or the words of the refusal."""
    try:
        return call().tobytes()
    except (InvalidInput, DimensionMismatch) as error:
        return str(error), error.field


@example([1.0, float("nan")])
@example([float("-inf"), 1])
@example(np.array([1.0, np.inf], "<f4").tobytes())
@given(st.one_of(st.lists(ENTRIES, max_size=6), st.binary(max_size=17), st.text(max_size=4), st.none(), st.integers()))
def test_one_vector_is_read_as_a_matrix_of_one_row_is(values: Any) -> None:
    quick = outcome(lambda: vector(values, field="query"))
    close = outcome(lambda: matrix((values,), name=lambda _: "query")[0])

    assert quick == close


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_boolean_among_zeros_and_ones_is_refused(place: int, boolean: bool) -> None:
    row: list[Any] = [0, 1, 0.0, 1.0, 0.5]
    row[place] = boolean

    for read in (lambda: vector(row, field="query"), lambda: matrix([[1, 2, 3, 4, 5], row], name=str)):
        with pytest.raises(InvalidInput, match=f"entry {place} must be a number, got bool"):
            read()


def test_zeros_and_ones_are_numbers() -> None:
    row = [0, 1, 0.0, 1.0, -0.0]

    assert vector(row, field="query").tolist() == row
    assert matrix([row, row], name=str).tolist() == [row, row]


def test_the_largest_float32_values_are_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vector([3.4e38, 0, -3.4e38], field="query").dtype == np.float32
        assert matrix([[3.4e38, 0], [1, 1e38]], name=str).dtype == np.float32


@pytest.mark.parametrize("count", [0, 4097])
def test_a_vector_has_one_to_4096_numbers(count: int) -> None:
    for values in ([0.5] * count, b"\x00" * 4 * count):
        with pytest.raises(InvalidInput, match=f"1 to 4096 numbers, got {count}"):
            vector(values, field="query")
