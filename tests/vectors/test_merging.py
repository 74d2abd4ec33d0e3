"""Merges and indexes: the same contents before and after, whatever happens beside them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from django.db import connection

from tests.vectors.full_syncs import digests, move_to_another_node, record, sync
from vectors import runtime, services, tasks
from vectors.engine import ids, index
from vectors.errors import LeaseLost, ShardDamaged, StorageFull
from vectors.models import IndexRequest, Manifest, Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.recall import requests
from vectors.store import (
    cleaning,
    leases,
    merge_commit,
    merge_writing,
    merging,
    recovery,
    segment_writing,
)
from vectors.store.manifests import document_crc32, read_manifest, segment_directory
from vectors.store.merging import merge_due
from vectors.store.verify import verify_shard

DIMENSION = 16
OPEN_SHARD = recovery.open_shard
needs_faiss = pytest.mark.skipif(not index.available(), reason="faiss is not installed")


@pytest.fixture(autouse=True)
def small_indexes(settings):
    """Segments of a few hundred rows get an index."""
    settings.MLVDB_INDEX_MIN_ROWS = 300
    settings.MLVDB_INDEX_THREADS = 1


def segments(shard, name="a"):
    """Return the records of a namespace's segments."""
    head = ShardHead.objects.get(pk=shard.head.pk)
    manifest = read_manifest(head.pk, head.manifest)
    uid = Namespace.objects.get(name=name, dropped_at=None).uid
    return list(manifest.namespaces[uid].segments)


def rows_and_dead(shard):
    return [(segment.rows, segment.deleted_rows) for segment in segments(shard)]


def directory_of(shard, name="a"):
    return segment_directory(shard.head.uid, Namespace.objects.get(name=name, dropped_at=None).uid)


def load(shard, batch, *counts, start=0, seed=0, dimension=DIMENSION):
    """Write rows in several segments."""
    for count in counts:
        shard.queries.upsert_many(batch(start, count, dimension=dimension, seed=seed), namespace="a")
        shard.checkpoint()
        start += count


def exact_answer(shard, batch, *, k=20):
    query = batch(5, 1, dimension=DIMENSION, seed=99).values[0]
    request = SearchRequest(query=query, top_k=k, exact=True)
    return [(hit.key, hit.score, hit.metadata) for hit in shard.queries.find_similar(request, namespace="a").value]


def before_commit(monkeypatch, act):
    """Do something while a merge has written its files and has not listed them; once."""
    commit = merging.commit

    def act_first(*arguments):
        monkeypatch.setattr(merging, "commit", commit)
        act()
        return commit(*arguments)

    monkeypatch.setattr(merging, "commit", act_first)


def intact(shard, name="a"):
    """Check all of a shard and return the digest of a namespace."""
    assert verify_shard(shard.head).findings == []
    return shard.digest(name)


def test_a_full_tier_becomes_one_segment_and_the_contents_stay(shard, batch):
    load(shard, batch, 10, 20, 30, dimension=4)
    before = intact(shard)
    assert shard.merge(rest_s=60).steps == 0 if not merge_due(ShardHead.objects.get()) else True
    load(shard, batch, 40, start=60, dimension=4)
    expected = intact(shard)
    result = shard.merge()
    assert (result.merges, result.rows_written, rows_and_dead(shard)) == (1, 100, [(100, 0)])
    assert intact(shard) == expected != before
    head = ShardHead.objects.get()
    assert (head.rows_flushed, head.rows_merged) == (100, 100)
    assert head.merged_at is not None
    assert Manifest.objects.get(number=head.manifest).origin == "merge"


def test_a_segment_with_many_dead_rows_is_written_anew_and_an_empty_one_goes(shard, batch):
    load(shard, batch, 100, dimension=4)
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(10)])
    shard.checkpoint()
    assert shard.merge().steps == 0
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(10, 60)])
    shard.checkpoint()
    assert rows_and_dead(shard) == [(100, 60)]
    shard.merge()
    assert rows_and_dead(shard) == [(40, 0)]
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(100)])
    shard.checkpoint()
    assert rows_and_dead(shard) == [(40, 40)]
    shard.merge()
    assert rows_and_dead(shard) == []
    assert intact(shard)[0] == 0


