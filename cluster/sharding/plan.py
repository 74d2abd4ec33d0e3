"""Plans of moves: which slots go from which shard to which. Pure.

Shards are numbers here, as in the slot table. A plan moves as few slots as reach its target, which is a count of slots
for each shard; of a shard that gives some away those go whose rows together come nearest to what it has too many, so
that rows are as even as slots are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cluster.sharding.table import SlotTable
from vectors.engine.slots import SlotSet


class Way(NamedTuple):
    """Slots that go from one shard to another."""

    source: int
    target: int
    slots: SlotSet


def shares(total: int, weights: Mapping[int, float], held: Mapping[int, int] | None = None) -> dict[int, int]:
    """Divide a whole number by weights: largest remainders first, equal ones to who has `held` more, then by number.

    The parts add up to it. Weights that are all zero divide it evenly: somebody has to have it.
    """
    numbers = sorted(weights)
    exact = _normal([weights[number] for number in numbers]) * total
    parts = np.floor(exact).astype(np.int64)
    # Remainders that differ in their last bits only are those of equal weights.
    remainders = np.round(exact - parts, 9)
    # Who has more than the whole part keeps one for it. Who has most would not do: a larger share is no larger a claim,
    # and what was divided so would be divided otherwise the next time.
    has_more = np.array([(held or {}).get(number, 0) for number in numbers], dtype=np.int64) > parts
    for place in np.lexsort((~has_more, -remainders))[: total - int(parts.sum())]:
        parts[place] += 1
    return dict(zip(numbers, parts.tolist(), strict=True))


def rebalance(table: SlotTable, weights: Mapping[int, float], rows: np.ndarray) -> list[Way]:
    """Return what gives each shard of `weights` its share; shards that are not in it give all they have.

    `rows` (16384,) are the rows of each slot. Raise ValueError when nobody may have slots.
    """
    if not weights:
        raise ValueError("no shard may be given slots")
    held = {number: table.owned_by(number) for number in np.unique(table.owners).tolist()}
    wanted = shares(len(table.owners), weights, {number: len(slots) for number, slots in held.items()})
    chosen: list[tuple[int, np.ndarray]] = []
    needs = {number: count - len(held.get(number, ())) for number, count in wanted.items()}
    fair = dict(zip(weights, _normal(list(weights.values())) * rows.sum(), strict=True))
    for number, slots in held.items():
        excess = len(slots) - wanted.get(number, 0)
        if excess > 0:
            too_many = rows[slots.mask].sum() - fair.get(number, 0.0)
            chosen.append((number, _nearest(slots.numbers, rows, excess, too_many)))
    return _dealt(chosen, {number: need for number, need in needs.items() if need > 0}, rows)


def drain(table: SlotTable, source: int, weights: Mapping[int, float], rows: np.ndarray) -> list[Way]:
    """Return what takes all slots from one shard and brings the others as near to their shares as these slots can."""
    others = {number: weight for number, weight in weights.items() if number != source}
    if not others:
        raise ValueError("no shard may be given slots")
    slots = table.owned_by(source)
    wanted = shares(len(table.owners), others)
    lacking = {number: max(0, count - len(table.owned_by(number))) for number, count in wanted.items()}
    needs = shares(len(slots), lacking) if any(lacking.values()) else shares(len(slots), others)
    return _dealt([(source, slots.numbers)], {number: need for number, need in needs.items() if need > 0}, rows)


def redistribute(table: SlotTable, source: int, target: int) -> list[Way]:
    """Return what gives all slots of one shard to another."""
    slots = table.owned_by(source)
    return [Way(source, target, slots)] if slots and source != target else []


def _normal(weights: Sequence[float]) -> np.ndarray:
    """Return weights as parts of one; equal parts when none has any."""
    given = np.array(weights, dtype=np.float64)
    # The largest first: the sum of two large weights may be more than a float can be.
    largest = given.max()
    given = given / largest if largest > 0 else np.ones(len(given))
    parts: np.ndarray = given / given.sum()
    return parts


def _nearest(slots: np.ndarray, rows: np.ndarray, count: int, wanted_rows: float) -> np.ndarray:
    """Return `count` of `slots` whose rows together come near `wanted_rows`: neighbours in the order of their rows."""
    ordered = slots[np.argsort(rows[slots], kind="stable")]
    sums = np.concatenate(([0], np.cumsum(rows[ordered])))
    windows = sums[count:] - sums[: len(sums) - count]
    start = int(np.argmin(np.abs(windows - wanted_rows)))
    return ordered[start : start + count]


def _dealt(given: Sequence[tuple[int, np.ndarray]], needs: Mapping[int, int], rows: np.ndarray) -> list[Way]:
    """Deal what is given away to those who need it: slots of many rows and of few in turn, each gets its number."""
    if not given or not needs:
        return []
    slots = np.concatenate([some for _, some in given])
    sources = np.concatenate([np.full(len(some), number) for number, some in given])
    numbers = sorted(needs)
    # Each target's turns are spread evenly over the whole: so each gets its share of full and of empty slots.
    turns = np.concatenate([(np.arange(needs[number]) + 0.5) / needs[number] for number in numbers])
    takers = np.concatenate([np.full(needs[number], number) for number in numbers])
    takers = takers[np.argsort(turns, kind="stable")]
    order = np.argsort(-rows[slots], kind="stable")
    slots, sources = slots[order], sources[order]
    ways = []
    for source in dict.fromkeys(number for number, _ in given):
        for target in numbers:
            mine = slots[(sources == source) & (takers == target)]
            if len(mine):
                ways.append(Way(int(source), int(target), SlotSet.of(mine)))
    return ways
