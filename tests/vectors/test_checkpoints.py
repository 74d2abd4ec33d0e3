"""Checkpoints: the same contents before and after, whatever dies on the way."""

from __future__ import annotations

import errno
import time
import zlib

import numpy as np
import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.engine.oracle import Oracle
from tests.engine.test_engine_oracle import UID, deletes, patches, upserts
from vectors import runtime
from vectors.engine import ids, search
from vectors.engine.distances import Query
from vectors.engine.filters import parse_filter
from vectors.engine.operations import Kind, NamespacePut, encode
from vectors.errors import LeaseLost, StorageFull
from vectors.models import Lease, LogEntry, Manifest, Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.store import checkpoint, cleaning, leases, log, recovery, segment_writing
from vectors.store.manifests import segment_directory
from vectors.store.verify import verify_shard


class Crash(BaseException):
    """The process dies here: nothing after it runs, clean-up included."""


CRASH_POINTS = ["none", "write_segment", "write_deleted", "_commit", "clean", "prune_log"]


@given(
    steps=st.lists(
        st.one_of(
            upserts(),
            upserts(),
            deletes(),
            patches(),
            st.sampled_from(CRASH_POINTS).map(lambda point: ("checkpoint", point)),
        ),
        max_size=14,
    ),
    query=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_invariant_1_engine_is_segments_plus_operations_with_crashes_anywhere(shard, steps, query):
    shard.restart()
    ShardHead.objects.all().delete()
    head = ShardHead.objects.create(label=f"shard_{time.monotonic_ns()}")
    oracle = Oracle()
    seq = 0
    served = runtime.ShardRuntime(head.pk, budget=None)

    def append(operation):
        nonlocal seq
        payload = encode(operation)
        with log.append_transaction(head.pk) as open_log:
            seq = open_log.add(UID, operation.kind, operation.rows, payload, zlib.crc32(payload)).seq
        oracle.apply(seq, UID, operation)

    append(NamespacePut("a", 3, "cosine", 0.99))
    for step in steps:
        if isinstance(step, tuple):
            crash_in(step[1], head)
        else:
            append(step)
    served.fresh(timeout_s=10)
    served.swap()
    values = np.array(query, dtype=np.float32)
    expected = oracle.search(UID, values, k=6, metric="cosine")
    for opened in (recovery.open_shard(head.pk), served.fresh(timeout_s=10)):
        assert opened.engine.seq == seq
        view = opened.engine.view("a")
        assert sorted(search.matching_keys(view, parse_filter({}))) == oracle.matching(UID, None)
        found = search.search(view, search.Wanted(Query.of(values, "cosine"), 6)).found
        assert [item.key for item in found] == [key for key, _ in expected]
        for key, (row_values, _, changed_at) in oracle.rows[UID].items():
            part, row = opened.engine.find_many("a", [key])[0]
            assert part.matrix[row].tolist() == row_values.tolist()
            assert part.seqs[row] == changed_at
    findings = [line for line in verify_shard(head).findings if "registry" not in line]
    assert findings == []


def crash_in(point, head):
    """Checkpoint, dying just before `point` runs; the lease of the dead is taken over."""
    if point == "none":
        checkpoint.checkpoint_run(head.uid, owner="test")
        return
    monkeypatch = pytest.MonkeyPatch()

    def die(*args, **kwargs):
        raise Crash

    try:
        monkeypatch.setattr(cleaning if point == "prune_log" else checkpoint, point, die)
        monkeypatch.setattr(checkpoint._Writer, "discard", lambda self: None)
        checkpoint.checkpoint_run(head.uid, owner="test")
    except Crash:
        Lease.objects.filter(name=leases.checkpoint_lease(head.pk)).update(owner="")
    finally:
        monkeypatch.undo()


def test_searches_answer_the_same_before_and_after_a_checkpoint_and_a_restart(shard, batch):
    shard.queries.upsert_many(batch(0, 500), namespace="a")
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(0, 500, 7)])
    request = SearchRequest(query=batch(3, 1).values[0], top_k=50, filter=parse_filter({"n__lt": 300}))

    def answer():
        return [(hit.key, hit.score, hit.metadata) for hit in shard.queries.find_similar(request, namespace="a").value]

    before = answer()
    shard.checkpoint()
    assert answer() == before
    wait_for_swap(shard)
    assert answer() == before
    shard.restart()
    assert answer() == before