def test_at_rest_all_becomes_one_unless_one_has_nearly_all(shard, batch):
    load(shard, batch, 50, 30, dimension=4)
    assert merge_due(ShardHead.objects.get())
    shard.merge()
    assert rows_and_dead(shard) == [(80, 0)]
    load(shard, batch, 15, start=100, dimension=4)
    assert not merge_due(ShardHead.objects.get())
    assert shard.merge().steps == 0


def test_what_is_done_at_rest_waits_for_rest(shard, batch, settings):
    settings.MLVDB_MERGE_REST_S = 30
    load(shard, batch, 50, 30, dimension=4)
    writing = threading.Event()
    results = []

    def merge():
        try:
            writing.set()
            results.append(merging.merge_run(shard.head.uid, owner="test"))
        finally:
            connection.close()

    thread = threading.Thread(target=merge)
    thread.start()
    writing.wait(10)
    while thread.is_alive():
        shard.queries.upsert_many(batch(500, 1, dimension=4), namespace="a")
        thread.join(0.05)
    assert results[0].steps == 0
    assert results[0].is_done
    assert len(segments(shard)) == 2


def test_what_is_deleted_and_written_during_a_merge_is_so_after_it(shard, batch, monkeypatch):
    load(shard, batch, 60, 60, 60, 60, dimension=4)

    def change():
        shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(50, 70)])
        shard.queries.upsert_many(batch(100, 30, dimension=4, seed=7), namespace="a")
        shard.checkpoint()
        shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(5)])

    before_commit(monkeypatch, change)
    shard.merge(rest_s=0)
    assert ShardHead.objects.get().last_seq > ShardHead.objects.get().manifest_seq
    digest = intact(shard)
    assert digest[0] == 240 - 20 - 5
    assert shard.served_digest("a") == digest
    by_number = {hit["n"]: hit for hit in rows_of(shard)}
    assert sorted(by_number) == [number for number in range(5, 240) if not 50 <= number < 70]
    values = batch(100, 30, dimension=4, seed=7).values
    assert by_number[110]["values"] == values[10].tolist()


def rows_of(shard):
    page = shard.queries.scroll(namespace="a", limit=10_000).value
    return [{"n": ids.id_of(item.key), "values": item.values.tolist()} for item in page.records]


def test_a_source_that_loses_all_its_rows_during_a_merge_voids_nothing(shard, batch, monkeypatch):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    keys = [ids.key_of(number) for number in range(60)]
    before_commit(monkeypatch, lambda: (shard.queries.delete(namespace="a", keys=keys), shard.checkpoint()))
    result = shard.merge()
    assert result.void == 0
    assert intact(shard)[0] == 180


def test_a_namespace_that_ends_during_a_merge_takes_its_files_along(shard, batch, monkeypatch):
    load(shard, batch, 60, 60, dimension=4)
    shard.queries.upsert_many(batch(0, 5), namespace="b")
    directory = directory_of(shard)

    def drop():
        shard.queries.namespace_drop("a")
        shard.checkpoint()

    before_commit(monkeypatch, drop)
    result = shard.merge()
    assert (result.void, result.merges) == (1, 0)
    for number in range(2):
        shard.queries.upsert_many(batch(10 + number, 1), namespace="b")
        shard.checkpoint()
    assert not directory.exists()
    assert intact(shard, "b")[0] == 7


def test_a_full_sync_during_a_merge_makes_it_void(shard, batch, settings, tmp_path, monkeypatch):
    load(shard, batch, 50, 30, dimension=4)
    sent = record(shard)
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sent.offer.shard)
    sync(sent)
    load_again = record_of_term(sent, 2)
    before_commit(monkeypatch, lambda: sync(load_again))
    result = shard.merge()
    assert result.void == 1
    assert digests(shard) == sent.digests
    assert verify_shard(shard.head).findings == []


