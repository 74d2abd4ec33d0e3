"""Settings are read off the ranks of known neighbours."""

from __future__ import annotations

import numpy as np

from vectors.engine.index.tuning import Costs, Ranks, settings

COSTS = Costs(probe_ns=1000.0, count_ns=100.0)


def ranks(cells: list[list[int]], codes: list[list[int]]) -> Ranks:
    return Ranks(np.array(cells), np.array(codes))


def test_a_setting_reaches_the_neighbours_it_is_for() -> None:
    generator = np.random.default_rng(0)
    sample = Ranks(generator.integers(1, 40, (100, 10)), generator.integers(1, 500, (100, 10)))

    found = settings([sample], k=10, cells=64, limit=1000, levels=[0.5, 0.9, 0.99], costs=COSTS)

    assert [setting.recall for setting in found] == [0.5, 0.9, 0.99]
    for setting in found:
        reached = np.mean((sample.cells <= setting.probes) & (sample.codes <= setting.count))
        assert reached >= setting.recall


def test_every_sample_has_to_be_reached() -> None:
    easy, hard = ranks([[1] * 10], [[1] * 10]), ranks([[30] * 10], [[1] * 10])

    [alone] = settings([easy], k=10, cells=64, limit=1000, levels=[0.9], costs=COSTS)
    [both] = settings([easy, hard], k=10, cells=64, limit=1000, levels=[0.9], costs=COSTS)

    assert alone.probes == 1
    assert both.probes >= 30


def test_what_no_setting_reaches_is_left_out() -> None:
    sample = ranks([[1, 1]], [[1, np.iinfo(np.int64).max]])

    assert [item.recall for item in settings([sample], k=2, cells=8, limit=100, levels=[0.4, 0.6], costs=COSTS)] == [
        0.4
    ]


def test_the_cheapest_of_the_settings_is_taken() -> None:
    # Half of the neighbours need many cells, the other half many rows: either half is enough.
    sample = ranks([[1, 50]], [[500, 1]])
    cheap_cells = settings([sample], k=2, cells=64, limit=1000, levels=[0.5], costs=Costs(1.0, 1000.0))
    cheap_rows = settings([sample], k=2, cells=64, limit=1000, levels=[0.5], costs=Costs(10000.0, 1.0))

    assert cheap_cells[0].probes >= 50
    assert cheap_rows[0].probes == 1
    assert cheap_rows[0].count >= 500
