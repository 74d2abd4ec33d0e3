"""The log: order, durability rules, refusals, several writers at once."""

from __future__ import annotations

import threading
import zlib

import numpy as np
import orjson
import pytest
from django.db import close_old_connections, connection

from vectors import runtime
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.engine.namespace import NamespaceEngine
from vectors.engine.operations import Kind
from vectors.engine.shard import ShardEngine
from vectors.errors import (
    CheckpointBehind,
    DimensionMismatch,
    MemoryLimitReached,
    NamespaceNotFound,
    NotReady,
    StorageBusy,
    StorageError,
    StorageFull,
    TokenLost,
    TooLarge,
    VectorNotFound,
)
from vectors.models import LogEntry, Namespace, ShardHead
from vectors.query_processor import RequestOptions, SearchRequest, VectorBatch
from vectors.store import log
from vectors.store.appender import Appender

ON_SQLITE = connection.vendor == "sqlite"


def in_threads(*calls):
    """Run calls at once and return what each returned or raised."""
    results = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(number, call):
        barrier.wait(timeout=30)
        try:
            results[number] = call()
        except Exception as error:
            results[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def test_seqs_are_without_gaps_whoever_writes(shard, batch):
    calls = [
        lambda start=start: [shard.queries.upsert_many(batch(start + i, 1), namespace="a") for i in range(10)]
        for start in range(0, 80, 10)
    ]
    results = in_threads(*calls)
    assert not [error for error in results if isinstance(error, Exception)]
    seqs = list(LogEntry.objects.order_by("seq").values_list("seq", flat=True))
    assert seqs == list(range(1, len(seqs) + 1))
    assert ShardHead.objects.get().last_seq == seqs[-1] == 81
    assert shard.queries.count(namespace="a").value == 80
    assert shard.served_digest("a") == shard.digest("a")


def test_waiting_writes_share_a_commit_and_each_gets_its_own_position(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    uid = Namespace.objects.get().uid
    appender = Appender(shard.head.pk)
    sizes = []
    commit = appender._commit
    monkeypatch.setattr(appender, "_commit", lambda group: (sizes.append(len(group)), commit(group)))
    with appender._commit_lock:
        threads = in_background(
            lambda: appender.append(namespace=uid, kind=Kind.DELETE, keys=[], payload=b"x"), count=6
        )
        wait_until(lambda: len(appender._queue) == 6)
    positions = [thread.result() for thread in threads]
    assert sizes == [6]
    assert sorted(position.seq for position in positions) == [3, 4, 5, 6, 7, 8]


def test_a_refused_write_in_a_group_does_not_take_the_others_down(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    uid = Namespace.objects.get().uid
    appender = Appender(shard.head.pk)
    with appender._commit_lock:
        good = in_background(lambda: appender.append(namespace=uid, kind=Kind.DELETE, keys=[], payload=b"x"), count=2)
        bad = in_background(
            lambda: appender.append(namespace="f" * 32, kind=Kind.DELETE, keys=[], payload=b"x"), count=1
        )
        wait_until(lambda: len(appender._queue) == 3)
    assert sorted(thread.result().seq for thread in good) == [3, 4]
    assert isinstance(bad[0].error(), NamespaceNotFound)


def test_of_two_first_inserts_with_different_dimensions_one_is_refused(shard, batch):
    for attempt in range(5):
        name = f"race{attempt}"
        results = in_threads(
            lambda name=name: shard.queries.upsert_many(batch(0, 1, dimension=3), namespace=name),
            lambda name=name: shard.queries.upsert_many(batch(5, 1, dimension=5), namespace=name),
        )
        refused = [error for error in results if isinstance(error, Exception)]
        assert len(refused) == 1
        assert isinstance(refused[0], DimensionMismatch)
        assert shard.queries.count(namespace=name).value == 1
        assert Namespace.objects.filter(name=name).count() == 1


def test_a_write_to_a_namespace_that_was_dropped_meanwhile_makes_it_anew(shard, batch):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    old = Namespace.objects.get().uid
    shard.queries.namespace_drop("a")
    shard.queries.upsert_many(batch(7, 2, dimension=6), namespace="a")
    assert shard.queries.count(namespace="a").value == 2
    assert Namespace.objects.get(dropped_at=None).uid != old
    with pytest.raises(NamespaceNotFound):
        Appender(shard.head.pk).append(namespace=old, kind=Kind.DELETE, keys=[], payload=b"x")


def test_a_namespace_dropped_and_made_anew_by_writers_loses_no_acknowledged_row(shard, batch):
    def write():
        return [shard.queries.upsert_many(batch(i, 1), namespace="a").seq for i in range(30)]

    def drop():
        for _ in range(5):
            try:
                shard.queries.namespace_drop("a")
            except NamespaceNotFound:
                continue

    results = in_threads(write, drop)
    assert not [error for error in results if isinstance(error, Exception)]
    # What the log says is what is served: every acknowledged row after the last drop is there.
    last_drop = LogEntry.objects.filter(kind=Kind.NAMESPACE_DROP).order_by("-seq").first()
    after = LogEntry.objects.filter(kind=Kind.UPSERT, seq__gt=last_drop.seq if last_drop else 0).count()
    assert shard.queries.count(namespace="a").value == after
    assert shard.served_digest("a") == shard.digest("a")


def test_the_hard_tail_limit_refuses_writes_until_a_checkpoint(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 100), namespace="a")
    settings.MLVDB_TAIL_HARD_BYTES = ShardHead.objects.get().tail_bytes + 500
    with pytest.raises(CheckpointBehind):
        shard.queries.upsert_many(batch(100, 100), namespace="a")
    assert shard.queries.count(namespace="a").value == 100
    shard.checkpoint()
    shard.queries.upsert_many(batch(100, 10), namespace="a")
    assert shard.queries.count(namespace="a").value == 110


def test_the_memory_limit_refuses_inserts_and_never_deletes(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 100), namespace="a")
    settings.MLVDB_MEMORY_LIMIT = 1000
    with pytest.raises(MemoryLimitReached):
        shard.queries.upsert_many(batch(100, 100), namespace="a")
    assert shard.queries.count(namespace="a").value == 100
    assert shard.queries.delete(namespace="a", keys=[ids.key_of(3)]).count == 1


@pytest.mark.skipif(not ON_SQLITE, reason="bounds the pages of an SQLite file; see the SQLSTATEs for PostgreSQL")
def test_a_full_database_refuses_the_write_and_loses_nothing(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    with connection.cursor() as cursor:
        # Pages that other tests have left free would take the write in.
        cursor.execute("VACUUM")
        pages = cursor.execute("PRAGMA page_count").fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count={pages + 2}")
    try:
        with pytest.raises(StorageFull):
            shard.queries.upsert_many(batch(10, 5000), namespace="a")
        assert shard.queries.count(namespace="a").value == 10
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA max_page_count=1073741823")
    shard.queries.upsert_many(batch(10, 5000), namespace="a")
    assert shard.digest("a")[0] == 5010


def test_a_locked_database_is_busy_after_the_deadline_and_nothing_is_written(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    settings.MLVDB_DATABASE_TIMEOUT_S = 0.3
    # PostgreSQL learns how long to wait when a connection is made.
    connection.close()
    held, release = threading.Event(), threading.Event()

    def hold():
        with log.append_transaction(shard.head.pk):
            held.set()
            release.wait(timeout=30)

    threads = in_background(hold, count=1)
    assert held.wait(timeout=30)
    with pytest.raises(StorageBusy):
        shard.queries.upsert_many(batch(1, 1), namespace="a")
    release.set()
    threads[0].result()
    assert shard.queries.upsert_many(batch(1, 1), namespace="a").count == 1
    assert shard.queries.count(namespace="a").value == 2


@pytest.mark.skipif(ON_SQLITE, reason="SQLSTATEs are what PostgreSQL answers")
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("53100", StorageFull),  # disk_full
        ("55P03", StorageBusy),  # lock_not_available
        ("40P01", StorageBusy),  # deadlock_detected
        ("53200", StorageError),  # out_of_memory
        ("58030", StorageError),  # io_error
    ],
)
def test_an_error_of_the_server_is_known_by_its_state_and_nothing_is_written(shard, batch, state, expected):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'kein Platz' USING ERRCODE = '{state}'; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER refusing BEFORE INSERT ON vectors_logentry FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    try:
        with pytest.raises(expected):
            shard.queries.upsert_many(batch(1, 1), namespace="a")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION refuse CASCADE")
    assert shard.queries.upsert_many(batch(1, 1), namespace="a").count == 1
    assert shard.queries.count(namespace="a").value == 2


@pytest.mark.skipif(ON_SQLITE, reason="an SQLite file has no server that could end a connection")
def test_a_connection_that_the_server_has_ended_is_one_error_and_then_a_new_connection(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [mine] = cursor.fetchone()
    others = in_background(lambda: _end_backend(mine), count=1)
    others[0].result()
    wait_until(lambda: not connection.is_usable())
    with pytest.raises(StorageError):
        shard.queries.count(namespace="a")
    # What Django does between two requests.
    close_old_connections()
    assert shard.queries.count(namespace="a").value == 1


@pytest.mark.skipif(ON_SQLITE, reason="PostgreSQL hands out answers in pieces only on demand")
def test_a_long_log_is_read_in_pieces_and_in_one_snapshot(shard, batch):
    for number in range(40):
        shard.queries.upsert_many(batch(number, 1), namespace="a")
    last = ShardHead.objects.get().last_seq
    entries = log.read_after(shard.head.pk, 0, through=last)
    seqs = [next(entries).seq for _ in range(5)]
    LogEntry.objects.all().delete()
    seqs.extend(entry.seq for entry in entries)
    assert seqs == list(range(1, last + 1))


def test_a_failing_database_is_a_clear_error(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE vectors_logentry RENAME TO away")
    try:
        with pytest.raises(StorageError):
            shard.queries.upsert_many(batch(1, 1), namespace="a")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO vectors_logentry")
    assert shard.queries.upsert_many(batch(1, 1), namespace="a").count == 1


@pytest.mark.parametrize("table", ["vectors_shardhead", "vectors_logentry"])
def test_a_read_without_its_database_is_a_clear_error(shard, batch, table):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    shard.restart()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        with pytest.raises(StorageError):
            shard.queries.count(namespace="a")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")
    assert shard.queries.count(namespace="a").value == 1


def test_of_a_repeated_id_the_last_wins(shard):
    key = ids.key_of("twice")
    values = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    result = shard.queries.upsert_many(VectorBatch([key, ids.key_of("b"), key], values, [b"{}"] * 3), namespace="a")
    assert list(result.keys) == [key, ids.key_of("b"), key]
    assert shard.queries.get(key, namespace="a").value.values.tolist() == [1, 1]
    assert shard.queries.count(namespace="a").value == 2


def test_an_idempotency_key_makes_the_same_ids_again(shard):
    values = np.ones((3, 2), dtype=np.float32)
    once, again, other = (
        shard.queries.upsert_many(
            VectorBatch([None] * 3, values, [b"{}"] * 3),
            namespace="a",
            options=RequestOptions(idempotency_key=key),
        ).keys
        for key in ("k", "k", "other")
    )
    assert once == again != other
    assert len(set(once)) == 3
    assert shard.queries.count(namespace="a").value == 6


def test_a_delete_by_filter_spares_rows_changed_since_it_was_resolved(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10, state="old"), namespace="a")
    commit = shard.queries._commit

    def change_first(*args):
        monkeypatch.setattr(shard.queries, "_commit", commit)
        shard.queries.patch(ids.key_of(4), metadata=b'{"state":"new"}', namespace="a")
        return commit(*args)

    monkeypatch.setattr(shard.queries, "_commit", change_first)
    assert shard.queries.delete(namespace="a", filter=parse_filter({"state": "old"})).count == 9
    assert shard.queries.get(ids.key_of(4), namespace="a").value.metadata == b'{"n":4,"state":"new"}'
    shard.restart()
    assert shard.queries.count(namespace="a").value == 1


def test_a_delete_by_filter_of_more_rows_than_a_batch_holds_deletes_all(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 100), namespace="a")
    settings.MLVDB_MAX_BATCH = 30
    assert shard.queries.delete(namespace="a", filter=parse_filter({"n__gte": 0})).count == 100
    assert shard.queries.count(namespace="a").value == 0


def test_a_patch_of_an_unknown_id_is_not_logged(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    entries = LogEntry.objects.count()
    with pytest.raises(VectorNotFound):
        shard.queries.patch(ids.key_of(9), metadata=b"{}", namespace="a")
    assert LogEntry.objects.count() == entries


def test_a_token_of_this_log_is_met_and_one_of_another_is_lost(shard, batch):
    seq = shard.queries.upsert_many(batch(0, 1), namespace="a").seq
    assert shard.queries.count(namespace="a", options=RequestOptions(min_seq=seq)).value == 1
    label, token = next(iter(seq.items()))
    head, tail = token.rsplit(".", 1)
    for foreign in (f"{head}.{int(tail) + 5}", token.replace(token.split(".")[1], "00000000")):
        with pytest.raises(TokenLost):
            shard.queries.count(namespace="a", options=RequestOptions(min_seq={label: foreign}))
    assert shard.queries.count(namespace="a", options=RequestOptions(min_seq={"elsewhere": token})).value == 1


def test_a_node_whose_copy_was_exchanged_for_another_goes_on_with_that_one(shard, batch):
    assert shard.queries.count(namespace="a").value == 0
    ShardHead.objects.all().delete()
    ShardHead.objects.create(label="other")
    with pytest.raises(NotReady):
        shard.queries.count(namespace="a")
    shard.queries.upsert_many(batch(0, 2), namespace="a")
    assert shard.queries.count(namespace="a").value == 2
    assert ShardHead.objects.get().last_seq == 2


def test_a_record_is_checked_with_where_it_stands():
    payload = b"payload"
    crc32 = log.checksum(5, 1, 3, "a" * 32, zlib.crc32(payload))
    others = [
        log.checksum(6, 1, 3, "a" * 32, zlib.crc32(payload)),
        log.checksum(5, 2, 3, "a" * 32, zlib.crc32(payload)),
    ]
    assert crc32 not in others


def _end_backend(pid):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))


