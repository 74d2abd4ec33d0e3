"""Products with rows from anywhere in a matrix: the same with faiss and without, and of any dimension."""

from __future__ import annotations

import numpy as np
import pytest

from vectors.engine import fetching
from vectors.engine.fetching import products_of


@pytest.mark.parametrize("dimension", [1, 3, 16, 384, 1537])
@pytest.mark.parametrize("count", [0, 1, 7, 900])
@pytest.mark.parametrize("with_faiss", [True, False])
def test_products_are_those_of_numpy(
    monkeypatch: pytest.MonkeyPatch, dimension: int, count: int, with_faiss: bool
) -> None:
    if not with_faiss:
        monkeypatch.setattr(fetching, "faiss_library", lambda: None)
    generator = np.random.default_rng(dimension + count)
    matrix = generator.standard_normal((1000, dimension)).astype(np.float32)
    matrix.setflags(write=False)
    rows = np.sort(generator.choice(1000, size=count, replace=False))
    vector = generator.standard_normal(dimension).astype(np.float32)

    found = products_of(matrix, rows, vector)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, matrix[rows].astype(np.float64) @ vector, atol=1e-3)


def test_a_matrix_that_is_a_part_of_a_wider_one_is_read_where_it_lies() -> None:
    wide = np.arange(40, dtype=np.float32).reshape(5, 8)

    found = products_of(wide[:, :4], np.array([4, 1]), np.ones(4, dtype=np.float32))

    assert found.tolist() == [wide[4, :4].sum(), wide[1, :4].sum()]