def record_of_term(sent, term):
    return sent.of_term(term)


def test_an_installed_copy_still_knows_the_offer_after_a_merge(shard, batch, settings, tmp_path):
    load(shard, batch, 50, 30, dimension=4)
    sent = record(shard)
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sent.offer.shard)
    installed = sync(sent)
    for _ in range(3):
        shard.merge()
    assert len(segments(shard)) == 1
    assert sync(sent).position == installed.position
    assert len(segments(shard)) == 1
    assert digests(shard) == sent.digests


def test_a_merge_whose_lease_is_taken_over_commits_nothing_and_leaves_nothing(shard, batch, monkeypatch):
    load(shard, batch, 50, 30, dimension=4)
    before = ShardHead.objects.get().manifest
    before_commit(monkeypatch, lambda: leases.seize_lease(leases.merge_lease(shard.head.pk), "next"))
    with pytest.raises(LeaseLost):
        shard.merge()
    assert ShardHead.objects.get().manifest == before
    assert {path.name for path in directory_of(shard).iterdir()} == {segment.uid for segment in segments(shard)}


def test_cleaners_leave_alone_what_a_merge_at_work_has_written(shard, batch, monkeypatch):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    seen = []

    def checkpoints():
        for number in range(3):
            load(shard, batch, 5, start=1000 + 10 * number, dimension=4)
        listed = {segment.uid for segment in segments(shard)}
        seen.extend(path.name for path in directory_of(shard).iterdir() if path.name not in listed)

    before_commit(monkeypatch, checkpoints)
    result = shard.merge()
    assert len(seen) == 1
    assert result.merges
    assert intact(shard)[0] == 255


def test_what_a_manifest_lists_stays_until_two_checkpoints_later_whatever_merges_do(shard, batch):
    """As docs/faults.md promises to who copies the files of a serving node."""
    load(shard, batch, 50, 30, dimension=4)
    copied = {path.name for path in directory_of(shard).iterdir()}
    shard.merge()
    load(shard, batch, 40, start=100, dimension=4)
    shard.merge()
    assert copied <= {path.name for path in directory_of(shard).iterdir()}
    load(shard, batch, 40, start=200, dimension=4)
    assert not copied & {path.name for path in directory_of(shard).iterdir()}


def test_indexes_made_again_and_again_leave_few_files(shard, batch, monkeypatch):
    monkeypatch.setattr(cleaning, "_MOST_MANIFESTS_KEPT", 3)
    load(shard, batch, 700)
    for _ in range(6):
        requests.ask(Namespace.objects.get(), IndexRequest.Reason.ASKED)
        shard.merge()
    (segment,) = segments(shard)
    files = [path for path in (directory_of(shard) / segment.uid).iterdir() if "index." in path.name]
    assert len(files) == (3 if index.available() else 0)
    assert Manifest.objects.count() <= 3


def test_what_a_merge_that_died_has_written_goes_when_another_one_begins(shard, batch, monkeypatch):
    load(shard, batch, 60, 60, 60, 60, dimension=4)

    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(merging, "commit", die)
        dying.setattr(leases.Lease, "__exit__", lambda *arguments: None)
        with pytest.raises(Killed):
            shard.merge()
    orphans = {path.name for path in directory_of(shard).iterdir()} - {segment.uid for segment in segments(shard)}
    assert len(orphans) == 1
    load(shard, batch, 5, start=1000, dimension=4)
    assert orphans <= {path.name for path in directory_of(shard).iterdir()}
    shard.merge()
    load(shard, batch, 5, start=2000, dimension=4)
    assert not orphans & {path.name for path in directory_of(shard).iterdir()}
    assert intact(shard)[0] == 250


