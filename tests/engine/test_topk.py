"""Top-k by threshold against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectors.engine.topk import contenders, kth_largest


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([0, 1, 5, 100, 9000, 30_000]),
    k=st.sampled_from([1, 2, 10, 1000]),
    masked=st.sampled_from([0.0, 0.5, 0.999]),
    levels=st.sampled_from([2, 50, 10**6]),
)
@settings(max_examples=120, deadline=None)
def test_the_kth_largest_is_that_of_a_sort(seed, count, k, masked, levels):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, count).astype(np.float32)
    values[rng.random(count) < masked] = -np.inf
    finite = np.sort(values[values > -np.inf])[::-1]
    assert kth_largest(values, k) == (finite[k - 1] if len(finite) >= k else -np.inf)
    kept = contenders(values, k, 0.0).rows
    assert np.array_equal(kept, np.flatnonzero((values >= kth_largest(values, k)) & (values > -np.inf)))


@pytest.mark.parametrize("per_row", [False, True])
def test_no_row_is_left_out_that_its_error_could_lift_into_the_k(per_row):
    rng = np.random.default_rng(4)
    truth = rng.random(20_000)
    error = rng.random(20_000) * 1e-3 if per_row else 1e-3
    seen = (truth + rng.uniform(-1, 1, 20_000) * error).astype(np.float64)
    best = set(np.argsort(-truth)[:25].tolist())
    assert best <= set(contenders(seen, 25, error).rows.tolist())


@pytest.mark.parametrize("per_row", [False, True])
def test_what_is_known_of_others_leaves_out_only_rows_that_cannot_reach_it(per_row):
    rng = np.random.default_rng(5)
    truth = rng.random(20_000)
    error = rng.random(20_000) * 1e-3 if per_row else 1e-3
    seen = (truth + rng.uniform(-1, 1, 20_000) * error).astype(np.float64)
    for reached in (-np.inf, 0.2, 0.99, 0.9999, 2.0):
        rows, floor = contenders(seen, 25, error, reached)
        best = set(np.argsort(-truth)[:25].tolist())
        assert {row for row in best if truth[row] >= reached} <= set(rows.tolist())
        assert floor >= reached
        assert floor == reached or np.count_nonzero(truth >= floor) >= 25
    assert len(contenders(seen, 1, error, 2.0).rows) == 0


def test_a_floor_that_no_float32_can_hold_leaves_no_row_out_that_reaches_it():
    values = np.array([1.0, np.finfo(np.float32).max, -np.inf], dtype=np.float32)
    assert 0 not in contenders(values, 1, 0.0, 1e300).rows
    assert contenders(values, 1, 0.0, -1e300).rows.tolist() == [0, 1]
