"""Who owns which slots by what the shards themselves say, when a coordinator's place was taken. Pure."""

from __future__ import annotations

import numpy as np

from cluster.services.succession_checks import Said, Verdict, judged
from cluster.sharding.table import SlotTable
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.slots import SlotSet
from vectors.store.slots import SlotsNow

HALF = SLOT_COUNT // 2
FIRST, SECOND = SlotSet.of(range(HALF)), SlotSet.of(range(HALF, SLOT_COUNT))
MOVED = SlotSet.of(range(100))
TABLE = SlotTable(np.repeat(np.array([1, 2], dtype="<u2"), HALF))


def said(*gates: tuple[int, SlotSet]) -> Said:
    return Said([SlotsNow(seq, epoch, writable) for seq, (epoch, writable) in enumerate(gates, 1)])


def owners(verdict: Verdict) -> tuple[SlotSet, SlotSet]:
    return verdict.table.owned_by(1), verdict.table.owned_by(2)


def test_shards_that_say_what_the_table_says_leave_it_as_it_is() -> None:
    verdict = judged(TABLE, {1: said((5, FIRST)), 2: said((5, SECOND))}, is_complete=True)

    assert (owners(verdict), bool(verdict.unsettled)) == ((FIRST, SECOND), False)


def test_what_another_shard_alone_may_write_is_its_own() -> None:
    verdict = judged(TABLE, {1: said((5, FIRST), (8, FIRST - MOVED)), 2: said((9, SECOND | MOVED))}, is_complete=True)

    assert owners(verdict) == (FIRST - MOVED, SECOND | MOVED)


def test_of_two_that_may_write_the_one_that_was_told_last_is_right() -> None:
    opened_in_vain = {1: said((5, FIRST), (8, FIRST - MOVED), (12, FIRST)), 2: said((9, SECOND | MOVED))}

    assert owners(judged(TABLE, opened_in_vain, is_complete=True)) == (FIRST, SECOND)


def test_what_nobody_may_write_is_opened_where_it_was_last_open() -> None:
    elsewhere_by_table = SlotTable(np.repeat(np.array([2, 1], dtype="<u2"), HALF))
    closed = {1: said((5, FIRST), (8, FIRST - MOVED)), 2: said((3, SECOND | MOVED), (4, SECOND))}

    assert owners(judged(TABLE, closed, is_complete=True)) == (FIRST, SECOND)
    assert owners(judged(elsewhere_by_table, closed, is_complete=True)) == (FIRST, SECOND)


def test_while_a_shard_is_silent_what_nobody_else_may_write_stays_unsettled() -> None:
    verdict = judged(TABLE, {1: said((5, FIRST), (8, FIRST - MOVED))}, is_complete=False)

    assert (owners(verdict), verdict.unsettled) == ((FIRST, SECOND), MOVED)


def test_what_belongs_to_a_silent_shard_is_not_in_doubt_and_nobody_else_s() -> None:
    verdict = judged(TABLE, {1: said((5, FIRST))}, is_complete=False)

    assert (owners(verdict), bool(verdict.unsettled)) == ((FIRST, SECOND), False)


def test_a_shard_that_was_never_told_of_slots_takes_none_of_others() -> None:
    assert owners(judged(TABLE, {1: said()}, is_complete=False)) == (FIRST, SECOND)
