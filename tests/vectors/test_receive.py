"""Receiving slices: in any order, again and again, from several senders at once, and what is refused."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.vectors.paper_logs import PaperLog, new_copy
from vectors import runtime
from vectors.engine import search
from vectors.engine.digest import view_digest
from vectors.engine.filters import parse_filter
from vectors.errors import (
    CheckpointBehind,
    CorruptRecord,
    LogGap,
    LogMismatch,
    NotPrimary,
    ShardDamaged,
    StaleTerm,
    StorageFull,
)
from vectors.models import LogEntry, Namespace, ShardHead, ShardTerm
from vectors.store import checkpoint, log, recovery, slices, terms
from vectors.store.checkpoint import checkpoint_run
from vectors.store.log import START, Position
from vectors.store.receive import receive
from vectors.store.terms import TermStart
from vectors.store.verify import verify_shard

A, B, C = "a" * 32, "b" * 32, "c" * 32

on_database = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def give(head, paper, start, through=None, *, term=None):
    """Send a copy the entries after `start` of a primary's log."""
    return receive(head.pk, term=term or paper.term, before=paper.at(start), entries=paper.after(start, through))


def assert_same(head, paper):
    """Compare a copy with its primary's log in everything that follows from it."""
    now = log.read_head(head.pk)
    assert now.position == paper.position
    assert list(log.read_after(head.pk, 0, through=now.last_seq)) == paper.entries
    oracle = paper.oracle()
    rows = Namespace.objects.filter(shard=head, dropped_at=None)
    assert {row.uid for row in rows} == set(oracle.rows)
    opened = recovery.open_shard(head.pk)
    assert not opened.damage
    for row in rows:
        view = opened.engine.view(row.name)
        assert (view.spec.uid, view.spec.recall_target) == (row.uid, row.recall_target)
        assert sorted(search.matching_keys(view, parse_filter({}))) == oracle.matching(row.uid, None)
    assert verify_shard(ShardHead.objects.get(pk=head.pk)).findings == []


@pytest.fixture
def paper():
    """A log of two terms with a namespace that is dropped and made anew."""
    made = PaperLog()
    made.put(A, "a")
    made.upsert(A, 0, 5)
    made.put(B, "b")
    made.upsert(B, 0, 3)
    made.drop(A)
    made.put(C, "a", recall=0.5)
    made.upsert(C, 7, 2)
    made.start_term(3)
    made.delete(C, 7)
    made.put(C, "a", recall=0.7)
    return made


def test_a_slice_makes_the_copy_what_the_primary_is(shard, paper):
    head = new_copy()
    assert give(head, paper, 0) == paper.position == (3, 10)
    assert_same(head, paper)
    now = log.read_head(head.pk)
    assert (now.promised_term, now.is_primary, now.knocked, now.incarnation) == (3, False, False, 1)
    assert now.tail_bytes == sum(len(entry.payload) for entry in paper.entries)
    assert terms.read_terms(head.pk) == [TermStart(1, 1), TermStart(3, 8)]
    assert Namespace.objects.get(shard=head, uid=A).dropped_at is not None
    assert list(LogEntry.objects.filter(shard=head).order_by("seq").values_list("rows", flat=True)) == [
        0, 5, 0, 3, 0, 0, 2, 0, 1, 0
    ]  # fmt: skip


def test_what_a_primary_wrote_is_what_a_copy_serves(shard, batch):
    shard.queries.upsert_many(batch(0, 50), namespace="a")
    shard.queries.namespace_drop("a")
    shard.queries.upsert_many(batch(5, 30, dimension=6), namespace="a")
    shard.queries.upsert_many(batch(0, 10), namespace="other")
    terms.term_start(shard.head.pk, 2)
    source, copy = log.read_head(shard.head.pk), new_copy()
    entries = slices.read_slice(source.shard_id, 0, through=source.last_seq, max_bytes=10**9)
    before, entries = slices.decode_slice(slices.encode_slice(START, entries))
    assert receive(copy.pk, term=2, before=before, entries=entries) == source.position
    for name in ("a", "other"):
        mine = recovery.open_shard(copy.pk).engine.view(name)
        assert view_digest(mine) == shard.digest(name)


