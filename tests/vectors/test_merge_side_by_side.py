"""Steps of one merge run at work at the same time: about different segments, committed one after the other."""

from __future__ import annotations

import threading
import weakref

import pytest

from tests.vectors.merges import DIMENSION, directory_of, intact, load, segments
from vectors.engine import ids
from vectors.errors import StorageFull
from vectors.store import merge_steps, merging
from vectors.store.low_priority import Started
from vectors.store.merge_plan import Indexing
from vectors.store.merge_works import Works

WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def two_at_once(small_indexes, settings):
    settings.MLVDB_INDEX_THREADS = 2


def test_two_segments_get_their_indexes_at_the_same_time(shard, batch, monkeypatch):
    load(shard, batch, 400, 400)
    both = threading.Barrier(2)
    write = merge_steps.index_write
    shares = []

    def with_the_other(*arguments, threads, **names):
        if len(shares) < 2:
            both.wait(WITHIN_S)
            shares.append(threads())
        return write(*arguments, threads=threads, **names)

    monkeypatch.setattr(merge_steps, "index_write", with_the_other)
    # At rest both are merged after that.
    result = shard.merge()

    assert shares == [1, 1]
    assert (result.indexes, result.merges) == (2, 1)
    assert [segment.index.summary["rows"] for segment in segments(shard)] == [800]
    assert intact(shard)[0] == 800


def test_what_is_deleted_while_both_are_at_work_stays_deleted(shard, batch, monkeypatch):
    load(shard, batch, 400, 400)
    commit = merging.commit

    def after_a_change(*arguments):
        monkeypatch.setattr(merging, "commit", commit)
        shard.queries.delete(namespace="a", keys=[ids.key_of(3), ids.key_of(500)])
        shard.checkpoint()
        return commit(*arguments)

    monkeypatch.setattr(merging, "commit", after_a_change)
    result = shard.merge()

    assert (result.indexes, result.void) == (2, 0)
    assert intact(shard)[0] == 798


def test_a_step_that_fails_takes_the_others_files_along(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 400, dimension=DIMENSION), namespace="b")
    load(shard, batch, 10, 10, 10, 10)
    fails, merged = threading.Event(), threading.Event()
    write = merge_steps.merge_write

    def fail(*arguments, **names):
        merged.wait(WITHIN_S)
        fails.set()
        raise OSError(28, "No space left on device")

    def write_first(*arguments, **names):
        try:
            return write(*arguments, **names)
        finally:
            merged.set()
            fails.wait(WITHIN_S)

    listed = {segment.uid for segment in segments(shard)}
    with monkeypatch.context() as full:
        full.setattr(merge_steps, "index_write", fail)
        full.setattr(merge_steps, "merge_write", write_first)
        full.setattr(merging, "commit", lambda *arguments: pytest.fail("nothing is committed after the failure"))
        # What has ended first is looked at first: here the one that failed.
        full.setattr(Works, "take_ended", failed_first(Works.take_ended))
        with pytest.raises(StorageFull):
            shard.merge()

    assert {path.name for path in directory_of(shard).iterdir()} == listed
    assert shard.merge().steps == 2
    assert (intact(shard)[0], intact(shard, "b")[0]) == (40, 400)


def failed_first(take_ended):
    """Return a `take_ended` that answers the step that makes an index, and leaves the other one at work."""

    def take(works, *, within_s):
        work = take_ended(works, within_s=WITHIN_S)
        if work is not None and not isinstance(work.step, Indexing):
            works._running.append(work)
            work = take_ended(works, within_s=WITHIN_S)
        return work

    return take


def test_works_share_the_threads_and_say_what_they_are_about(shard, batch):
    load(shard, batch, 400, 400)
    first, second = (Indexing(None, segment) for segment in segments(shard))
    works, go = Works(2), threading.Event()
    assert (works.have_room, works.are_running, works.threads()) == (True, False, 2)
    assert works.take_ended(within_s=WITHIN_S) is None

    works.begin(first, lambda: go.wait(WITHIN_S), now=0.0)
    assert (works.have_room, works.threads(), works.busy) == (True, 2, {first.segment.uid})
    works.begin(second, lambda: None, now=0.0)
    assert works.take_ended(within_s=WITHIN_S).step is second
    works.begin(second, lambda: go.wait(WITHIN_S), now=0.0)
    assert (works.have_room, works.threads()) == (False, 1)
    assert works.busy == {first.segment.uid, second.segment.uid}
    assert works.take_ended(within_s=0.0) is None

    go.set()
    ended = {works.take_ended(within_s=WITHIN_S).step.segment.uid for _ in range(2)}
    assert ended == {first.segment.uid, second.segment.uid}
    assert not works.are_running


def test_what_work_held_is_let_go_at_its_end():
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    started = Started(lambda held=held: isinstance(held, Held))
    del held

    assert started.result() is True
    assert gone() is None