def test_a_cleaner_that_slept_through_a_merge_removes_nothing_of_it(shard, batch, monkeypatch):
    """It knows what was listed, and which leases were over, before the merge; it wakes when that has committed."""
    load(shard, batch, 60, 60, 60, dimension=4)
    remove, late = cleaning.remove_unlisted, []
    monkeypatch.setattr(cleaning, "remove_unlisted", lambda *args, **names: late.append((args, names)))
    load(shard, batch, 60, start=180, dimension=4)
    monkeypatch.setattr(cleaning, "remove_unlisted", remove)
    expected = shard.digest("a")
    shard.merge()
    assert late
    for arguments, names in late:
        remove(*arguments, **names)
    assert intact(shard) == expected


def test_one_merge_at_a_time_on_a_node(shard, batch, monkeypatch):
    load(shard, batch, 50, 30, dimension=4)
    others = []
    before_commit(monkeypatch, lambda: others.append(shard.merge()))
    assert shard.merge().merges == 1
    assert others == [None]


def test_a_checkpoint_at_work_is_waited_for(shard, batch, monkeypatch):
    load(shard, batch, 50, 30, dimension=4)
    checkpointing = leases.take_lease(leases.checkpoint_lease(shard.head.pk), "other")
    sleep = merge_commit.time.sleep

    def end_it(seconds):
        checkpointing.__exit__(None, None, None)
        sleep(0)

    checkpointing.__enter__()
    monkeypatch.setattr(merge_commit.time, "sleep", end_it)
    assert shard.merge().merges == 1


def test_a_full_disk_stops_a_merge_and_nothing_else(shard, batch, monkeypatch):
    load(shard, batch, 50, 30, dimension=4)
    before = shard.digest("a")

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(segment_writing._ChecksummedFile, "write", full)
        with pytest.raises(StorageFull):
            shard.merge()
    with monkeypatch.context() as small:
        small.setattr(merge_writing, "_SPARE_BYTES", 1 << 60)
        with pytest.raises(StorageFull):
            shard.merge()
    assert {path.name for path in directory_of(shard).iterdir()} == {segment.uid for segment in segments(shard)}
    assert shard.merge().merges == 1
    assert intact(shard) == before


def test_a_commit_whose_outcome_is_unknown_leaves_the_files(shard, batch, monkeypatch):
    """The connection may break after the database has committed: what is listed then must not be removed."""
    load(shard, batch, 50, 30, dimension=4)
    expected = shard.digest("a")
    clean = merge_commit.clean

    def cut(*arguments):
        clean(*arguments)
        raise ConnectionError("cut")

    lists = merge_commit.commit

    def commits_and_fails(*arguments):
        lists(*arguments)
        raise ConnectionError("cut")

    monkeypatch.setattr(merging, "commit", commits_and_fails)
    with pytest.raises(Exception, match="cut"):
        shard.merge()
    assert len(segments(shard)) == 1
    assert intact(shard) == expected


def test_a_source_that_is_corrupt_is_damage_and_is_not_merged(shard, batch):
    load(shard, batch, 50, 30, dimension=4)
    source = segments(shard)[0]
    path = directory_of(shard) / source.uid / "metadata.bin"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ShardDamaged):
        shard.merge()
    assert "segments" in ShardHead.objects.get().damage
    assert len(segments(shard)) == 2
    with pytest.raises(ShardDamaged):
        shard.merge()


def test_a_served_engine_swaps_to_the_merged_segment_and_reuses_the_others(shard, batch, wait_for):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    before = shard.served_digest("a")
    engine = runtime.runtime().shard(shard.head.pk)
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    shard.merge()
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert shard.served_digest("a") == before
    matrix = next(iter(engine.opened.parts.values())).matrix
    load(shard, batch, 5, start=1000, dimension=4)
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert any(part.matrix is matrix for part in engine.opened.parts.values())
    assert shard.served_digest("a")[0] == 245


