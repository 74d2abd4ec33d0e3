"""Which shard a row goes to, and which ids are drawn: data in, data out, no database."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.query_processor.errors import ShardUnavailable
from cluster.query_processor.sharded.routing import drawn_keys, parts_of, some_of
from cluster.sharding.view import ShardingView, ShardMember
from cluster.states import PeerHealth, ShardState
from vectors.engine import ids
from vectors.engine.slots import SlotSet
from vectors.query_processor import VectorBatch


def view(owners: np.ndarray, *, strategy: str = "hash", closed: SlotSet | None = None, **members) -> ShardingView:
    """A picture in which slot i is the shard's of number owners[i]; `members` are changes by label, m0, m1 …"""
    made = tuple(
        ShardMember(
            **{
                "number": number + 1,
                "label": f"m{number}",
                "uid": f"{number:032x}",
                "slots": SlotSet.of_mask(owners == number),
                "state": ShardState.ACTIVE,
                "shard_id": number + 1,
                **members.get(f"m{number}", {}),
            }
        )
        for number in range(int(owners.max()) + 1)
    )
    return ShardingView(strategy, 5, made, owners.astype(np.uint16), closed)


def spread(count: int) -> np.ndarray:
    return np.arange(ids.SLOT_COUNT) % count


def owners_of(picture: ShardingView, keys) -> Counter[str]:
    return Counter(picture.members[owner].label for owner in picture.owners[ids.slots_of(keys)].tolist())


@given(st.lists(st.integers(0, ids.SLOT_COUNT - 1), max_size=200), st.integers(1, 7), st.booleans())
def test_every_row_is_in_one_part_its_owner_s_in_the_order_of_the_request(slots, shards, has_numbers):
    picture = view(spread(shards))
    array = np.array(slots, dtype=np.uint16)
    numbers = np.arange(len(slots)) * 3 + 1 if has_numbers else None

    parts = parts_of(picture, array, numbers)

    expected: dict[str, list[int]] = {}
    for place, slot in enumerate(slots):
        expected.setdefault(picture.owner_of(slot).label, []).append(place * 3 + 1 if has_numbers else place)
    assert {part.member.label: part.rows.tolist() for part in parts} == expected


def test_some_rows_of_a_batch_keep_their_keys_values_and_metadata():
    keys = [ids.key_of(number) for number in range(5)]
    batch = VectorBatch([None] * 5, np.arange(10, dtype="f4").reshape(5, 2), [b"%d" % number for number in range(5)])

    some = some_of(batch, keys, np.array([1, 4]))

    assert (some.keys, some.metadata) == ([keys[1], keys[4]], [b"1", b"4"])
    assert some.values.tolist() == [[2, 3], [8, 9]]
    assert some.values.flags.c_contiguous
    assert some_of(batch, keys, np.arange(5)).keys == keys


def test_ids_by_hash_fall_in_proportion_to_the_slots_of_the_shards_that_are_up():
    picture = view(spread(4).clip(max=2), m0={"health": PeerHealth.DEAD})

    fallen = owners_of(picture, drawn_keys(picture, 3000, turn=0))

    assert set(fallen) == {"m1", "m2"}
    assert 1800 < fallen["m2"] < 2200


def test_ids_by_turn_are_the_same_number_for_each_shard_however_few_slots_it_has():
    owners = np.zeros(ids.SLOT_COUNT, dtype=int)
    owners[5], owners[6] = 1, 2
    picture = view(owners, strategy="round_robin")

    assert owners_of(picture, drawn_keys(picture, 300, turn=7)) == {"m0": 100, "m1": 100, "m2": 100}
    one_by_one = [drawn_keys(picture, 1, turn=turn)[0] for turn in range(3)]
    assert owners_of(picture, one_by_one) == {"m0": 1, "m1": 1, "m2": 1}


@pytest.mark.parametrize("strategy", ["hash", "round_robin"])
@pytest.mark.parametrize("against", [{"health": PeerHealth.SUSPECT}, {"state": ShardState.DRAINING}])
def test_ids_leave_out_what_something_speaks_against_while_there_is_a_choice(strategy, against):
    picture = view(spread(3), strategy=strategy, m1=against)
    assert set(owners_of(picture, drawn_keys(picture, 100, turn=0))) == {"m0", "m2"}

    alone = view(spread(1), strategy=strategy, m0=against)
    assert set(owners_of(alone, drawn_keys(alone, 10, turn=0))) == {"m0"}


def test_ids_leave_out_shards_that_were_found_to_take_nothing():
    picture = view(spread(3))

    keys = drawn_keys(picture, 50, turn=0, avoided=frozenset({picture.members[0].uid}))

    assert set(owners_of(picture, keys)) == {"m1", "m2"}
    with pytest.raises(ShardUnavailable):
        drawn_keys(picture, 1, turn=0, avoided=frozenset(member.uid for member in picture.members))


@pytest.mark.parametrize("strategy", ["hash", "round_robin"])
def test_ids_leave_out_closed_slots_while_others_are_open(strategy):
    closed = SlotSet.of(range(0, ids.SLOT_COUNT, 2))
    picture = view(spread(2), strategy=strategy, closed=closed)

    slots = ids.slots_of(drawn_keys(picture, 200, turn=0))
    assert not closed.has(slots).any()

    everything = view(spread(2), strategy=strategy, closed=closed | SlotSet.of(range(1, ids.SLOT_COUNT, 2)))
    assert len(drawn_keys(everything, 10, turn=0)) == 10
