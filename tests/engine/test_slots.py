"""Sets of slots, and views of a namespace that leave out the rows of other slots, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.oracle import Oracle
from tests.engine.test_engine_oracle import DIMENSION, UID, filters, operations, run, vectors
from vectors.bench.engine_side import frozen_part
from vectors.engine import ids, search
from vectors.engine.distances import Query
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.namespace import NamespaceEngine, NamespaceSpec
from vectors.engine.operations import ClearSlots, NamespacePut, PayloadError, SetSlots, Upsert, decode, encode
from vectors.engine.parts import FrozenPart
from vectors.engine.shard import ShardEngine
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, PACKED_BYTES, SlotSet

numbers_of_slots = st.sets(st.integers(0, SLOT_COUNT - 1), max_size=20)
# Halves, so that some of the few ids of the oracle's rows lie on either side.
halves = st.integers(0, 2**32 - 1).map(
    lambda seed: SlotSet.of_mask(np.random.default_rng(seed).random(SLOT_COUNT) < 0.5)
)
some_slots = st.one_of(halves, st.just(ALL_SLOTS), st.just(NO_SLOTS))


@given(a=numbers_of_slots, b=numbers_of_slots)
def test_a_set_of_slots_is_a_set(a, b):
    one, other = SlotSet.of(a), SlotSet.of(b)

    assert one.numbers.tolist() == sorted(a)
    assert (len(one), bool(one)) == (len(a), bool(a))
    assert (one | other, one & other, one - other) == (SlotSet.of(a | b), SlotSet.of(a & b), SlotSet.of(a - b))
    asked = np.array(sorted(a | b), dtype=np.uint16)
    assert one.has(asked).tolist() == [slot in a for slot in asked.tolist()]
    assert SlotSet(one.packed) == one
    assert hash(SlotSet(one.packed)) == hash(one)


def test_all_and_none_are_what_they_say():
    assert (len(ALL_SLOTS), len(NO_SLOTS)) == (SLOT_COUNT, 0)
    assert ALL_SLOTS - NO_SLOTS == ALL_SLOTS
    assert (0 in ALL_SLOTS, SLOT_COUNT - 1 in ALL_SLOTS, 0 in NO_SLOTS) == (True, True, False)


@pytest.mark.parametrize("length", [0, PACKED_BYTES - 1, PACKED_BYTES + 1])
def test_bytes_of_another_length_are_no_set(length):
    with pytest.raises(ValueError, match="bytes"):
        SlotSet(bytes(length))


def test_the_mask_of_a_set_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        SlotSet.of([3]).mask[4] = True


def owned(oracle: Oracle, slots: SlotSet) -> Oracle:
    rows = oracle.rows[UID]
    return Oracle({UID: {key: row for key, row in rows.items() if ids.slot_of(key) in slots}})


def check_masked(engine: ShardEngine, oracle: Oracle, slots: SlotSet, query, k, metric, filter) -> None:
    view = engine.view("a").only(slots)
    truth = owned(oracle, slots)
    keys = truth.matching(UID, filter)

    assert search.count(view, filter) == len(keys)
    assert view.count == len(truth.rows[UID])
    rows, more = search.scroll(view, limit=100, after=None, filter=filter)
    assert ([key for key, _, _ in rows], more) == (keys, False)
    if filter is not None:
        assert sorted(search.matching_keys(view, filter)) == keys
    values = np.array(query, dtype=np.float32)
    wanted = search.Wanted(Query.of(values, metric), k, filter)
    expected = [key for key, _ in truth.search(UID, values, k=k, metric=metric, filter=filter)]
    assert [found.key for found in search.search(view, wanted).found] == expected
    assert [[found.key for found in result.found] for result in search.search_batch(view, [wanted] * 2)] == [
        expected
    ] * 2
    asked = sorted(oracle.rows[UID])
    places = engine.find_many("a", asked, slots=slots)
    assert [key for key, place in zip(asked, places, strict=True) if place is not None] == sorted(truth.rows[UID])


@given(
    steps=operations,
    slots=some_slots,
    query=vectors,
    k=st.integers(1, 20),
    metric=st.sampled_from(["cosine", "ip", "l2"]),
    filter=filters,
)
@settings(max_examples=100, deadline=None)
def test_what_is_seen_of_some_slots_is_what_brute_force_sees_of_their_rows(steps, slots, query, k, metric, filter):
    engine, oracle = run(steps)

    check_masked(engine, oracle, slots, query, k, metric, filter)


def frozen_of(view) -> FrozenPart:
    """Return a segment of the living rows of a view."""
    rows, _ = search.scroll(view, limit=1000, after=None, filter=None)
    keys = [key for key, _, _ in rows]
    matrix = np.array([part.part.matrix[row] for _, part, row in rows], dtype=np.float32).reshape(-1, DIMENSION)
    seqs = np.array([part.part.seqs[row] for _, part, row in rows], dtype=np.int64)
    return frozen_part(matrix, keys, [part.part.metadata[row] for _, part, row in rows], seqs=seqs)


@given(before=operations, after=operations, slots=st.lists(some_slots, min_size=2, max_size=3), query=vectors)
@settings(max_examples=40, deadline=None)
def test_rows_of_segments_are_masked_as_well_whatever_was_deleted_or_asked_in_between(before, after, slots, query):
    engine, oracle = run(before)
    seq = engine.seq
    fresh = ShardEngine(term=1, seq=seq)
    spec = NamespaceSpec(UID, "a", DIMENSION, "cosine", 0.99)
    fresh.mount(NamespaceEngine(spec, frozen=[frozen_of(engine.view("a"))]))

    for some in slots:
        check_masked(fresh, oracle, some, query, 5, "cosine", None)
    for number, operation in enumerate(after, start=seq + 1):
        fresh.apply(seq=number, term=1, namespace=UID, operation=operation)
        oracle.apply(number, UID, operation)
        for some in slots:
            check_masked(fresh, oracle, some, query, 5, "cosine", None)


@given(steps=operations, slots=halves)
@settings(max_examples=30, deadline=None)
def test_a_view_keeps_its_masked_state_and_what_it_shows_while_rows_are_written(steps, slots):
    engine, oracle = run(steps)
    view = engine.view("a")
    masked = view.only(slots)
    shown = sorted(owned(oracle, slots).rows[UID])

    assert view.only(SlotSet(slots.packed)) is masked
    for seq, operation in enumerate(steps, start=engine.seq + 1):
        engine.apply(seq=seq, term=1, namespace=UID, operation=operation)

    assert [key for key, _, _ in search.scroll(masked, limit=100, after=None, filter=None)[0]] == shown


def test_a_part_whose_rows_are_all_meant_is_scanned_without_a_mask():
    [part] = run_one_upsert().view("a").only(ALL_SLOTS).parts

    assert part.living is None


def test_a_part_without_a_meant_row_is_left_out():
    assert list(run_one_upsert().view("a").only(NO_SLOTS).parts) == []


def run_one_upsert() -> ShardEngine:
    engine, _ = run([Upsert([ids.key_of(1), ids.key_of(2)], np.ones((2, DIMENSION), "f4"), [b"{}"] * 2)])
    return engine


def test_a_cleared_slot_is_empty_in_every_namespace():
    engine = run_one_upsert()
    other = "1" * 32
    engine.apply(seq=3, term=1, namespace=other, operation=NamespacePut("b", 2, "ip", 0.99))
    upsert = Upsert([ids.key_of(1), ids.key_of(2)], np.ones((2, 2), "f4"), [b"{}"] * 2)
    engine.apply(seq=4, term=1, namespace=other, operation=upsert)
    before = engine.view("a")

    clear = ClearSlots(SlotSet.of([ids.slot_of(ids.key_of(1))]).packed)
    engine.apply(seq=5, term=1, namespace="", operation=decode(clear.kind, encode(clear)))

    assert engine.result(5) == 2
    for name in ("a", "b"):
        assert [place is None for place in engine.find_many(name, upsert.keys)] == [True, False]
        assert engine.view(name).count == 1
    assert before.count == 2


@pytest.mark.parametrize("operation", [SetSlots(1, b"short"), ClearSlots(b"short")])
def test_a_set_of_slots_of_another_length_is_no_payload(operation):
    with pytest.raises(PayloadError):
        decode(operation.kind, encode(operation))


def test_the_engine_knows_the_epoch_of_the_newest_change_of_its_slots():
    engine = ShardEngine()
    assert engine.slots_epoch == 0
    for seq, epoch in enumerate((4, 9, 7), start=1):
        change = SetSlots(epoch, SlotSet.of([epoch]).packed)
        engine.apply(seq=seq, term=1, namespace="", operation=decode(change.kind, encode(change)))
        assert (engine.slots_epoch, engine.result(seq)) == (epoch, 0)

    engine.apply(seq=4, term=1, namespace=UID, operation=NamespacePut("a", DIMENSION, "cosine", 0.99))
    assert engine.slots_epoch == 7