def test_a_served_engine_takes_merged_segments_without_replaying_its_tail(shard, batch, monkeypatch, wait_for):
    load(shard, batch, 60, 60, 60, 60, dimension=4)
    engine = runtime.runtime().shard(shard.head.pk)
    shard.queries.count(namespace="a")
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    # Of rows in segments some are deleted, some written again, and one is merged with a patch, in the tail alone.
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(50, 70)])
    shard.queries.upsert_many(batch(100, 30, dimension=4, seed=7), namespace="a")
    expected = shard.served_digest("a")
    served = engine.opened
    monkeypatch.setattr(recovery, "open_shard", lambda *args, **names: pytest.fail("it was opened anew"))
    with monkeypatch.context() as plain:
        plain.setattr(recovery, "open_shard", OPEN_SHARD)
        shard.merge()
    wait_for(lambda: engine.opened.manifest.number == ShardHead.objects.get().manifest)
    assert engine.opened is served
    assert len(engine.opened.parts) == 1
    assert shard.served_digest("a") == expected
    monkeypatch.undo()
    assert shard.digest("a") == expected


def test_segments_of_other_rows_are_not_taken(shard, batch):
    """Whatever made them: a process that cannot account for each row builds its engine anew."""
    load(shard, batch, 60, 60, dimension=4)
    engine = runtime.ShardRuntime(shard.head.pk, budget=None)
    engine.fresh(timeout_s=10)
    shard.merge()
    manifest = Manifest.objects.get(number=ShardHead.objects.get().manifest)
    (space,) = manifest.document["namespaces"].values()
    uid = space["segments"][0]["uid"]
    name, stamp = segment_writing.write_deleted(
        directory_of(shard) / uid, seq=manifest.seq, deleted=np.arange(120) == 3, token=1
    )
    space["segments"][0]["deleted"] = [name, stamp.size, stamp.crc32, 1]
    manifest.crc32 = document_crc32(manifest.document)
    manifest.save()
    before = engine.opened
    assert engine.swap()
    assert engine.opened is not before
    assert engine.opened.engine.view("a").count == 119


@needs_faiss
def test_a_served_engine_takes_a_new_index_over_the_rows_it_has(shard, batch):
    load(shard, batch, 700)
    engine = runtime.ShardRuntime(shard.head.pk, budget=None)
    served = engine.fresh(timeout_s=10)
    (part,) = served.parts.values()
    assert part.index is None
    shard.merge()
    assert engine.swap()
    assert not engine.swap()
    assert engine.opened is served
    assert list(served.parts.values()) == [part]
    assert part.index is not None


@needs_faiss
def test_a_large_segment_gets_an_index_and_exact_answers_stay_the_same(shard, batch):
    load(shard, batch, 700)
    before, digest = exact_answer(shard, batch), shard.digest("a")
    result = shard.merge()
    assert (result.merges, result.indexes) == (0, 1)
    (segment,) = segments(shard)
    assert segment.index.summary["rows"] == 700
    assert (directory_of(shard) / segment.uid / segment.index.name).stat().st_size == segment.index.stamp.size
    opened = recovery.open_shard(shard.head.pk)
    assert next(iter(opened.parts.values())).index is not None
    assert exact_answer(shard, batch) == before
    assert intact(shard) == digest
    assert not merge_due(ShardHead.objects.get())


@needs_faiss
def test_the_index_of_a_merged_segment_is_there_with_the_segment(shard, batch):
    load(shard, batch, 400, 400, 400)
    shard.merge()
    (segment,) = segments(shard)
    assert segment.index.summary["rows"] == segment.rows == 1200
    numbers = Manifest.objects.order_by("number").values_list("number", "origin")
    assert numbers.last() == (ShardHead.objects.get().manifest, "merge")


@needs_faiss
def test_rows_deleted_while_an_index_is_built_stay_deleted(shard, batch, monkeypatch):
    load(shard, batch, 700)
    keys = [ids.key_of(number) for number in range(50)]
    before_commit(monkeypatch, lambda: (shard.queries.delete(namespace="a", keys=keys), shard.checkpoint()))
    shard.merge()
    (segment,) = segments(shard)
    assert (segment.index is not None, segment.deleted_rows) == (True, 50)
    assert intact(shard)[0] == 650


