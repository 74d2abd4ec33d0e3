"""Plans of moves: their targets are met by as few slots as can be, and rows are as even as slots are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sharding.plan import Way, drain, rebalance, redistribute, shares
from cluster.sharding.table import SlotTable
from vectors.engine.ids import SLOT_COUNT

weights_of_shards = st.dictionaries(
    st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 1e308]), min_size=1, max_size=6
)


@st.composite
def tables(draw: st.DrawFn, *, most: int = 5) -> SlotTable:
    """Return a table whose slots belong to some of the shards 1 to 9, anyhow."""
    owners = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most, unique=True))
    seed = draw(st.integers(0, 2**16))
    return SlotTable(np.random.default_rng(seed).choice(np.array(owners, dtype=np.uint16), SLOT_COUNT))


def rows_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3.0, SLOT_COUNT)


def after(table: SlotTable, ways: list[Way]) -> SlotTable:
    """Return the table once the ways were gone, which every slot may go only once."""
    for way in ways:
        table = table.moved(way.slots, source=way.source, target=way.target)
    return table


@given(st.integers(0, 20_000), weights_of_shards)
def test_shares_add_up_and_are_no_more_than_one_beside_what_is_exact(total: int, weights: dict[int, float]) -> None:
    parts = shares(total, weights)

    assert sum(parts.values()) == total
    exact = {number: Fraction(weight) for number, weight in weights.items()}
    if not any(exact.values()):
        exact = dict.fromkeys(weights, Fraction(1))
    for number, part in parts.items():
        assert abs(part - total * exact[number] / sum(exact.values())) < 1.001


def test_of_equal_shares_the_larger_one_stays_where_it_is() -> None:
    assert shares(10, {1: 1.0, 2: 1.0, 3: 1.0}, {1: 3, 2: 3, 3: 4}) == {1: 3, 2: 3, 3: 4}
    assert shares(10, {1: 1.0, 2: 1.0, 3: 1.0}) == {1: 4, 2: 3, 3: 3}


@given(tables(), weights_of_shards, st.integers(0, 2**16))
def test_a_rebalancing_meets_every_share_and_moves_no_slot_more_than_it_must(
    table: SlotTable, weights: dict[int, float], seed: int
) -> None:
    ways = rebalance(table, weights, rows_of(seed))

    held = {number: len(table.owned_by(number)) for number in range(1, 10)}
    wanted = shares(SLOT_COUNT, weights, held)
    end = after(table, ways)
    assert {number: len(end.owned_by(number)) for number in wanted} == wanted
    excess = {number: len(table.owned_by(number)) - wanted.get(number, 0) for number in range(1, 10)}
    assert sum(len(way.slots) for way in ways) == sum(count for count in excess.values() if count > 0)
    assert all(excess[way.source] > 0 for way in ways)


@given(tables(), weights_of_shards, st.integers(0, 2**16))
def test_what_is_balanced_is_left_alone(table: SlotTable, weights: dict[int, float], seed: int) -> None:
    end = after(table, rebalance(table, weights, rows_of(seed)))

    assert rebalance(end, weights, rows_of(seed)) == []


@given(tables(most=4), weights_of_shards, st.integers(0, 2**16))
def test_a_drain_leaves_nothing_and_takes_from_nobody_else(
    table: SlotTable, weights: dict[int, float], seed: int
) -> None:
    source = int(table.owners[0])
    if not weights.keys() - {source}:
        with pytest.raises(ValueError, match="no shard"):
            drain(table, source, weights, rows_of(seed))
        return

    ways = drain(table, source, weights, rows_of(seed))

    end = after(table, ways)
    assert not end.owned_by(source)
    assert {way.source for way in ways} == {source}
    assert all(way.target in weights and way.target != source for way in ways)


def test_a_new_shard_gets_as_many_rows_as_slots_also_where_most_slots_are_empty() -> None:
    rows = np.zeros(SLOT_COUNT, dtype=np.int64)
    rows[np.random.default_rng(1).choice(SLOT_COUNT, 1_797, replace=False)] = 1
    table = SlotTable.even({1: 1.0, 2: 1.0})

    end = after(table, rebalance(table, {1: 1.0, 2: 1.0, 3: 1.0}, rows))

    held = [int(rows[end.owned_by(number).mask].sum()) for number in (1, 2, 3)]
    assert max(held) - min(held) <= 4


def test_a_drain_deals_full_slots_and_empty_ones_alike() -> None:
    rows = np.where(np.arange(SLOT_COUNT) % 2, 100, 0)
    table = SlotTable.even({1: 1.0})

    end = after(table, drain(table, 1, {2: 1.0, 3: 1.0}, rows))

    first, second = (int(rows[end.owned_by(number).mask].sum()) for number in (2, 3))
    assert first + second == rows.sum()
    assert abs(first - second) <= 100


def test_weights_are_heeded_in_rows_too() -> None:
    rows = rows_of(7)
    table = SlotTable.even({1: 1.0})

    end = after(table, rebalance(table, {1: 1.0, 2: 3.0}, rows))

    assert int(rows[end.owned_by(2).mask].sum()) / int(rows.sum()) == pytest.approx(0.75, abs=0.01)


def test_a_redistribution_takes_all_and_to_itself_nothing() -> None:
    table = SlotTable.even({1: 1.0, 2: 1.0})

    (way,) = redistribute(table, 1, 2)

    assert (way.source, way.target, way.slots) == (1, 2, table.owned_by(1))
    assert redistribute(table, 1, 1) == []
    assert redistribute(table, 3, 1) == []


def test_without_a_shard_that_takes_slots_nothing_can_be_planned() -> None:
    with pytest.raises(ValueError, match="no shard"):
        rebalance(SlotTable.even({1: 1.0}), {}, rows_of(1))


def test_an_even_table_has_the_slots_of_each_weight_and_every_slot_an_owner() -> None:
    table = SlotTable.even({3: 1.0, 5: 3.0})

    assert (len(table.owned_by(3)), len(table.owned_by(5))) == (4096, 12288)
    assert np.array_equal(SlotTable.of_bytes(table.to_bytes()).owners, table.owners)
    with pytest.raises(ValueError, match="owners"):
        SlotTable.of_bytes(b"short")


def test_a_shard_without_weight_gives_all_it_has() -> None:
    end = after(table := SlotTable.even({1: 1.0, 2: 1.0}), rebalance(table, {1: 0.0, 2: 1.0}, rows_of(3)))

    assert not end.owned_by(1)


def test_shards_without_weight_share_evenly_what_somebody_has_to_have() -> None:
    end = after(table := SlotTable.even({1: 1.0}), drain(table, 1, {1: 1.0, 2: 0.0, 3: 0.0}, rows_of(3)))

    assert (len(end.owned_by(2)), len(end.owned_by(3))) == (8192, 8192)


def test_the_only_shard_keeps_everything() -> None:
    assert rebalance(SlotTable.even({4: 1.0}), {4: 2.0}, rows_of(3)) == []


@given(st.integers(1, 40), st.integers(0, 2**16))
def test_of_what_a_shard_gives_away_the_rows_are_as_many_as_it_has_too_many(skew: int, seed: int) -> None:
    """Rows are uneven, as ids are seldom: full and empty slots side by side."""
    rows = np.random.default_rng(seed).poisson(3.0, SLOT_COUNT) * np.where(np.arange(SLOT_COUNT) % skew, 1, 20)
    table = SlotTable.even({1: 1.0, 2: 1.0, 3: 1.0})

    end = after(table, rebalance(table, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, rows))

    held = [int(rows[end.owned_by(number).mask].sum()) for number in (1, 2, 3)]
    fair = rows.sum() / 4
    assert all(abs(count - fair) <= max(rows.max() * 2, fair * 0.02) for count in held), (held, fair)