def test_patches_do_not_grow_metadata_beyond_its_limit(shard, batch, settings):
    settings.MLVDB_MAX_METADATA_BYTES = 100
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    for key in ("x", "y"):
        patch = orjson.dumps({key: 40 * "m"})
        if key == "x":
            shard.queries.patch(ids.key_of(0), metadata=patch, namespace="a")
    with pytest.raises(TooLarge):
        shard.queries.patch(ids.key_of(0), metadata=patch, namespace="a")
    assert shard.queries.get(ids.key_of(0), namespace="a").value.metadata == b'{"n":0,"x":"' + 40 * b"m" + b'"}'


def test_refused_writes_do_not_fill_the_memory_estimate(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    settings.MLVDB_TAIL_HARD_BYTES = 1
    settings.MLVDB_MEMORY_LIMIT = 200_000
    for _ in range(50):
        with pytest.raises(CheckpointBehind):
            shard.queries.upsert_many(batch(10, 100), namespace="a")


def test_an_apply_that_fails_is_no_failed_write_and_leaves_no_half_of_it(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    append = NamespaceEngine._append

    def no_memory(self, *args, **kwargs):
        monkeypatch.setattr(NamespaceEngine, "_append", append)
        raise MemoryError

    monkeypatch.setattr(NamespaceEngine, "_append", no_memory)
    result = shard.queries.patch(ids.key_of(3), metadata=b'{"x":1}', namespace="a")
    assert result.seq
    assert shard.queries.get(ids.key_of(3), namespace="a").value.metadata == b'{"n":3,"x":1}'
    assert shard.served_digest("a") == shard.digest("a")


def test_a_delete_whose_result_went_with_an_exchanged_engine_counts_what_was_there(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    monkeypatch.setattr(runtime.ShardRuntime, "applied", lambda self, *args, **kwargs: None)
    assert shard.queries.delete(namespace="a", keys=[ids.key_of(3), ids.key_of(77)]).count == 1


def test_a_search_by_id_sees_the_row_in_the_state_it_searches(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 10, dimension=4), namespace="a")
    engine = runtime.runtime().shard(shard.head.pk).opened.engine
    view_and_places = ShardEngine.view_and_places

    def recreate_after(self, *args, **kwargs):
        found = view_and_places(self, *args, **kwargs)
        monkeypatch.setattr(ShardEngine, "view_and_places", view_and_places)
        shard.queries.namespace_drop("a")
        shard.queries.upsert_many(batch(0, 10, dimension=6), namespace="a")
        return found

    monkeypatch.setattr(ShardEngine, "view_and_places", recreate_after)
    answer = shard.queries.find_similar(SearchRequest(key=ids.key_of(3), top_k=1), namespace="a")
    assert [(hit.key, len(hit.values)) for hit in answer.value] == [(ids.key_of(3), 4)]
    assert engine.view("a").spec.dimension == 6


class Background:
    """A call in a thread, and what came of it."""

    def __init__(self, call):
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._outcome = self._error = None
        self._thread.start()

    def _run(self, call):
        try:
            self._outcome = call()
        except Exception as error:
            self._error = error
        finally:
            connection.close()

    def result(self):
        self._thread.join(timeout=30)
        if self._error is not None:
            raise self._error
        return self._outcome

    def error(self):
        self._thread.join(timeout=30)
        return self._error


def in_background(call, *, count):
    return [Background(call) for _ in range(count)]


def wait_until(condition, timeout_s=10.0):
    deadline = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("the condition did not come true in time")