@given(data=st.data())
@on_database
def test_overlapping_slices_in_any_order_arrive_at_the_same_copy(shard, data):
    ShardHead.objects.all().delete()
    paper, uids = PaperLog(), {}
    for step in range(data.draw(st.integers(1, 12), label="steps")):
        what = data.draw(st.sampled_from(["upsert", "upsert", "delete", "drop", "put", "put", "term"]))
        name = data.draw(st.sampled_from("ab"))
        if what == "term":
            paper.start_term(paper.term + 1)
        elif what == "put" or name not in uids:
            paper.put(uids.setdefault(name, f"{step:032x}"), name, recall=0.5 + 0.01 * step)
        elif what == "upsert":
            paper.upsert(uids[name], data.draw(st.integers(0, 4)), 2)
        elif what == "delete":
            paper.delete(uids[name], data.draw(st.integers(0, 4)))
        else:
            paper.drop(uids.pop(name))
    head = new_copy()
    incarnation = log.read_head(head.pk).incarnation
    has = 0
    for _ in range(data.draw(st.integers(1, 15), label="slices")):
        start = data.draw(st.integers(0, len(paper.entries)))
        stop = data.draw(st.integers(start, len(paper.entries)))
        if start > has:
            with pytest.raises(LogGap) as gap:
                give(head, paper, start, stop)
            assert (gap.value.detail["term"], gap.value.detail["seq"]) == paper.at(has)
        else:
            has = max(has, stop)
            # Of an older term than the sender's the copy does not know how far it is right beyond the slice.
            expected = paper.at(has) if paper.at(has).term == paper.term else min(paper.at(has), paper.at(stop))
            assert give(head, paper, start, stop) == expected
        if data.draw(st.integers(0, 4)) == 0:
            checkpoint_run(head.uid, owner="test")
    give(head, paper, has)
    now = log.read_head(head.pk)
    assert (now.position, now.incarnation) == (paper.position, incarnation)
    opened = recovery.open_shard(head.pk)
    oracle = paper.oracle()
    assert {item.spec.uid for item in opened.engine.namespaces()} == set(oracle.rows)
    assert set(Namespace.objects.filter(dropped_at=None).values_list("uid", flat=True)) == set(oracle.rows)
    for item in opened.engine.namespaces():
        assert sorted(search.matching_keys(item.view(), parse_filter({}))) == oracle.matching(item.spec.uid, None)
    assert verify_shard(ShardHead.objects.get()).findings == []


def test_many_senders_at_once_add_every_entry_once(shard):
    paper = PaperLog()
    paper.put(A, "a")
    for number in range(60):
        paper.upsert(A, number)
    paper.start_term(2)
    head = new_copy()
    errors = []

    def send(seed):
        order = random.Random(seed)
        at = 0
        try:
            while at < len(paper.entries):
                start = max(0, at - order.randrange(4))
                at = give(head, paper, start, start + 1 + order.randrange(8)).seq
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert_same(head, paper)


