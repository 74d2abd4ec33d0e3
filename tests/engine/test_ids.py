"""Ids: their one byte form, its order, slots and hashes."""

from __future__ import annotations

import os
import uuid

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectors.engine import ids
from vectors.errors import InvalidInput

id_values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.uuids().map(str),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
)


@given(id_values)
def test_an_id_comes_back_as_it_went_in(value):
    assert ids.id_of(ids.key_of(value)) == value or uuid.UUID(value) == uuid.UUID(ids.id_of(ids.key_of(value)))


@given(st.lists(id_values, max_size=30))
def test_keys_order_integers_then_uuids_then_strings_by_utf8(values):
    def rank(value):
        if isinstance(value, int):
            return (0, value, b"")
        try:
            if len(value) == 36 and str(uuid.UUID(value)) == value.lower():
                return (1, 0, uuid.UUID(value).bytes)
        except ValueError:
            return (2, 0, value.encode())
        return (2, 0, value.encode())

    assert sorted(values, key=rank) == sorted(values, key=ids.key_of)


@pytest.mark.parametrize(
    "value",
    [True, None, 1.0, "", "x" * 256, "é" * 128, 2**63, -(2**63) - 1, [], {}, b"x", "\ud800"],
)
def test_what_is_no_id_is_refused(value):
    with pytest.raises(InvalidInput) as caught:
        ids.key_of(value)
    assert caught.value.field == "id"


def test_a_uuid_in_upper_case_is_the_same_uuid():
    text = str(uuid.uuid4())
    assert ids.key_of(text.upper()) == ids.key_of(text)
    assert ids.id_of(ids.key_of(text.upper())) == text


def test_the_integer_7_and_the_string_7_differ():
    assert ids.key_of(7) != ids.key_of("7")
    assert ids.key_of_text("7") == ids.key_of(7)
    assert ids.key_of_text("7", as_string=True) == ids.key_of("7")
    assert ids.key_of_text("-0") == ids.key_of(0)
    assert ids.key_of_text("٣") == ids.key_of("٣")


def test_an_integer_in_a_path_that_is_too_large_is_refused():
    with pytest.raises(InvalidInput):
        ids.key_of_text("9" * 4000)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_an_integer_that_json_could_only_read_as_a_float_is_refused_as_too_large(number):
    with pytest.raises(InvalidInput, match="must fit in 64 bits"):
        ids.key_of(orjson.loads(str(number)))


def test_slots_are_those_of_the_redis_cluster_hash():
    # The reference value of the Redis Cluster specification: CRC16("123456789") = 0x31C3.
    assert ids.slot_of(ids.key_of("123456789")) == 0x31C3 % 16384
    assert ids.slot_of(ids.key_of(123456789)) == 0x31C3 % 16384
    text = str(uuid.uuid4())
    assert ids.slots_of([ids.key_of(text)]).tolist() == [ids.slot_of(ids.key_of(text))]


def test_hashes_are_the_same_in_every_process():
    # Segments on disk are found by these values.
    assert ids.hashes_of([ids.key_of("a"), ids.key_of(1)]).tolist() == [10334054577060475852, 14823204535699414326]
    assert ids.hashes_of([]).dtype == np.dtype("<u8")


@given(st.lists(id_values, max_size=20), st.integers(0, 40), st.randoms(use_true_random=False))
def test_slots_of_many_ids_are_those_of_each(values, uuids, random):
    keys = [ids.key_of(value) for value in values]
    keys += [ids.key_of(str(uuid.UUID(int=random.getrandbits(128)))) for _ in range(uuids)]
    random.shuffle(keys)

    assert ids.slots_of(keys).tolist() == [ids.slot_of(key) for key in keys]


def test_a_uuid_can_be_drawn_in_every_slot_whatever_the_chance():
    every = np.arange(ids.SLOT_COUNT, dtype=np.uint16)

    for byte in (0, 0xFF):
        keys = ids.uuid_keys_in(every, random_bytes=bytes([byte]) * 16 * ids.SLOT_COUNT)
        assert [ids.slot_of(key) for key in keys] == every.tolist()


def test_drawn_uuids_are_of_version_4_and_differ():
    slots = np.full(5000, 77, dtype=np.uint16)

    keys = ids.uuid_keys_in(slots, random_bytes=os.urandom(16 * 5000))

    drawn = [uuid.UUID(bytes=key[1:]) for key in keys]
    assert {(one.version, one.variant) for one in drawn} == {(4, uuid.RFC_4122)}
    assert len(set(drawn)) == 5000