@needs_faiss
@pytest.mark.parametrize("harm", ["missing", "short", "altered", "of another format"])
def test_a_broken_index_is_no_damage_is_told_and_made_anew(shard, batch, harm):
    load(shard, batch, 700)
    shard.merge()
    before, digest = exact_answer(shard, batch), shard.digest("a")
    (segment,) = segments(shard)
    path = directory_of(shard) / segment.uid / segment.index.name
    if harm == "missing":
        path.unlink()
    elif harm == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "altered":
        path.write_bytes(path.read_bytes()[:-100] + b"\xff" * 100)
    else:
        other = b"something else" * 1000
        path.write_bytes(other)
        relist(shard, segment, other)
    shard.restart()
    assert exact_answer(shard, batch) == before
    assert shard.digest("a") == digest
    head = ShardHead.objects.get()
    assert head.damage is None
    assert head.index_faults[segment.uid]["file"] == segment.index.name
    result = verify_shard(shard.head)
    assert result.findings == []
    assert any(segment.uid in note for note in result.notes)
    assert merge_due(head)
    assert shard.merge().indexes == 1
    (again,) = segments(shard)
    assert again.index.name != segment.index.name
    assert ShardHead.objects.get().index_faults == {}
    assert next(iter(recovery.open_shard(shard.head.pk).parts.values())).index is not None
    assert intact(shard) == digest


def relist(shard, segment, data):
    """Let the manifest list another index file, as if it had been written so."""
    import zlib

    row = Manifest.objects.get(number=ShardHead.objects.get().manifest)
    for namespace in row.document["namespaces"].values():
        for item in namespace["segments"]:
            if item["uid"] == segment.uid:
                item["index"][1:3] = [len(data), zlib.crc32(data)]
    row.crc32 = document_crc32(row.document)
    row.save()


@needs_faiss
def test_without_faiss_all_is_answered_exactly_and_the_index_stays(shard, batch, monkeypatch):
    load(shard, batch, 700)
    shard.merge()
    before = exact_answer(shard, batch)
    (segment,) = segments(shard)
    shard.restart()
    monkeypatch.setattr(index, "available", lambda: False)
    assert exact_answer(shard, batch) == before
    request = SearchRequest(query=batch(5, 1, dimension=DIMENSION, seed=99).values[0], top_k=20)
    found = shard.queries.find_similar(request, namespace="a").value
    assert [(hit.key, hit.score, hit.metadata) for hit in found] == before
    assert ShardHead.objects.get().index_faults == {}
    assert not merge_due(ShardHead.objects.get())
    load(shard, batch, 400, 400, start=700)
    shard.merge()
    (merged,) = segments(shard)
    assert (merged.rows, merged.index, merged.unindexed) == (1500, None, None)
    monkeypatch.undo()
    assert shard.merge().indexes == 1
    assert segment.index is not None


@needs_faiss
def test_a_segment_that_no_setting_serves_stays_exact_and_is_not_tried_again(shard, batch, monkeypatch):
    load(shard, batch, 700)
    tried = []
    monkeypatch.setattr(index, "build", lambda *args, **names: tried.append(names["recall_target"]))
    assert shard.merge().indexes == 1
    assert shard.merge().steps == 0
    assert tried == [0.99]
    assert segments(shard)[0].unindexed["recall_target"] == 0.99
    services.namespace_put(shard.head.pk, "a", recall_target=0.9)
    shard.merge()
    assert tried == [0.99, 0.9]