def test_a_checkpoint_prunes_the_log_and_counts_the_tail_down(shard, batch):
    shard.queries.upsert_many(batch(0, 50), namespace="a")
    assert ShardHead.objects.get().tail_bytes > 0
    result = shard.checkpoint()
    assert (result.rows_written, result.segments_written) == (50, 1)
    head = ShardHead.objects.get()
    assert (head.tail_bytes, head.manifest, head.manifest_seq) == (0, 1, head.last_seq)
    assert LogEntry.objects.count() == 0
    assert shard.checkpoint() is None


def test_writes_during_a_checkpoint_are_in_the_tail_after_it(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 50), namespace="a")
    commit = checkpoint._commit

    def write_first(*args):
        shard.queries.upsert_many(batch(50, 5), namespace="a")
        shard.queries.delete(namespace="a", keys=[ids.key_of(0)])
        return commit(*args)

    monkeypatch.setattr(checkpoint, "_commit", write_first)
    shard.checkpoint()
    assert LogEntry.objects.count() == 2
    assert ShardHead.objects.get().tail_bytes == sum(len(entry.payload) for entry in LogEntry.objects.all())
    wait_for_swap(shard)
    assert shard.queries.count(namespace="a").value == 54
    assert shard.served_digest("a") == shard.digest("a")


def test_a_checkpoint_writes_the_tail_alone(shard, batch):
    for number in range(6):
        shard.queries.upsert_many(batch(10 * number, 10), namespace="a")
        assert shard.checkpoint().rows_written == 10
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(20)])
    assert shard.checkpoint().rows_written == 0
    segments = next(iter(recovery.open_shard(shard.head.pk).manifest.namespaces.values())).segments
    assert [(segment.rows, segment.deleted_rows) for segment in segments] == [(10, 10), (10, 10)] + [(10, 0)] * 4
    assert ShardHead.objects.get().rows_flushed == 60


def test_a_dropped_namespace_leaves_no_file(shard, batch):
    shard.queries.upsert_many(batch(0, 20), namespace="a")
    shard.queries.upsert_many(batch(0, 20), namespace="b")
    shard.checkpoint()
    shard.queries.namespace_drop("a")
    shard.checkpoint()
    shard.queries.upsert_many(batch(20, 1), namespace="b")
    shard.checkpoint()
    shard.queries.upsert_many(batch(21, 1), namespace="b")
    shard.checkpoint()
    root = segment_directory(shard.head.uid, "")
    assert [path.name for path in root.iterdir()] == [Namespace.objects.get(name="b").uid]


@pytest.mark.parametrize("failing", ["segment", "deletions"])
def test_a_full_disk_stops_a_checkpoint_and_nothing_else(shard, batch, monkeypatch, failing):
    shard.queries.upsert_many(batch(0, 100), namespace="a")
    shard.checkpoint()
    shard.queries.delete(namespace="a", keys=[ids.key_of(5)])
    if failing == "segment":
        shard.queries.upsert_many(batch(100, 10), namespace="a")
    before = shard.digest("a")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment_writing._ChecksummedFile, "write", full)
    with pytest.raises(StorageFull):
        shard.checkpoint()
    monkeypatch.undo()
    assert shard.digest("a") == before
    directory = segment_directory(shard.head.uid, Namespace.objects.get().uid)
    assert not list(directory.rglob(".*"))
    assert shard.checkpoint() is not None
    assert shard.digest("a") == before


