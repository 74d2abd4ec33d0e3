"""Merges: the same contents before and after, whatever happens beside them."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from tests.vectors.full_syncs import digests, move_to_another_node, record, sync
from tests.vectors.merges import before_commit, directory_of, intact, load, rows_and_dead, segments
from vectors.engine import ids
from vectors.errors import LeaseLost, ShardDamaged, StorageBusy, StorageFull
from vectors.models import Manifest, ShardHead
from vectors.store import cleaning, leases, merge_commit, merge_steps, merge_writing, merging, segment_writing
from vectors.store.merging import merge_due
from vectors.store.verify import verify_shard

pytestmark = pytest.mark.usefixtures("small_indexes")


def test_a_full_tier_becomes_one_segment_and_the_contents_stay(shard, batch):
    load(shard, batch, 10, 20, 30, dimension=4)
    before = intact(shard)
    assert shard.merge(tiers_alone=True).steps == 0
    load(shard, batch, 40, start=60, dimension=4)
    expected = intact(shard)
    result = shard.merge(tiers_alone=True)
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
    shard.merge()
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

    def end_it(_seconds):
        checkpointing.__exit__(None, None, None)

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


def test_a_merge_that_surely_was_not_listed_leaves_no_files(shard, batch, monkeypatch):
    """They may be what fills the disk, and without room there is no checkpoint that would clean up."""
    load(shard, batch, 60, 60, 60, 60, dimension=4)

    def full(*arguments, **names):
        raise OSError(28, "No space left on device")

    def delete_and_fill_up():
        shard.queries.delete(namespace="a", keys=[ids.key_of(3)])
        shard.checkpoint()
        monkeypatch.setattr(merge_steps, "deletions_write", full)

    with monkeypatch.context():
        before_commit(monkeypatch, delete_and_fill_up)
        with pytest.raises(StorageFull):
            shard.merge()
    monkeypatch.undo()
    listed = {segment.uid for segment in segments(shard)}
    assert {path.name for path in directory_of(shard).iterdir()} == listed

    with leases.take_lease(leases.checkpoint_lease(shard.head.pk), "other"), monkeypatch.context() as impatient:
        impatient.setattr(merge_commit, "_LEASE_WAIT_S", -1.0)
        with pytest.raises(StorageBusy):
            shard.merge()
    assert {path.name for path in directory_of(shard).iterdir()} == listed
    assert shard.merge().merges == 1
    assert intact(shard)[0] == 239


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
