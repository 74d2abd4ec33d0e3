"""Cutting back: what is set aside, what is left, and that every process and row follows."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager

import pytest
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.vectors.paper_logs import PaperLog, new_copy
from tests.vectors.test_receive import A, B, C, assert_same, give
from vectors import runtime
from vectors.errors import (
    LogGap,
    LogMismatch,
    NotPrimary,
    ShardDamaged,
    StaleTerm,
    StorageBusy,
    StorageError,
    StorageFull,
)
from vectors.models import LogEntry, Namespace, ShardHead
from vectors.store import checkpoint, log, set_aside, terms
from vectors.store.checkpoint import checkpoint_run
from vectors.store.cut_back import cut_back
from vectors.store.log import START, Position
from vectors.store.slices import slices_in
from vectors.store.terms import TermStart
from vectors.store.verify import verify_shard


@pytest.fixture
def paper():
    """A log whose namespaces come, change and go."""
    made = PaperLog()
    made.put(A, "a")
    made.upsert(A, 0, 5)
    made.put(B, "b", recall=0.5)
    made.start_term(2)
    made.put(B, "b", recall=0.7)
    made.drop(A)
    made.put(C, "a", dimension=5)
    made.upsert(C, 7, 2, dimension=5)
    made.drop(C)
    made.upsert(B, 3)
    return made


def set_aside_in(path):
    return [entry for _, entries in slices_in(path) for entry in entries]


def files(settings):
    directory = settings.NODE_FILES.set_aside
    found = directory.iterdir() if directory.is_dir() else []
    return sorted(path.name for path in found if path.suffix != ".lock")


def test_every_cut_leaves_the_copy_as_the_shorter_log_makes_it(shard, paper, settings):
    for seq in range(len(paper.entries)):
        ShardHead.objects.exclude(pk=shard.head.pk).delete()
        head = new_copy(f"copy{seq}")
        give(head, paper, 0)
        before = log.read_head(head.pk)
        cut = cut_back(head.pk, to=paper.at(seq), term=3)
        assert (cut.entries, cut.first_seq, cut.last_seq) == (10 - seq, seq + 1, 10)
        assert cut.path.name == f"copy{seq}-{head.uid[:8]}-2-10.slice"
        assert set_aside_in(cut.path) == paper.after(seq)
        now = log.read_head(head.pk)
        assert (now.incarnation, now.promised_term) == (before.incarnation + 1, 3)
        shorter = PaperLog(paper.entries[:seq])
        assert_same(head, shorter)
        # What was cut may come again, also what was dropped in it.
        give(head, paper, seq, term=3)
        assert_same(head, paper)
    assert len(files(settings)) == 10


@given(data=st.data())
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_copies_that_were_cut_back_and_filled_again_are_what_their_primary_is(shard, data):
    ShardHead.objects.all().delete()
    head, primary, uids, term = new_copy(), PaperLog(), {}, 1
    primary.put(A, "c")
    for change in range(data.draw(st.integers(1, 4), label="primaries")):
        for step in range(data.draw(st.integers(0, 6), label="steps")):
            what = data.draw(st.sampled_from(["upsert", "delete", "drop", "put", "put"]))
            name = data.draw(st.sampled_from("ab"))
            alive = uids.get(name)
            if what == "put" or alive is None:
                uids[name] = alive or f"{change:016x}{step:016x}"
                primary.put(uids[name], name, recall=0.5 + 0.01 * step)
            elif what == "upsert":
                primary.upsert(alive, data.draw(st.integers(0, 4)), 2)
            elif what == "delete":
                primary.delete(alive, data.draw(st.integers(0, 4)))
            else:
                primary.drop(uids.pop(name))
        has = log.read_head(head.pk).last_seq
        give(head, primary, has, data.draw(st.integers(has, len(primary.entries))), term=term)
        checked = log.read_head(head.pk).manifest_seq
        if data.draw(st.booleans()):
            checkpoint_run(head.uid, owner="test")
            checked = log.read_head(head.pk).manifest_seq
        # A newer primary, which lacks some of what this copy has.
        term += data.draw(st.integers(1, 2))
        common = data.draw(st.integers(checked, log.read_head(head.pk).last_seq))
        primary = primary.fork(common, term)
        uids = {row.name: uid for uid, row in living(primary).items() if row.name != "c"}
        cut_back(head.pk, to=primary.at(common), term=term)
        assert cut_back(head.pk, to=primary.at(common), term=term).entries == 0
        assert verify_shard(ShardHead.objects.get()).findings == []
    give(head, primary, log.read_head(head.pk).last_seq)
    assert log.read_head(head.pk).position == primary.position
    rows = Namespace.objects.filter(dropped_at=None)
    assert {(row.uid, row.name, row.recall_target) for row in rows} == {
        (uid, put.name, put.recall_target) for uid, put in living(primary).items()
    }
    assert verify_shard(ShardHead.objects.get()).findings == []


def living(paper):
    """Return the namespaces that are alive at the end of a log, by uid."""
    alive = {}
    for entry in paper.entries:
        operation = entry.operation()
        if operation.kind == 1:
            alive[entry.namespace] = operation
        elif operation.kind == 2:
            del alive[entry.namespace]
    return alive


def test_every_process_rebuilds_its_engine_and_serves_nothing_that_was_cut(shard, paper):
    head = new_copy()
    give(head, paper, 0, 8)
    served = runtime.ShardRuntime(head.pk, budget=None)
    assert served.fresh(timeout_s=10).engine.seq == 8
    newer = paper.fork(5, 4)
    for number in range(6):
        newer.upsert(A, 50 + number)
    cut_back(head.pk, to=paper.at(5), term=4)
    give(head, newer, 5)
    opened = served.fresh(timeout_s=10)
    assert (opened.engine.term, opened.engine.seq) == newer.position
    assert opened.engine.names() == ["a", "b"]
    assert opened.engine.view("a").count == 11


def test_an_engine_never_mixes_two_histories_when_the_log_changes_while_it_catches_up(shard, paper):
    head = new_copy()
    give(head, paper, 0, 5)
    served = runtime.ShardRuntime(head.pk, budget=None)
    served.fresh(timeout_s=10)
    give(head, paper, 5, 8)
    seen = log.read_head(head.pk)
    # Between the look at the head and the reading of the entries the log is cut back and filled anew.
    newer = paper.fork(4, 6)
    for number in range(6):
        newer.upsert(A, 50 + number)
    cut_back(head.pk, to=paper.at(4), term=6)
    give(head, newer, 4)
    opened = served.caught_up(seen, timeout_s=10)
    assert (opened.engine.term, opened.engine.seq) == newer.position
    assert opened.engine.view("a").count == 11


def test_a_new_manifest_of_another_history_is_not_swapped_for_an_engine_of_the_old_one(shard, paper):
    head = new_copy()
    give(head, paper, 0, 8)
    served = runtime.ShardRuntime(head.pk, budget=None)
    served.fresh(timeout_s=10)
    cut_back(head.pk, to=paper.at(3), term=4)
    checkpoint_run(head.uid, owner="test")
    assert not served.swap()
    assert served.fresh(timeout_s=10).engine.seq == 3


def test_segments_behind_the_cut_need_a_full_sync(shard, paper):
    head = new_copy()
    give(head, paper, 0, 8)
    checkpoint_run(head.uid, owner="test")
    give(head, paper, 8)
    before = log.read_head(head.pk)
    with pytest.raises(LogGap) as gap:
        cut_back(head.pk, to=paper.at(7), term=3)
    assert gap.value.detail["manifest_seq"] == 8
    assert log.read_head(head.pk) == before._replace(promised_term=3)
    assert cut_back(head.pk, to=paper.at(8), term=3).entries == 2
    assert log.read_head(head.pk).tail_bytes == 0
    assert_same_without_log(head, PaperLog(paper.entries[:8]))


def assert_same_without_log(head, paper):
    assert log.read_head(head.pk).position == paper.position
    assert set(Namespace.objects.filter(shard=head, dropped_at=None).values_list("uid", flat=True)) == set(
        paper.oracle().rows
    )
    assert verify_shard(ShardHead.objects.get(pk=head.pk)).findings == []


def test_a_log_that_is_short_enough_is_left_alone(shard, paper, settings):
    head = new_copy()
    give(head, paper, 0, 6)
    before = log.read_head(head.pk)
    for seq in (6, 9):
        cut = cut_back(head.pk, to=paper.at(seq), term=2)
        assert (cut.path, cut.entries) == (None, 0)
    assert log.read_head(head.pk) == before
    assert files(settings) == []


def test_who_may_not_cut_cuts_nothing(shard, batch, paper, settings):
    head = new_copy()
    give(head, paper, 0)
    terms.term_promise(head.pk, 5, candidate=C)
    before = log.read_head(head.pk)
    with pytest.raises(StaleTerm):
        cut_back(head.pk, to=paper.at(3), term=4)
    with pytest.raises(LogMismatch) as mismatch:
        cut_back(head.pk, to=Position(2, 3), term=5)
    assert mismatch.value.detail["terms"] == [[1, 1], [2, 4]]
    assert log.read_head(head.pk) == before
    ShardHead.objects.filter(pk=head.pk).update(damage={"log": {"seq": 3}})
    with pytest.raises(ShardDamaged):
        cut_back(head.pk, to=paper.at(3), term=5)
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    with pytest.raises(NotPrimary):
        cut_back(shard.head.pk, to=Position(1, 1), term=2)
    with pytest.raises(StaleTerm):
        cut_back(shard.head.pk, to=Position(1, 1), term=1)
    assert LogEntry.objects.filter(shard=shard.head).count() == 2
    assert files(settings) == []


def test_a_checkpoint_of_what_was_cut_is_not_committed(shard, paper, monkeypatch):
    head = new_copy()
    give(head, paper, 0)
    commit = checkpoint._commit

    def cut_first(*args):
        monkeypatch.setattr(checkpoint, "_commit", commit)
        cut_back(head.pk, to=paper.at(4), term=3)
        return commit(*args)

    monkeypatch.setattr(checkpoint, "_commit", cut_first)
    with pytest.raises(Exception, match="changed under its checkpoint"):
        checkpoint_run(head.uid, owner="test")
    assert log.read_head(head.pk).manifest == 0
    assert_same(head, PaperLog(paper.entries[:4]))
    checkpoint_run(head.uid, owner="test")
    assert_same_without_log(head, PaperLog(paper.entries[:4]))


def test_entries_that_arrive_while_the_file_is_written_are_set_aside_too(shard, paper, settings, monkeypatch):
    head = new_copy()
    give(head, paper, 0, 7)
    write = set_aside._write

    def receive_then_write(*args):
        monkeypatch.setattr(set_aside, "_write", write)
        write(*args)
        give(head, paper, 7)

    monkeypatch.setattr(set_aside, "_write", receive_then_write)
    cut = cut_back(head.pk, to=paper.at(3), term=3)
    assert set_aside_in(cut.path) == paper.after(3)
    assert files(settings) == [cut.path.name]


def test_what_the_primary_itself_has_sent_is_never_cut_off(shard, settings):
    """Of two senders that saw the same log one is late: the other has cut it and sent, and writes were acknowledged."""
    old = PaperLog()
    old.put(A, "a")
    old.upsert(A, 0, 3)
    old.upsert(A, 3)
    primary = old.fork(2, 2)
    primary.upsert(A, 9)
    head = new_copy()
    give(head, old, 0)
    cut_back(head.pk, to=primary.at(2), term=2)
    give(head, primary, 2)
    aside = files(settings)

    with pytest.raises(LogMismatch):
        cut_back(head.pk, to=primary.at(2), term=2)

    assert_same(head, primary)
    assert files(settings) == aside


def test_two_that_cut_the_same_log_do_not_take_the_file_from_each_other(shard, paper, settings):
    for attempt in range(5):
        head = new_copy(f"copy{attempt}")
        give(head, paper, 0)
        cuts = []

        def cut(head=head, cuts=cuts):
            try:
                cuts.append(cut_back(head.pk, to=paper.at(3), term=3))
            finally:
                connection.close()

        threads = [threading.Thread(target=cut) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert sorted(cut.entries for cut in cuts) == [0, 0, 7]
        [path] = [cut.path for cut in cuts if cut.path is not None]
        assert set_aside_in(path) == paper.after(3)
        assert_same(head, PaperLog(paper.entries[:3]))
    assert len(files(settings)) == 5


def test_a_log_that_another_holds_to_cut_it_is_busy(shard, paper, settings):
    head = new_copy()
    give(head, paper, 0)
    settings.MLVDB_DATABASE_TIMEOUT_S = 0.2
    with set_aside.set_aside_locked(head.uid), pytest.raises(StorageBusy):
        cut_back(head.pk, to=paper.at(3), term=3)
    assert_same(head, paper)


def test_a_cut_whose_commit_came_through_keeps_its_file_though_the_answer_is_an_error(
    shard, paper, settings, monkeypatch
):
    head = new_copy()
    give(head, paper, 0)
    transaction = log.append_transaction

    @contextmanager
    def lost(shard_id):
        with transaction(shard_id) as open_log:
            yield open_log
        raise StorageError("the server has gone away")

    monkeypatch.setattr(log, "append_transaction", lost)
    with pytest.raises(StorageError):
        cut_back(head.pk, to=paper.at(3), term=3)
    [name] = files(settings)
    assert set_aside_in(settings.NODE_FILES.set_aside / name) == paper.after(3)
    assert_same(head, PaperLog(paper.entries[:3]))


def test_a_full_disk_leaves_the_log_as_it_is_and_no_file(shard, paper, settings, monkeypatch):
    head = new_copy()
    give(head, paper, 0)
    before = log.read_head(head.pk)
    fsync = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        cut_back(head.pk, to=paper.at(3), term=3)
    monkeypatch.setattr(os, "fsync", fsync)
    assert log.read_head(head.pk) == before
    assert files(settings) == []
    assert cut_back(head.pk, to=paper.at(3), term=3).entries == 7


def test_a_crash_behind_the_file_is_repeated_with_the_same_file(shard, paper, settings, monkeypatch):
    head = new_copy()
    give(head, paper, 0)
    aside = set_aside.entries_set_aside(log.read_head(head.pk), after_seq=3)
    assert aside.is_new
    cut = cut_back(head.pk, to=paper.at(3), term=3)
    assert cut.path == aside.path
    assert files(settings) == [cut.path.name]
    # The same entries come again and are cut elsewhere: what was set aside first is not overwritten.
    give(head, paper, 3, term=3)
    again = cut_back(head.pk, to=paper.at(5), term=4)
    assert set_aside_in(cut.path) == paper.after(3)
    assert set_aside_in(again.path) == paper.after(5)
    assert again.path.name == cut.path.name.replace(".slice", ".2.slice")


def test_a_long_tail_is_set_aside_slice_by_slice(shard, settings):
    settings.MLVDB_SLICE_BYTES = 2000
    paper = PaperLog()
    paper.put(A, "a")
    for number in range(40):
        paper.upsert(A, number, 5)
    head = new_copy()
    give(head, paper, 0)
    cut = cut_back(head.pk, to=START, term=2)
    pieces = list(slices_in(cut.path))
    assert len(pieces) > 3
    assert [before for before, _ in pieces] == [START, *(Position(1, entries[-1].seq) for _, entries in pieces[:-1])]
    assert set_aside_in(cut.path) == paper.entries
    assert log.read_head(head.pk).position == START
    assert terms.read_terms(head.pk) == [TermStart(1, 1)]
    assert not Namespace.objects.filter(shard=head).exists()


def test_receives_and_cuts_at_once_end_as_one_of_both_histories(shard, paper):
    newer = paper.fork(4, 6)
    for number in range(8):
        newer.upsert(A, 50 + number)
    for attempt in range(5):
        head = new_copy(f"copy{attempt}")
        give(head, paper, 0, 6)
        outcomes = []

        def old_primary(head=head, outcomes=outcomes):
            try:
                for seq in range(6, 10):
                    give(head, paper, seq, seq + 1)
            except (StaleTerm, LogGap, LogMismatch) as error:
                outcomes.append(type(error))
            finally:
                connection.close()

        def new_primary(head=head, outcomes=outcomes):
            try:
                cut_back(head.pk, to=paper.at(4), term=6)
                give(head, newer, 4)
                outcomes.append("filled")
            finally:
                connection.close()

        threads = [threading.Thread(target=call) for call in (old_primary, new_primary)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert "filled" in outcomes
        assert_same(head, newer)