def test_a_lagging_process_whose_log_was_pruned_maps_the_segments(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    lagging = runtime.ShardRuntime(shard.head.pk, budget=None)
    lagging.fresh(timeout_s=10)
    shard.queries.upsert_many(batch(10, 10), namespace="a")
    shard.checkpoint()
    assert LogEntry.objects.count() == 0
    assert lagging.fresh(timeout_s=10).engine.view("a").count == 20


def test_only_one_process_checkpoints_at_a_time(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    lease = leases.take_lease(leases.checkpoint_lease(shard.head.pk), "other")
    with lease:
        assert shard.checkpoint() is None
        assert Manifest.objects.count() == 0
    assert shard.checkpoint() is not None


def test_a_silent_holder_loses_the_lease_and_cannot_commit(shard, batch, settings, monkeypatch):
    settings.MLVDB_LEASE_S = 0.2
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    monkeypatch.setattr(leases.Lease, "_beat", lambda self: None)
    silent = leases.take_lease(leases.checkpoint_lease(shard.head.pk), "silent")
    assert leases.take_lease(leases.checkpoint_lease(shard.head.pk), "next") is None
    later = time.monotonic() + 1000
    monkeypatch.setattr(leases.time, "monotonic", lambda: later)
    taken = leases.take_lease(leases.checkpoint_lease(shard.head.pk), "next")
    assert taken is not None
    with transaction.atomic(), pytest.raises(LeaseLost):
        silent.check()
    with transaction.atomic():
        taken.check()


def test_a_manifest_is_not_committed_over_another_one(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    commit = checkpoint._commit

    def overtaken(head, *args):
        ShardHead.objects.filter(pk=head.pk).update(incarnation=7)
        return commit(head, *args)

    monkeypatch.setattr(checkpoint, "_commit", overtaken)
    with pytest.raises(LeaseLost):
        shard.checkpoint()
    assert Manifest.objects.count() == 0
    assert ShardHead.objects.get().manifest == 0
    directory = segment_directory(shard.head.uid, Namespace.objects.get().uid)
    assert list(directory.iterdir()) == []


def wait_for_swap(shard):
    """Wait until the served engine stands on the newest manifest."""
    deadline = time.monotonic() + 20
    current = runtime.runtime().shard(shard.head.pk)
    while current.opened is None or current.opened.manifest.number != ShardHead.objects.get().manifest:
        assert time.monotonic() < deadline
        shard.queries.count(namespace="a")


def test_every_kind_of_operation_is_known_to_the_database():
    assert {value for value, _ in LogEntry._meta.get_field("kind").choices} == set(Kind)


def test_a_cleaner_that_was_overtaken_leaves_its_successors_files_alone(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    shard.queries.upsert_many(batch(0, 10), namespace="b")
    late = []
    remove = cleaning.remove_unlisted
    # The first cleaner falls asleep when it knows what it will remove, and wakes when its successor has written.
    monkeypatch.setattr(cleaning, "remove_unlisted", lambda *args, **kwargs: late.append((args, kwargs)))
    shard.checkpoint()
    assert len(late) == 2
    shard.queries.upsert_many(batch(10, 10), namespace="a")
    shard.queries.delete(namespace="a", keys=[ids.key_of(0)])
    commit = checkpoint._commit

    def wake_the_first_before(*args):
        for arguments, names in late[:2]:
            remove(*arguments, **names)
        return commit(*args)

    monkeypatch.setattr(cleaning, "remove_unlisted", remove)
    monkeypatch.setattr(checkpoint, "_commit", wake_the_first_before)
    shard.checkpoint()
    assert shard.digest("a")[0] == 19
    assert verify_shard(shard.head).findings == []


def test_a_lease_is_looked_at_between_transactions_too_where_rows_can_be_locked(shard, monkeypatch):
    """PostgreSQL locks rows in transactions only; a sender asks whether it still has its lease outside of any."""
    lease = leases.take_lease("ship:1", "this")
    with monkeypatch.context() as patched:
        patched.setattr(type(connection.features), "has_select_for_update", True)
        lease.check()

    leases.seize_lease("ship:1", "next")
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_cleaner_whose_lease_was_taken_over_removes_nothing_more(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    clean = checkpoint.clean

    def taken_over_first(*args):
        leases.seize_lease(leases.checkpoint_lease(shard.head.pk), "next")
        clean(*args)

    monkeypatch.setattr(checkpoint, "clean", taken_over_first)
    assert shard.checkpoint().rows_written == 10
    assert LogEntry.objects.count() == 2


def test_what_a_killed_build_left_goes_with_the_next_checkpoint(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    crash_in("_commit", shard.head)
    directory = segment_directory(shard.head.uid, Namespace.objects.get().uid)
    assert len(list(directory.iterdir())) == 1
    shard.checkpoint()
    shard.queries.upsert_many(batch(10, 1), namespace="a")
    shard.checkpoint()
    listed = next(iter(recovery.open_shard(shard.head.pk).manifest.namespaces.values())).segments
    assert {path.name for path in directory.iterdir()} == {segment.uid for segment in listed}


def test_verify_beside_a_checkpoint_reports_no_loss(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    read_after = log.read_after

    def checkpoint_first(*args, **kwargs):
        monkeypatch.setattr(log, "read_after", read_after)
        shard.checkpoint()
        return read_after(*args, **kwargs)

    monkeypatch.setattr(log, "read_after", checkpoint_first)
    assert verify_shard(shard.head).findings == []


def test_a_full_disk_is_rid_of_what_a_killed_writer_left(shard, batch, monkeypatch):
    """That may be what fills it: nothing else would ever take it away, since no checkpoint comes to its end."""
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    crash_in("_commit", shard.head)
    directory = segment_directory(shard.head.uid, Namespace.objects.get().uid)
    assert len(list(directory.iterdir())) == 1

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(segment_writing._ChecksummedFile, "write", full)
        with pytest.raises(StorageFull):
            shard.checkpoint()
    assert not directory.exists() or list(directory.iterdir()) == []
    assert ShardHead.objects.get().manifest == 0
    assert shard.checkpoint().rows_written == 10
