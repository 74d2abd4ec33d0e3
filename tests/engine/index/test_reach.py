"""Easy queries look at few cells and hard ones at many."""

from __future__ import annotations

import numpy as np
import pytest

from vectors.engine.index import reach


def test_a_query_with_one_cell_much_nearer_than_the_others_looks_at_fewer_cells() -> None:
    easy = np.array([[0.1, 0.9, 0.91, 0.92, 0.93]], dtype=np.float32)
    hard = np.array([[0.1, 0.11, 0.12, 0.13, 0.14]], dtype=np.float32)

    assert reach.nearest(easy, 0.1, 2.1).tolist() == [[0]]
    assert reach.nearest(hard, 0.1, 2.1).tolist() == [[0, 1, 2, 3, 4]]


def test_cells_come_nearest_first_and_one_at_least() -> None:
    distances = np.array([[0.3, 0.1, 0.2]], dtype=np.float32)

    assert reach.nearest(distances, 1.0, 10.0).tolist() == [[1, 2, 0]]
    assert reach.nearest(distances, 1.0, -5.0).tolist() == [[1]]
    assert reach.nearest(distances, 1.0, np.inf).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("limit", [-1.0, 0.0, 0.7, 1.5, 3.0, 4.5, 9.0])
def test_many_queries_look_at_the_cells_that_each_would_alone(limit: float) -> None:
    distances = np.random.default_rng(3).normal(size=(50, 40)).astype(np.float32)

    together = reach.nearest(distances, 0.8, limit)

    for number, row in enumerate(together):
        [alone] = reach.nearest(distances[number : number + 1], 0.8, limit)
        assert row[row >= 0].tolist() == alone.tolist()


def test_reach_ascends_from_0_and_grows_with_rank_and_distance() -> None:
    cells, found = reach.of_cells(np.array([[2.0, 1.0, 4.0]], dtype=np.float32), 0.5)

    assert cells.tolist() == [[1, 0, 2]]
    assert found[0] == pytest.approx([0.0, np.log(2) + 2.0, np.log(3) + 6.0])


def test_cells_without_rows_are_out_of_reach() -> None:
    distances = np.array([[1.0, np.inf, 1.1], [np.inf, 1.0, 1.1]], dtype=np.float32)

    assert np.isinf(reach.of_cells(distances, 0.5)[1][:, 2]).all()


def test_equal_cells_have_a_spread_to_divide_by() -> None:
    assert reach.spread_of(np.ones((4, 4), dtype=np.float32)) > 0
