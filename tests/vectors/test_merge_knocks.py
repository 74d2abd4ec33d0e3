"""Who asks for merges: checkpoints, the sweep, and `serve` itself while nobody takes them up."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from mlvdb_site.celery import MERGE, app
from mlvdb_site.processes import checkpoints
from mlvdb_site.processes.checkpoints import CheckpointWatch
from tests.vectors.merges import load, segments
from vectors import runtime, tasks
from vectors.engine import ids
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor
from vectors.store import checkpoint, leases
from vectors.store.merging import merge_due


@pytest.fixture
def watch(monkeypatch):
    """A watch of `serve` whose clock the test moves."""
    now = [1000.0]
    monkeypatch.setattr(CheckpointWatch, "clock", staticmethod(lambda: now[0]))

    def pass_s(seconds):
        now[0] += seconds

    return CheckpointWatch(), pass_s


def test_a_merge_nobody_takes_up_is_run_by_serve_after_some_sweeps(shard, batch, settings, watch):
    due, pass_s = watch[0].due, watch[1]
    load(shard, batch, 50, 30, dimension=4)
    assert not due()
    pass_s(settings.MLVDB_CHECKPOINT_GRACE_S + 1)
    assert not due()
    pass_s(checkpoints.MERGE_GRACE_S)
    assert due()
    watch[0].acted()
    assert not due()
    call_command("checkpoint")
    pass_s(100)
    assert not due()
    pass_s(100)
    assert not due()
    assert len(segments(shard)) == 1


def test_a_merge_at_work_is_not_taken_from_whoever_does_it(shard, batch, watch):
    due, pass_s = watch[0].due, watch[1]
    load(shard, batch, 50, 30, dimension=4)
    for _ in range(6):
        assert not due()
        leases.seize_lease(leases.merge_lease(shard.head.pk), "worker")
        pass_s(20)


def test_checkpoints_wait_for_merges_where_segments_pile_up(shard, batch, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "_MOST_SEGMENTS", 5)
    asked = []
    monkeypatch.setattr(tasks, "merge_request", asked.append)
    load(shard, batch, *[10] * 5, dimension=4)
    shard.queries.upsert_many(batch(500, 5, dimension=4), namespace="a")
    assert shard.checkpoint() is None
    tasks.checkpoint_now(shard.head.uid)
    assert len(segments(shard)) == 5
    assert asked == [shard.head.uid]
    call_command("checkpoint")
    assert "1 merges" in capsys.readouterr().out
    assert [segment.rows for segment in segments(shard)] == [50, 5]
    assert shard.checkpoint() is None
    assert shard.queries.count(namespace="a").value == 55


def test_the_command_checkpoints_merges_and_says_so(shard, batch, capsys):
    load(shard, batch, 20, 30, dimension=4)
    shard.queries.upsert_many(batch(500, 5, dimension=4), namespace="a")
    call_command("checkpoint", "--no-merge")
    assert len(segments(shard)) == 3
    capsys.readouterr()
    shard.queries.delete(namespace="a", keys=[ids.key_of(500)])
    call_command("checkpoint")
    assert "1 merges, 0 indexes, 54 rows" in capsys.readouterr().out
    assert not merge_due(ShardHead.objects.get())


def test_shards_whose_knock_came_in_vain_are_asked_for_when_a_merge_ends(shard, batch, settings, monkeypatch):
    settings.MLVDB_MERGE_REST_S = 0
    asked = []
    monkeypatch.setattr(tasks, "merge_request", asked.append)
    other = ShardHead.objects.create(label="shard_1")
    queries = LocalQueryProcessor(other.pk)
    for start in (0, 10):
        queries.upsert_many(batch(start, 10), namespace="b")
        checkpoint.checkpoint_run(other.uid, owner="test")
    load(shard, batch, 20, 30, dimension=4)
    tasks.merge_shard(shard.head.uid)
    assert asked == [other.uid]
    tasks.merge_shard(other.uid)
    assert asked == [other.uid]


def test_a_merge_task_may_take_its_time_and_is_not_delivered_twice():
    task = app.tasks[MERGE]
    assert (task.acks_late, task.time_limit) == (False, 6 * 3600)
    assert app.tasks["vectors.tasks.checkpoint_now"].acks_late


def test_the_merge_task_asks_for_a_measure_of_new_indexes_and_to_be_continued(shard, batch, settings, monkeypatch):
    settings.MLVDB_INDEX_MIN_ROWS = 300
    settings.MLVDB_MERGE_REST_S = 0
    measured, again = [], []
    monkeypatch.setattr(tasks, "recall_measure_request", lambda uid, spaces: measured.append((uid, set(spaces))))
    monkeypatch.setattr(tasks, "merge_request", again.append)
    load(shard, batch, 700)
    monkeypatch.setattr(tasks, "_MERGE_TIME_S", 0.0)
    tasks.merge_shard(shard.head.uid)
    assert (measured, again) == ([], [shard.head.uid])
    monkeypatch.setattr(tasks, "_MERGE_TIME_S", 60.0)
    tasks.merge_shard(shard.head.uid)
    assert len(measured) == 1
    tasks.merge_shard(shard.head.uid)
    tasks.merge_shard("f" * 32)
    assert len(measured) == 1


def test_tasks_checkpoint_a_tail_at_rest_and_ask_for_a_merge(shard, batch, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "merge_request", asked.append)
    load(shard, batch, 30, dimension=4)
    shard.queries.upsert_many(batch(100, 20, dimension=4), namespace="a")
    seq = ShardHead.objects.get().last_seq
    tasks.checkpoint_rested(shard.head.uid, seq)
    assert ShardHead.objects.get().manifest_seq == seq
    assert asked == [shard.head.uid]
    tasks.checkpoint_rested(shard.head.uid, seq)
    tasks.checkpoint_sweep()
    assert asked == [shard.head.uid] * 2


def test_a_long_tail_that_gets_no_entry_is_told(shard, batch, settings, wait_for):
    settings.MLVDB_TAIL_REST_BYTES = 1024
    told = []
    shard.queries.upsert_many(batch(0, 300), namespace="a")
    runtime.runtime().shard(shard.head.pk).on_rest = lambda uid, seq: told.append((uid, seq))
    wait_for(lambda: told)
    assert told == [(shard.head.uid, ShardHead.objects.get().last_seq)]


def test_a_checkpoint_asks_for_the_next_where_the_tail_has_grown_beyond_its_limit_meanwhile(
    shard, batch, settings, monkeypatch
):
    asked = []
    monkeypatch.setattr(tasks, "checkpoint_request", lambda uid, *, if_due: asked.append((uid, if_due)))
    settings.MLVDB_TAIL_SOFT_BYTES = 1024
    run = tasks.checkpoint_run

    def written_meanwhile(uid, *, owner):
        result = run(uid, owner=owner)
        shard.queries.upsert_many(batch(500, 100, dimension=4), namespace="a")
        return result

    shard.queries.upsert_many(batch(0, 100, dimension=4), namespace="a")
    monkeypatch.setattr(tasks, "checkpoint_run", written_meanwhile)
    tasks.checkpoint_shard(shard.head.uid)
    assert asked == [(shard.head.uid, True)]
    monkeypatch.setattr(tasks, "checkpoint_run", run)
    tasks.checkpoint_shard(shard.head.uid)
    assert asked == [(shard.head.uid, True)]