def test_what_is_there_already_is_answered_without_the_lock(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    held, release = threading.Event(), threading.Event()

    def hold():
        try:
            with log.append_transaction(head.pk):
                held.set()
                release.wait(timeout=30)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(timeout=30)
        assert give(head, paper, 4, 9) == paper.position
        assert give(head, paper, 10) == paper.position
    finally:
        release.set()
        holder.join(timeout=30)


def test_a_slice_behind_the_end_of_the_log_is_a_gap_and_tells_where_that_is(shard, paper):
    head = new_copy()
    give(head, paper, 0, 4)
    with pytest.raises(LogGap) as gap:
        give(head, paper, 5)
    assert gap.value.detail == {"term": 1, "seq": 4, "terms": [[1, 1]]}
    assert log.read_head(head.pk).promised_term == 3
    assert LogEntry.objects.filter(shard=head).count() == 4


def test_other_entries_than_the_primarys_are_a_mismatch_and_nothing_is_added(shard, paper):
    head = new_copy()
    give(head, paper, 0, 7)
    newer = paper.fork(4, 5)
    newer.upsert(B, 9)
    before = log.read_head(head.pk)
    # Within the slice: the last common entry is known exactly.
    with pytest.raises(LogMismatch) as mismatch:
        give(head, newer, 2)
    detail = mismatch.value.detail
    assert (detail["common_term"], detail["common_seq"]) == (1, 4)
    assert (detail["term"], detail["seq"], detail["terms"]) == (1, 7, [[1, 1]])
    # Where it begins: what is older than the entry it names may be common.
    with pytest.raises(LogMismatch) as mismatch:
        give(head, newer, 5)
    assert (mismatch.value.detail["common_term"], mismatch.value.detail["common_seq"]) == (1, 4)
    assert log.read_head(head.pk) == before._replace(promised_term=5)
    assert ShardTerm.objects.count() == 0


def test_an_older_primary_is_refused_once_a_newer_one_was_heard(shard, paper):
    head = new_copy()
    give(head, paper, 0, 7, term=1)
    terms.term_promise(head.pk, 2, candidate=C)
    with pytest.raises(StaleTerm) as stale:
        give(head, paper, 6, 7, term=1)
    assert stale.value.detail["promised_term"] == 2
    assert give(head, paper, 7) == paper.position
    with pytest.raises(StaleTerm):
        give(head, paper, 3, 4, term=2)


def test_two_primaries_of_one_term_made_by_force_are_told_apart_by_checksums(shard):
    ours, theirs = PaperLog(), PaperLog()
    for paper, node in ((ours, A), (theirs, B)):
        paper.put(A, "a")
        paper.start_term(2, node=node)
        paper.upsert(A, 1)
    head = new_copy()
    give(head, ours, 0)
    with pytest.raises(LogMismatch) as mismatch:
        give(head, theirs, 0)
    assert (mismatch.value.detail["common_term"], mismatch.value.detail["common_seq"]) == (1, 1)


def test_a_slice_mixed_of_two_histories_is_refused(shard, paper):
    # A primary that was deposed and cut back while it read its log: what it read first is not what it read then.
    head = new_copy()
    give(head, paper, 0, 6)
    other = paper.fork(4, 5)
    for number in range(5):
        other.upsert(B, number)
    for term in (1, 5):
        with pytest.raises((LogMismatch, StaleTerm)):
            receive(head.pk, term=term, before=paper.at(6), entries=other.after(6))
    assert log.read_head(head.pk).position == paper.at(6)
    third = other.fork(6, 7)
    with pytest.raises(LogMismatch):
        receive(head.pk, term=7, before=paper.at(6), entries=third.after(6))
    assert log.read_head(head.pk).position == paper.at(6)


@pytest.mark.parametrize("change", ["payload", "namespace", "term", "kind", "seq"])
def test_an_altered_entry_is_refused_and_the_ones_before_it_are_not_added(shard, paper, change):
    head = new_copy()
    altered = {
        "payload": b"x" + paper.entries[3].payload[1:],
        "namespace": C,
        "term": 3,
        "kind": 4,
        "seq": 9,
    }[change]
    entries = [*paper.after(0, 3), replace(paper.entries[3], **{change: altered}), *paper.after(4)]
    with pytest.raises(CorruptRecord):
        receive(head.pk, term=3, before=START, entries=entries)
    assert LogEntry.objects.filter(shard=head).count() == 0
    with pytest.raises(CorruptRecord):
        receive(head.pk, term=3, before=START, entries=paper.after(0, 2) + paper.after(3))


def test_a_primary_is_not_filled_but_notes_the_newer_term(shard, batch, paper):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    before = log.read_head(shard.head.pk)
    with pytest.raises(StaleTerm):
        give(shard.head, paper, 0, 2, term=1)
    assert log.read_head(shard.head.pk) == before
    with pytest.raises(NotPrimary):
        give(shard.head, paper, 0)
    assert log.read_head(shard.head.pk) == before._replace(promised_term=3)
    with pytest.raises(NotPrimary):
        shard.queries.upsert_many(batch(1, 1), namespace="a")


def test_a_damaged_copy_takes_nothing_and_acknowledges_nothing(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    ShardHead.objects.filter(pk=head.pk).update(damage={"log": {"seq": 3}})
    for start in (0, 10):
        with pytest.raises(ShardDamaged):
            give(head, paper, start)


def test_a_long_tail_takes_what_fits_and_goes_on_after_a_checkpoint(shard, settings):
    paper = PaperLog()
    paper.put(A, "a")
    for number in range(6):
        paper.upsert(A, 10 * number, 10)
    head = new_copy()
    sizes = [len(entry.payload) for entry in paper.entries]
    settings.MLVDB_TAIL_HARD_BYTES = sum(sizes[:4]) + 1
    assert give(head, paper, 0) == (1, 4)
    with pytest.raises(CheckpointBehind):
        give(head, paper, 4)
    checkpoint_run(head.uid, owner="test")
    assert give(head, paper, 4) == paper.position
    assert log.read_head(head.pk).tail_bytes == sum(sizes[4:])
    assert_tail(head)
    # An entry that alone is too long must go in: the primary has acknowledged it.
    checkpoint_run(head.uid, owner="test")
    settings.MLVDB_TAIL_HARD_BYTES = 1
    paper.upsert(A, 0, 50)
    assert give(head, paper, 7) == paper.position


def assert_tail(head):
    now = log.read_head(head.pk)
    entries = log.read_after(head.pk, now.manifest_seq, through=now.last_seq)
    assert now.tail_bytes == sum(len(entry.payload) for entry in entries)


def test_the_tail_is_counted_right_when_a_checkpoint_commits_between_slices(shard, paper, monkeypatch):
    head = new_copy()
    give(head, paper, 0, 6)
    original = checkpoint._commit

    def receive_first(*args):
        give(head, paper, 6)
        original(*args)

    monkeypatch.setattr(checkpoint, "_commit", receive_first)
    checkpoint_run(head.uid, owner="test")
    assert log.read_head(head.pk).manifest_seq == 6
    assert_tail(head)
    assert verify_shard(ShardHead.objects.get(pk=head.pk)).findings == []


@pytest.mark.skipif(connection.vendor != "sqlite", reason="bounds the pages of an SQLite file")
def test_a_full_disk_refuses_the_slice_and_nothing_of_it_is_there(shard):
    paper = PaperLog()
    paper.put(A, "a")
    paper.upsert(A, 0, 2)
    head = new_copy()
    give(head, paper, 0)
    paper.start_term(2)
    paper.put(B, "b")
    paper.upsert(A, 0, 9000)
    before = log.read_head(head.pk)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
        pages = cursor.execute("PRAGMA page_count").fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count={pages + 3}")
    try:
        with pytest.raises(StorageFull):
            give(head, paper, 2)
        assert log.read_head(head.pk) == before
        assert Namespace.objects.filter(name="b").count() == ShardTerm.objects.count() == 0
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count=1073741823")
    give(head, paper, 2)
    assert_same(head, paper)


def test_a_dropped_uid_does_not_return_and_its_name_does_within_one_slice(shard):
    paper = PaperLog()
    paper.put(A, "a")
    paper.upsert(A, 0, 4)
    paper.drop(A)
    paper.put(B, "a", dimension=7)
    paper.upsert(B, 0, 2, dimension=7)
    paper.put(A, "z")
    head = new_copy()
    give(head, paper, 0)
    rows = Namespace.objects.filter(shard=head)
    assert {(row.uid, row.name, row.dimension, row.dropped_at is None) for row in rows} == {
        (A, "a", 3, False),
        (B, "a", 7, True),
    }
    assert verify_shard(ShardHead.objects.get(pk=head.pk)).findings == []


def test_an_idle_process_serves_what_was_received(shard, paper):
    head = new_copy()
    served = runtime.ShardRuntime(head.pk, budget=None)
    give(head, paper, 0, 4)
    assert served.fresh(timeout_s=10).engine.seq == 4
    give(head, paper, 4)
    opened = served.fresh(timeout_s=10)
    assert (opened.engine.term, opened.engine.seq) == (3, 10)
    assert opened.engine.names() == ["a", "b"]


def test_the_position_of_an_empty_slice_is_checked_like_any_other(shard, paper):
    head = new_copy()
    assert receive(head.pk, term=1, before=START, entries=[]) == START
    give(head, paper, 0, 5)
    assert receive(head.pk, term=3, before=paper.at(5), entries=[]) == (1, 5)
    with pytest.raises(LogMismatch):
        receive(head.pk, term=3, before=Position(3, 5), entries=[])
    with pytest.raises(LogGap):
        receive(head.pk, term=3, before=paper.at(8), entries=[])
