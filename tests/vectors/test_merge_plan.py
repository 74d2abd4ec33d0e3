"""What merges choose: few segments, each row written seldom, nothing indexed in vain."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vectors.engine.namespace import NamespaceSpec
from vectors.engine.packed import PackedBytes, pack
from vectors.engine.parts import FrozenPart, TailPart
from vectors.store.manifests import ManifestRecord, NamespaceRecord
from vectors.store.merge_plan import Indexing, Merging, Planner, Tiers, alive_bytes
from vectors.store.row_order import RowOrder
from vectors.store.segment_files import FileStamp, IndexRecord, SegmentRecord

SPEC = NamespaceSpec("u", "a", 384, "cosine", 0.99)
MIB = 1024 * 1024


def segment(rows, *, dead=0, uid=None, indexed=None, unindexed=None):
    name = uid or f"{np.random.default_rng().integers(1 << 62):032x}"
    record = SegmentRecord(name, rows, 384, {}, deleted_rows=dead)
    if indexed is not None:
        summary = {"recall_target": indexed}
        record = dataclasses.replace(record, index=IndexRecord("index.1.1.bin", FileStamp(1, 1), summary))
    return dataclasses.replace(record, unindexed=unindexed)


def merged(sources):
    return segment(sum(source.alive for source in sources))


@given(
    sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=120),
    factor=st.integers(2, 6),
    max_mib=st.sampled_from([16, 64, 4096]),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_segments_stay_as_few_as_said_and_rows_are_written_once_for_each_tier(sizes, factor, max_mib):
    tiers = Tiers(factor, max_mib * MIB)
    segments, written, small, total = [], 0, 0, 0
    for rows in sizes:
        segments.append(segment(rows))
        total += alive_bytes(segments[-1])
        while sources := tiers.to_merge(segments):
            gone = {source.uid for source in sources}
            segments = [item for item in segments if item.uid not in gone] + [merged(sources)]
            size = alive_bytes(segments[-1])
            if tiers.tier(size):
                written += size
            else:
                small += 1
        assert len(segments) <= tiers.bound(total)
        assert sum(map(alive_bytes, segments)) == total
    assert written <= total * tiers.tier(total)
    assert small <= len(sizes) / (factor - 1)


@given(sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=60))
@hypothesis_settings(max_examples=100, deadline=None)
def test_merging_at_rest_writes_a_row_five_times_at_most_while_a_namespace_grows(sizes):
    tiers = Tiers(1_000, 4096 * MIB)
    segments, written, total = [], 0, 0
    for rows in sizes:
        segments.append(segment(rows))
        total += rows
        while sources := tiers.at_rest(segments):
            gone = {source.uid for source in sources}
            segments = [item for item in segments if item.uid not in gone] + [merged(sources)]
            written += segments[-1].rows
        assert max(item.rows for item in segments) >= 0.8 * total
    assert written <= 5 * total + total


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3_000_000), st.floats(0, 1)), min_size=1, max_size=12),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_planning_comes_to_an_end(sizes):
    segments = [segment(rows, dead=int(rows * share)) for rows, share in sizes]
    planner = Planner(Tiers(4, 4096 * MIB), 10_000, {"u": 0.99})
    for _ in range(100):
        step = planner.next_step(manifest_of(segments), rested=True)
        if step is None:
            return
        if isinstance(step, Merging):
            gone = {source.uid for source in step.sources}
            segments = [item for item in segments if item.uid not in gone]
            made = merged(step.sources)
            if made.rows:
                segments.append(indexed_if_wanted(planner, made))
        else:
            segments = [indexed_if_wanted(planner, item) if item.uid == step.segment.uid else item for item in segments]
    pytest.fail("it never ends")


def indexed_if_wanted(planner, record):
    if not planner.wants_index(record, 0.99):
        return record
    return dataclasses.replace(record, index=IndexRecord("i", FileStamp(1, 1), {"recall_target": 0.99}))


def manifest_of(segments, spec=SPEC):
    return ManifestRecord(1, 1, 1, {"u": NamespaceRecord(spec, segments)})


def uids(segments):
    return {item.uid for item in segments}


def planned(segments, *, rested=False, target=0.99, anew=(), indexing=True):
    planner = Planner(Tiers(4, 4096 * MIB), 10_000, {"u": target}, anew, indexing)
    return planner.next_step(manifest_of(segments), rested=rested)


def test_full_tiers_are_merged_before_anything_is_indexed():
    full = [segment(50_000) for _ in range(4)]
    assert uids(planned(full).sources) == uids(full)
    assert isinstance(planned(full[:3]), Indexing)
    assert isinstance(planned(full[:3], rested=True), Indexing)


def test_a_merge_that_fills_the_next_tier_takes_that_along():
    small, large = [segment(1000) for _ in range(4)], [segment(4000) for _ in range(3)]
    assert uids(planned([*small, *large]).sources) == uids([*small, *large])


def test_the_largest_segment_without_an_index_comes_first():
    step = planned([segment(20_000, uid="b"), segment(30_000, uid="a"), segment(90_000, indexed=0.99)])
    assert step.segment.uid == "a"


@pytest.mark.parametrize(
    ("record", "target", "anew", "wanted"),
    [
        (segment(20_000), 0.99, False, True),
        (segment(900), 0.99, False, False),
        (segment(20_000), 1.0, False, False),
        (segment(20_000, indexed=0.99), 0.99, False, False),
        (segment(20_000, indexed=0.99), 0.9, False, False),
        (segment(20_000, indexed=0.99), 0.995, False, True),
        (segment(20_000, indexed=0.99), 0.99, True, True),
        (segment(20_000, unindexed={"recall_target": 0.99}), 0.99, False, False),
        (segment(20_000, unindexed={"recall_target": 0.99}), 0.95, False, True),
        (segment(20_000, unindexed={"recall_target": 0.99}), 0.99, True, True),
    ],
)
def test_an_index_is_made_where_there_is_none_or_one_for_less(record, target, anew, wanted):
    step = planned([record], target=target, anew={record.uid} if anew else ())
    assert (step is not None) is wanted
    assert planned([record], target=target, anew={record.uid} if anew else (), indexing=False) is None


def test_where_some_have_an_index_the_others_get_theirs_before_all_are_merged():
    indexed = [segment(50_000, indexed=0.99) for _ in range(3)]
    fresh = segment(50_000)
    assert planned([*indexed, fresh]).segment is fresh
    assert uids(planned([*indexed, segment(50_000, indexed=0.99)]).sources) > uids(indexed)
    # What is too small for an index, or cannot have one, is waited for by nobody.
    small, hopeless = segment(900), segment(50_000, unindexed={"recall_target": 0.99})
    assert uids(planned([*indexed, hopeless, small]).sources) == uids([*indexed, hopeless, small])
    assert uids(planned([*indexed, fresh], indexing=False).sources) == uids([*indexed, fresh])


def test_indexed_segments_that_are_enough_do_not_wait_for_others_and_too_many_wait_no_longer():
    indexed = [segment(50_000, indexed=0.99) for _ in range(4)]
    fresh = [segment(50_000) for _ in range(4)]
    assert uids(planned([*indexed, fresh[0]]).sources) == uids(indexed)
    assert uids(planned([*indexed, *fresh]).sources) == uids([*indexed, *fresh])


def test_busy_segments_are_as_good_as_not_there():
    planner = Planner(Tiers(4, 4096 * MIB), 10_000, {"u": 0.99})
    full = [segment(50_000) for _ in range(4)]
    busy = {full[0].uid, full[1].uid}
    step = planner.next_step(manifest_of(full), rested=True, busy=busy)
    assert isinstance(step, Indexing)
    assert step.segment.uid not in busy
    assert planner.next_step(manifest_of(full), rested=True, busy=uids(full)) is None


def test_a_namespace_that_has_ended_is_left_alone():
    planner = Planner(Tiers(4, 4096 * MIB), 10_000, {})
    assert planner.next_step(manifest_of([segment(50_000) for _ in range(5)]), rested=True) is None


def test_at_rest_no_segment_grows_beyond_the_largest_size():
    tiers = Tiers(100, 100 * MIB)
    segments = [segment(rows) for rows in (10_000, 20_000, 30_000, 50_000, 60_000)]
    chosen = tiers.at_rest(segments)
    assert [item.rows for item in chosen] == [10_000, 20_000, 30_000]
    assert tiers.at_rest([segment(10_000), segment(80_000)]) == []


# Rows in key order.


def frozen(keys, *, dead=()):
    keys = sorted(keys)
    count = len(keys)
    hashes = np.arange(count, dtype=np.uint64)[::-1].copy()
    return FrozenPart(
        uid="s",
        matrix=np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        squared_norms=np.zeros(count),
        slots=np.zeros(count, dtype=np.uint16),
        seqs=np.arange(count, dtype=np.int64),
        keys=PackedBytes(*pack(keys)),
        metadata=PackedBytes(*pack([b'{"k":' + str(len(key)).encode() + b"}" for key in keys])),
        sorted_hashes=np.sort(hashes),
        hash_rows=np.argsort(hashes).astype(np.uint32),
        deleted=np.array([number in dead for number in range(count)]) if dead else None,
    )


def tail_of(keys):
    part = TailPart(capacity=max(1, len(keys)), dimension=2)
    for key in keys:
        part.append(
            [key],
            np.ones((1, 2), dtype=np.float32),
            [b"{}"],
            squared_norms=np.ones(1),
            slots=np.zeros(1, dtype=np.uint16),
            seq=1,
        )
    return part


keys_of_any_kind = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.lists(st.sampled_from([0, 1, 255]), min_size=1, max_size=10).map(bytes),
    st.binary(min_size=1, max_size=70),
)


@given(
    keys=st.lists(keys_of_any_kind, unique=True, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    tail=st.integers(0, 10),
    dead=st.sets(st.integers(0, 20), max_size=5),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_rows_of_parts_are_in_key_order_with_all_that_belongs_to_them(keys, cuts, tail, dead):
    bounds = [0, *sorted(min(cut, len(keys)) for cut in cuts), len(keys)]
    groups = [keys[low:high] for low, high in pairwise(bounds) if high > low]
    parts = [frozen(group, dead=dead) for group in groups]
    parts.append(tail_of([bytes([7]) * 41 + bytes([number]) for number in range(tail)]))
    order = RowOrder(parts)
    expected = sorted(
        (part.keys[row], number, row)
        for number, part in enumerate(parts)
        for row in np.flatnonzero(part.living).tolist()
    )
    assert list(zip(order.owners.tolist(), order.rows.tolist(), strict=True)) == [item[1:] for item in expected]
    assert b"".join(order.texts("keys")) == b"".join(key for key, *_ in expected)
    assert order.lengths("keys").tolist() == [len(key) for key, *_ in expected]
    metadata = [parts[number].metadata[row] for _, number, row in expected]
    assert b"".join(order.texts("metadata")) == b"".join(metadata)
    assert order.whole("seqs", "<i8").tolist() == [parts[number].seqs[row] for _, number, row in expected]
    for number, part in enumerate(parts):
        rows = np.arange(part.rows)
        positions = order.positions_of(part, rows)
        assert [expected[position][1:] for position in positions.tolist()] == [
            (number, row) for row in rows.tolist() if part.living[row]
        ]


def test_keys_that_differ_in_zero_bytes_at_their_end_are_in_order():
    keys = [b"\x03a", b"\x03a\x00", b"\x03a\x00\x00", b"\x03a\x00b", b"\x03b"]
    order = RowOrder([tail_of([key]) for key in reversed(keys)])
    assert b"|".join(order._texts("keys", slice(None))) == b"|".join(keys)
