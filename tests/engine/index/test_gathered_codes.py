"""Codes copied out of the lists of an index are those that the rows have, and are scanned alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.index.segments import clustered
from vectors.engine.distances import Metric
from vectors.engine.index.scanner import Scanner, train


def scanner_of(values: np.ndarray, metric: Metric, *, per_code: int) -> tuple[Scanner, np.ndarray]:
    codebook = train(values, cells=20, dimensions_per_code=per_code, by_direction=metric == "cosine", seed=1, threads=1)
    scanner = Scanner(codebook, metric)
    scanner.add(values, threads=1)
    cells = np.empty(len(values), dtype=np.uint16)
    for cell in range(20):
        cells[scanner.numbers(cell)] = cell
    return scanner, cells


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(("dimension", "per_code"), [(16, 1), (17, 1), (32, 2), (34, 2), (384, 2)])
def test_they_are_ranked_as_a_scan_of_all_cells_ranks_them(metric: Metric, dimension: int, per_code: int) -> None:
    values = clustered(3000, dimension, seed=dimension)
    scanner, cells = scanner_of(values, metric, per_code=per_code)
    generator = np.random.default_rng(dimension)
    rows = np.sort(generator.choice(3000, size=700, replace=False))
    chosen = np.zeros(3000, dtype=bool)
    chosen[rows] = True
    gathered = scanner.gathered(rows, cells)
    everywhere = np.arange(20)[np.newaxis]

    assert gathered.rows == 700
    for query in clustered(20, dimension, seed=99):
        asked = np.ascontiguousarray(query[np.newaxis])
        [expected] = scanner.scan(asked, everywhere, count=700, selected=np.packbits(chosen, bitorder="little"))
        found = rows[gathered.nearest(asked, 700)]
        assert sorted(found.tolist()) == rows.tolist()
        # Rows of equal codes come in any order.
        assert len(set(found[:100].tolist()) & set(expected[:100].tolist())) >= 95


def test_more_than_there_are_is_answered_with_none_for_the_rest() -> None:
    values = clustered(600, 16)
    scanner, cells = scanner_of(values, "cosine", per_code=1)

    places = scanner.gathered(np.array([5, 77, 300]), cells).nearest(values[77][np.newaxis].copy(), 60)

    assert places[0] == 1
    assert sorted(places[:3].tolist()) == [0, 1, 2]
    assert set(places[3:].tolist()) == {-1}
