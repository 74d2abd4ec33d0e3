"""What an index is tuned on and measured by: the truly nearest rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.index.segments import clustered, segment
from vectors.engine.distances import Query
from vectors.engine.index.truth import nearest


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_threads_find_the_rows_that_are_truly_nearest(threads: int, masked: bool) -> None:
    values = clustered(20_000, 16)
    part = segment(values)
    own = np.array([3, 17_000, 9, 12_345, 500])
    mask = np.arange(20_000) % 3 != 0 if masked else None
    queries = [Query.of(row, "cosine") for row in part.matrix[own]]

    found = nearest(part, queries, depth=20, leave_out=own, mask=mask, threads=threads)

    for row, query, rows in zip(own, queries, found, strict=True):
        products = part.matrix @ query.exact * part.inverse_norms(part.rows)
        products[row] = -np.inf
        if mask is not None:
            products[~mask] = -np.inf
        assert set(rows) == set(np.argsort(-products)[:20])
