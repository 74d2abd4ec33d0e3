"""Slices: their binary form, and how much of a log goes into one."""

from __future__ import annotations

import pytest
from django.db import connection
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.paper_logs import PaperLog
from vectors.engine.operations import PayloadError
from vectors.errors import LogGap
from vectors.models import LogEntry
from vectors.store import log
from vectors.store.log import START, Entry, Position
from vectors.store.slices import decode_slice, encode_slice, oldest_seq, read_slice, slices_in

big = st.integers(0, 2**62)
entries_of = st.lists(
    st.builds(
        Entry,
        big,
        big,
        st.sampled_from(["", "a", "0" * 32]),
        st.integers(0, 255),
        st.binary(max_size=40),
        st.integers(0, 2**32 - 1),
    ),
    max_size=5,
)


@given(before=st.builds(Position, big, big), entries=entries_of)
@settings(max_examples=200, deadline=None)
def test_a_slice_is_read_as_it_was_written(before, entries):
    data = encode_slice(before, entries)
    assert decode_slice(data) == (before, entries)
    assert decode_slice(memoryview(data)) == (before, entries)


@given(entries=entries_of, data=st.data())
@settings(max_examples=300, deadline=None)
def test_an_altered_cut_or_longer_slice_is_refused(entries, data):
    whole = encode_slice(Position(1, 7), entries)
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for altered in (bytes(flipped), whole[:place], whole + b"\0", b""):
        with pytest.raises(PayloadError):
            decode_slice(altered)


def test_slices_in_a_file_are_read_one_after_the_other_until_one_is_torn(tmp_path):
    paper = PaperLog()
    paper.put("a" * 32, "a")
    paper.upsert("a" * 32, 0, 20)
    paper.upsert("a" * 32, 20, 20)
    first, second = encode_slice(START, paper.after(0, 2)), encode_slice(paper.at(2), paper.after(2))
    file = tmp_path / "slices"
    file.write_bytes(first + second)
    assert list(slices_in(file)) == [(START, paper.after(0, 2)), (paper.at(2), paper.after(2))]
    huge = second[:5] + b"\xff" * 8 + second[13:]
    for torn in (first + second[:-1], first + second[:5], first + huge):
        file.write_bytes(torn)
        read = slices_in(file)
        assert next(read)[0] == START
        with pytest.raises(PayloadError):
            next(read)


def test_a_slice_ends_at_its_bytes_and_has_at_least_one_entry(shard, batch):
    for number in range(30):
        shard.queries.upsert_many(batch(10 * number, 10), namespace="a")
    shard_id, last = shard.head.pk, 31
    everything = list(log.read_after(shard_id, 0, through=last))
    sizes = [len(entry.payload) for entry in everything]
    assert read_slice(shard_id, 0, through=last, max_bytes=10**9) == everything
    assert read_slice(shard_id, 0, through=7, max_bytes=10**9) == everything[:7]
    assert read_slice(shard_id, 5, through=last, max_bytes=sum(sizes[5:9])) == everything[5:9]
    assert read_slice(shard_id, 5, through=last, max_bytes=sum(sizes[5:9]) - 1) == everything[5:8]
    assert read_slice(shard_id, 5, through=last, max_bytes=1) == everything[5:6]
    assert read_slice(shard_id, 30, through=last, max_bytes=1) == everything[30:]
    assert read_slice(shard_id, last, through=last, max_bytes=1) == []


def test_a_slice_of_entries_that_are_pruned_is_a_gap(shard, batch):
    for number in range(5):
        shard.queries.upsert_many(batch(number, 1), namespace="a")
    assert oldest_seq(shard.head.pk) == 1
    LogEntry.objects.filter(seq__lte=3).delete()
    assert oldest_seq(shard.head.pk) == 4
    for after_seq in (0, 2):
        with pytest.raises(LogGap) as gap:
            read_slice(shard.head.pk, after_seq, through=6, max_bytes=10**9)
        assert gap.value.detail == {"seq": after_seq + 1, "oldest_seq": 4}
    assert [entry.seq for entry in read_slice(shard.head.pk, 3, through=6, max_bytes=10**9)] == [4, 5, 6]
    LogEntry.objects.all().delete()
    assert oldest_seq(shard.head.pk) == 7


def test_a_slice_of_very_small_entries_ends_at_a_number_of_them(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO vectors_logentry (shard_id, seq, term, namespace, kind, rows, payload, crc32, created_at)"
            " SELECT shard_id, n.n, term, namespace, kind, rows, payload, crc32, created_at FROM vectors_logentry,"
            " (WITH RECURSIVE n(n) AS (SELECT 3 UNION ALL SELECT n + 1 FROM n WHERE n < 2500) SELECT n FROM n) n"
            " WHERE seq = 2"
        )
    entries = read_slice(shard.head.pk, 0, through=2500, max_bytes=10**9)
    assert [entry.seq for entry in entries] == list(range(1, 1025))