@needs_faiss
def test_a_build_that_fails_is_noted_and_leaves_the_segment_exact(shard, batch, monkeypatch):
    load(shard, batch, 700)

    def fail(*args, **names):
        raise RuntimeError("Error in faiss")

    monkeypatch.setattr(index, "build", fail)
    shard.merge()
    assert "Error in faiss" in segments(shard)[0].unindexed["reason"]
    assert not merge_due(ShardHead.objects.get())
    assert intact(shard)[0] == 700


@needs_faiss
def test_a_raised_target_and_a_wish_get_other_indexes(shard, batch):
    load(shard, batch, 700)
    shard.merge()
    (first,) = segments(shard)
    services.namespace_put(shard.head.pk, "a", recall_target=0.995)
    assert merge_due(ShardHead.objects.get())
    shard.merge()
    (second,) = segments(shard)
    assert first.index.name != second.index.name
    assert second.index.summary["recall_target"] == 0.995
    requests.ask(Namespace.objects.get(), IndexRequest.Reason.MEASURED)
    assert merge_due(ShardHead.objects.get())
    shard.merge()
    (third,) = segments(shard)
    assert third.index.name != second.index.name
    assert not merge_due(ShardHead.objects.get())
    assert requests.pending(shard.head.pk) == {}


@needs_faiss
def test_an_index_travels_with_a_full_sync_and_is_used_again(shard, batch, settings, tmp_path, monkeypatch):
    load(shard, batch, 700)
    shard.merge()
    sent = record(shard)
    assert any("/index." in path for path in sent.files)
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sent.offer.shard)
    monkeypatch.setattr(index, "available", lambda: False)
    sync(sent)
    monkeypatch.undo()
    assert digests(shard) == sent.digests
    opened = recovery.open_shard(shard.head.pk)
    assert next(iter(opened.parts.values())).index is not None
    assert not merge_due(ShardHead.objects.get())
    from vectors.store.staging import offer_take

    newer = sent.of_term(2)
    here = offer_take(newer.offer)
    assert here == {path: len(data) for path, data in sent.files.items()}
    assert verify_shard(shard.head).findings == []


@needs_faiss
def test_an_offer_with_an_index_of_a_strange_name_is_refused(shard, batch):
    from vectors.errors import InvalidInput
    from vectors.store.offer import SyncOffer

    load(shard, batch, 700)
    shard.merge()
    document = record(shard).offer.to_document()
    assert SyncOffer.from_document(document).rows == 700
    for name in ("../index.1.1.bin", "index.bin", "vectors.f32.npy", "index.1.1.bin/..", "deleted.1.1.npy"):
        for namespace in document["manifest"]["namespaces"].values():
            namespace["segments"][0]["index"][0] = name
        with pytest.raises(InvalidInput):
            SyncOffer.from_document(document)
    for said in ({}, {"recall_target": "0.99"}, {"recall_target": 7}, {"recall_target": 0.9, "x": "y" * 5000}, [1]):
        document = record(shard).offer.to_document()
        for namespace in document["manifest"]["namespaces"].values():
            namespace["segments"][0]["index"][3] = said
        with pytest.raises(InvalidInput):
            SyncOffer.from_document(document)


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


def test_searches_during_swaps_answer_the_truth(shard, batch, settings):
    """Merges and checkpoints follow each other while searches ask for exact answers."""
    settings.MLVDB_SEGMENT_TIER = 2
    load(shard, batch, 300, 200)
    expected = exact_answer(shard, batch)
    stop, wrong = threading.Event(), []

    def search():
        try:
            while not stop.is_set():
                answer = exact_answer(shard, batch)
                if answer != expected:
                    wrong.append(answer)
        finally:
            connection.close()

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        far = np.full((1, DIMENSION), -1.0, dtype=np.float32)
        for number in range(6):
            rows = batch(5000 + number, 1, dimension=DIMENSION)
            rows.values[:] = far * np.sign(batch(5, 1, dimension=DIMENSION, seed=99).values)
            shard.queries.upsert_many(rows, namespace="a")
            shard.checkpoint()
            shard.merge()
            runtime.runtime().shard(shard.head.pk).swap()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
