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
    kept = contenders(values, k, 0.0)
    assert np.array_equal(kept, np.flatnonzero((values >= kth_largest(values, k)) & (values > -np.inf)))


@pytest.mark.parametrize("per_row", [False, True])
def test_no_row_is_left_out_that_its_error_could_lift_into_the_k(per_row):
    rng = np.random.default_rng(4)
    truth = rng.random(20_000)
    error = rng.random(20_000) * 1e-3 if per_row else 1e-3
    seen = (truth + rng.uniform(-1, 1, 20_000) * error).astype(np.float64)
    best = set(np.argsort(-truth)[:25].tolist())
    assert best <= set(contenders(seen, 25, error).tolist())
