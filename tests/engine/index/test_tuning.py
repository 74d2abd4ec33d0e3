"""Settings are read off the ranks of known neighbours."""

from __future__ import annotations

import numpy as np

from vectors.engine.index.tuning import Costs, Ranks, settings

COSTS = Costs(probe_ns=1000.0, count_ns=100.0)


def ranks(reach: list[list[float]], codes: list[list[int]], *, cells: int = 64) -> Ranks:
    """Return ranks of neighbours among cells whose reach is 0, 1, 2 and so on for every query."""
    every = np.tile(np.arange(cells, dtype=np.float32), (len(reach), 1))
    return Ranks(np.array(reach, dtype=np.float32), np.array(codes), every)


def test_a_setting_reaches_the_neighbours_it_is_for() -> None:
    generator = np.random.default_rng(0)
    sample = ranks(generator.integers(0, 40, (100, 10)).tolist(), generator.integers(1, 500, (100, 10)).tolist())

    for setting in settings([sample], k=10, limit=1000, levels=[0.5, 0.9, 0.99], costs=COSTS):
        reached = np.mean(sample.reach <= setting.reach) * np.mean(sample.codes <= setting.count)
        assert reached >= setting.recall


def test_a_setting_says_how_many_cells_are_within_its_reach() -> None:
    sample = ranks([[3.0, 7.0]] * 50, [[1, 1]] * 50)

    [half, all_of_them] = settings([sample], k=2, limit=100, levels=[0.5, 1.0], costs=COSTS)

    assert (half.reach, half.probes) == (3.0, 4)
    assert (all_of_them.reach, all_of_them.probes) == (7.0, 8)


def test_every_sample_has_to_be_reached() -> None:
    easy, hard = ranks([[0.0] * 10], [[1] * 10]), ranks([[30.0] * 10], [[1] * 10])

    [alone] = settings([easy], k=10, limit=1000, levels=[0.9], costs=COSTS)
    [both] = settings([easy, hard], k=10, limit=1000, levels=[0.9], costs=COSTS)

    assert alone.reach == 0.0
    assert both.reach == 30.0


def test_what_no_setting_reaches_is_left_out() -> None:
    sample = ranks([[1.0, 1.0]], [[1, np.iinfo(np.int64).max]])

    assert [item.recall for item in settings([sample], k=2, limit=100, levels=[0.4, 0.6], costs=COSTS)] == [0.4]


def test_the_cheapest_of_the_settings_is_taken() -> None:
    # Half of the neighbours need many cells, or many rows, for the other half.
    sample = ranks([[1.0, 50.0]], [[1, 500]])
    cheap_cells = settings([sample], k=2, limit=1000, levels=[0.5], costs=Costs(1.0, 1000.0))
    cheap_rows = settings([sample], k=2, limit=1000, levels=[0.5], costs=Costs(10000.0, 1.0))

    assert (cheap_cells[0].reach, cheap_cells[0].count < 500) == (50.0, True)
    assert (cheap_rows[0].reach, cheap_rows[0].count >= 500) == (1.0, True)


def test_fewer_ranks_by_codes_than_queries_are_enough() -> None:
    every = ranks([[float(number)] for number in range(40)], [[1], [200]] * 20)
    fewer = Ranks(every.reach, every.codes[:2], every.all_reach)

    assert settings([fewer], k=1, limit=500, levels=[0.4, 0.9], costs=COSTS) == settings(
        [every], k=1, limit=500, levels=[0.4, 0.9], costs=COSTS
    )
