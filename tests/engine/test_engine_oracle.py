"""The engine against brute force: random operations, searches, counts and scrolls."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.oracle import Oracle
from vectors.engine import ids, search
from vectors.engine.digest import view_digest
from vectors.engine.distances import Query, exact_scores
from vectors.engine.filters import parse_filter
from vectors.engine.operations import (
    ClearSlots,
    Delete,
    NamespaceDrop,
    NamespacePut,
    Patch,
    StartTerm,
    Upsert,
    decode,
    encode,
)
from vectors.engine.shard import ShardEngine
from vectors.engine.slots import SlotSet
from vectors.errors import LogGap

UID = "0" * 32
DIMENSION = 3

small_ids = st.one_of(st.integers(0, 12), st.sampled_from(["a", "b", "ü", "00000000-0000-4000-8000-000000000001"]))
# Few distinct values, so that ties, zero vectors and duplicates are common.
numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-20, 1e20, 3.3])
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION)
metadata = st.fixed_dictionaries(
    {}, optional={"n": st.integers(0, 3), "s": st.sampled_from(["x", "y", "xy"]), "t": st.lists(st.sampled_from("xy"))}
)


@st.composite
def upserts(draw):
    rows = draw(st.dictionaries(small_ids, st.tuples(vectors, metadata), min_size=1, max_size=6))
    return Upsert(
        [ids.key_of(key) for key in rows],
        np.array([values for values, _ in rows.values()], dtype=np.float32),
        [orjson.dumps(row) for _, row in rows.values()],
    )


@st.composite
def deletes(draw):
    keys = draw(st.lists(small_ids, min_size=1, max_size=4))
    return Delete([ids.key_of(key) for key in keys], draw(st.none() | st.integers(0, 20)))


@st.composite
def patches(draw):
    rows = draw(st.dictionaries(small_ids, metadata, min_size=1, max_size=3))
    return Patch([ids.key_of(key) for key in rows], [orjson.dumps(row) for row in rows.values()])


@st.composite
def clears(draw):
    keys = draw(st.lists(small_ids, min_size=1, max_size=4))
    return ClearSlots(SlotSet.of(ids.slots_of([ids.key_of(key) for key in keys])).packed)


operations = st.lists(st.one_of(upserts(), upserts(), deletes(), patches(), clears()), max_size=12)
filters = st.none() | st.sampled_from(
    [{"n": 1}, {"n__gte": 2}, {"s__contains": "x"}, {"t": "y"}, {"NOT": {"n": 0}}]
).map(parse_filter)


def run(steps) -> tuple[ShardEngine, Oracle]:
    engine, oracle = ShardEngine(), Oracle()
    put = NamespacePut("a", DIMENSION, "cosine", 0.99)
    for seq, operation in enumerate([put, *steps], start=1):
        operation = decode(operation.kind, encode(operation))
        engine.apply(seq=seq, term=1, namespace=UID, operation=operation)
        assert engine.result(seq) == oracle.apply(seq, UID, operation)
    return engine, oracle


@given(
    steps=operations,
    query=vectors,
    k=st.integers(1, 20),
    metric=st.sampled_from(["cosine", "ip", "l2"]),
    filter=filters,
)
@settings(max_examples=300, deadline=None)
def test_search_count_and_scroll_equal_brute_force(steps, query, k, metric, filter):
    engine, oracle = run(steps)
    view = engine.view("a")
    values = np.array(query, dtype=np.float32)
    expected = oracle.search(UID, values, k=k, metric=metric, filter=filter)
    wanted = search.Wanted(Query.of(values, metric), k, filter)
    found = [(item.key, item.score) for item in search.search(view, wanted).found]
    assert [key for key, _ in found] == [key for key, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-12, abs=1e-300)
    batch = search.search_batch(view, [wanted, wanted])
    assert [[item.key for item in result.found] for result in batch] == [[key for key, _ in expected]] * 2
    assert search.count(view, filter) == len(oracle.matching(UID, filter))
    rows, more = search.scroll(view, limit=5, after=None, filter=filter)
    everything = oracle.matching(UID, filter)
    assert ([key for key, _, _ in rows], more) == (everything[:5], len(everything) > 5)
    if rows:
        after, _ = search.scroll(view, limit=100, after=rows[-1][0], filter=filter)
        assert [key for key, _, _ in after] == everything[5:]
    assert sorted(search.matching_keys(view, parse_filter({}))) == oracle.matching(UID, None)


@given(steps=operations)
@settings(max_examples=100, deadline=None)
def test_rows_hold_the_values_and_metadata_last_written(steps):
    engine, oracle = run(steps)
    for key in [ids.key_of(value) for value in [*range(13), "a", "b", "ü"]]:
        place = engine.find_many("a", [key])[0]
        expected = oracle.rows[UID].get(key)
        assert (place is None) == (expected is None)
        if place is not None and expected is not None:
            part, row = place
            assert part.matrix[row].tolist() == expected[0].tolist()
            assert orjson.loads(part.metadata[row]) == expected[1]


@given(steps=operations, again=st.integers(0, 11))
@settings(max_examples=50, deadline=None)
def test_invariant_2_applying_an_operation_twice_changes_nothing(steps, again):
    engine, _ = run(steps)
    before = view_digest(engine.view("a"))
    if again < len(steps):
        assert not engine.apply(seq=again + 2, term=1, namespace=UID, operation=steps[again])
    assert view_digest(engine.view("a")) == before


def test_invariant_2_a_gap_is_refused():
    engine, _ = run([])
    with pytest.raises(LogGap):
        engine.apply(seq=3, term=1, namespace=UID, operation=NamespaceDrop())
    assert engine.seq == 1


@given(steps=operations, place=st.integers(0, 12), rise=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_the_start_of_a_term_advances_the_engine_and_changes_nothing(steps, place, rise):
    engine, _ = run(steps[:place])
    before = view_digest(engine.view("a"))
    start = StartTerm("n" * 32, after=1)
    start = decode(start.kind, encode(start))
    assert engine.apply(seq=engine.seq + 1, term=1 + rise, namespace="", operation=start)
    assert (engine.term, engine.seq) == (1 + rise, len(steps[:place]) + 2)
    assert engine.result(engine.seq) == 0
    assert view_digest(engine.view("a")) == before


@pytest.mark.parametrize(
    ("term", "operation"),
    [
        (2, Delete([ids.key_of(1)])),
        (2, NamespaceDrop()),
        (3, StartTerm("n" * 32, after=2)),
        (0, StartTerm("n", after=1)),
    ],
)
def test_invariant_2_another_term_is_refused_unless_it_says_that_it_follows_this_one(term, operation):
    engine, _ = run([Upsert([ids.key_of(1)], np.ones((1, DIMENSION), dtype=np.float32), [b"{}"])])
    with pytest.raises(LogGap):
        engine.apply(seq=3, term=term, namespace=UID, operation=operation)
    assert (engine.term, engine.seq, engine.view("a").count) == (1, 2, 1)
    assert engine.apply(seq=3, term=7, namespace="", operation=StartTerm("n" * 32, after=1))


def test_a_view_does_not_change_while_writers_go_on():
    rng = np.random.default_rng(1)
    keys = [ids.key_of(number) for number in range(500)]
    engine, _ = run([Upsert(keys, rng.standard_normal((500, DIMENSION), dtype=np.float32), [b"{}"] * 500)])
    view = engine.view("a")
    query = Query.of(np.ones(DIMENSION, dtype=np.float32), "cosine")
    before = search.search(view, search.Wanted(query, 50)).found
    engine.apply(seq=3, term=1, namespace=UID, operation=Delete(keys[:400]))
    engine.apply(
        seq=4,
        term=1,
        namespace=UID,
        operation=Upsert(keys[300:], np.ones((200, DIMENSION), dtype=np.float32), [b"{}"] * 200),
    )
    assert [item.key for item in search.search(view, search.Wanted(query, 50)).found] == [item.key for item in before]
    assert view.count == 500
    assert engine.view("a").count == 200


def test_a_dropped_uid_never_returns():
    engine, _ = run([Upsert([ids.key_of(1)], np.ones((1, DIMENSION), dtype=np.float32), [b"{}"])])
    engine.apply(seq=3, term=1, namespace=UID, operation=NamespaceDrop())
    engine.apply(seq=4, term=1, namespace=UID, operation=NamespacePut("a", DIMENSION, "cosine", 0.99))
    assert engine.view("a") is None
    engine.apply(seq=5, term=1, namespace="1" * 32, operation=NamespacePut("a", DIMENSION, "cosine", 0.99))
    assert engine.view("a").count == 0


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 3e38])
def test_vectors_of_any_magnitude_are_ranked_right(metric, scale):
    rng = np.random.default_rng(5)
    values = np.clip(rng.standard_normal((3000, 8)) * scale, -3.4e38, 3.4e38).astype(np.float32)
    values[::7] = 0
    values[1::11] /= np.float32(1e3)
    keys = [ids.key_of(number) for number in range(len(values))]
    engine, oracle = ShardEngine(), Oracle()
    for seq, operation in enumerate(
        [NamespacePut("a", 8, metric, 0.99), Upsert(keys, values, [b"{}"] * len(keys))], start=1
    ):
        engine.apply(seq=seq, term=1, namespace=UID, operation=operation)
        oracle.apply(seq, UID, operation)
    for query in (values[3], rng.standard_normal(8).astype(np.float32), np.zeros(8, dtype=np.float32)):
        expected = oracle.search(UID, query, k=25, metric=metric)
        found = search.search(engine.view("a"), search.Wanted(Query.of(query, metric), 25)).found
        assert [item.key for item in found] == [key for key, _ in expected]


def test_scores_do_not_depend_on_where_a_row_stands():
    rng = np.random.default_rng(9)
    values = rng.standard_normal((5000, 384), dtype=np.float32)
    query = Query.of(rng.standard_normal(384).astype(np.float32), "cosine")
    scores = []
    for shift in (0, 1, 777):
        rolled = np.roll(values, shift, axis=0)
        keys = [ids.key_of((number - shift) % len(values)) for number in range(len(values))]
        engine = ShardEngine()
        engine.apply(seq=1, term=1, namespace=UID, operation=NamespacePut("a", 384, "cosine", 0.99))
        engine.apply(seq=2, term=1, namespace=UID, operation=Upsert(keys, rolled, [b"{}"] * len(keys)))
        scores.append(
            [(item.key, item.score) for item in search.search(engine.view("a"), search.Wanted(query, 100)).found]
        )
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("threshold", [0.9, -2.0, 2.0])
def test_a_score_threshold_keeps_what_is_good_enough(threshold):
    rng = np.random.default_rng(2)
    keys = [ids.key_of(number) for number in range(300)]
    engine, oracle = run([Upsert(keys, rng.standard_normal((300, DIMENSION), dtype=np.float32), [b"{}"] * 300)])
    query = np.array([1, 2, 3], dtype=np.float32)
    for metric in ("cosine", "l2"):
        kept = [
            key
            for key, score in oracle.search(UID, query, k=300, metric=metric)
            if (score <= threshold if metric == "l2" else score >= threshold)
        ][:40]
        found = search.search(engine.view("a"), search.Wanted(Query.of(query, metric), 40, None, threshold)).found
        assert [item.key for item in found] == kept


def test_a_row_is_exactly_as_similar_to_itself_as_can_be():
    rng = np.random.default_rng(3)
    for dimension in (1, 7, 64, 384, 1000):
        values = rng.standard_normal((50, dimension), dtype=np.float32) * np.float32(3.7)
        scores = [exact_scores(values[row : row + 1], Query.of(values[row], "cosine"))[0] for row in range(50)]
        assert scores == [1.0] * 50


def test_parts_that_float32_holds_and_parts_that_it_does_not_are_ranked_together():
    # The tiny row sends its part through float64, the other part stays in float32.
    first = Upsert([ids.key_of(1), ids.key_of(9)], np.array([[1, 0], [1e-16, 0]], dtype=np.float32), [b"{}"] * 2)
    many = np.tile(np.array([[0.5, 0.5]], dtype=np.float32), (100, 1))
    second = Upsert([ids.key_of(number) for number in range(100, 200)], many, [b"{}"] * 100)
    for metric in ("cosine", "ip", "l2"):
        engine, oracle = ShardEngine(), Oracle()
        for seq, operation in enumerate([NamespacePut("a", 2, metric, 0.99), first, second], start=1):
            engine.apply(seq=seq, term=1, namespace=UID, operation=operation)
            oracle.apply(seq, UID, operation)
        assert len(engine.view("a").parts) == 2
        for query in ([1.0, 0.0], [0.3, 0.4], [1e-17, 0.0]):
            values = np.array(query, dtype=np.float32)
            found = search.search(engine.view("a"), search.Wanted(Query.of(values, metric), 3)).found
            assert [item.key for item in found] == [key for key, _ in oracle.search(UID, values, k=3, metric=metric)]
