"""Full syncs as the receiver sees them: resumed anywhere, installed whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import shutil
import threading

import numpy as np
import pytest

from tests.vectors.full_syncs import digests, entry, move_to_another_node, record, send_files, sync
from vectors import runtime
from vectors.engine import ids
from vectors.engine.operations import Delete, StartTerm, Upsert
from vectors.errors import (
    InvalidInput,
    LeaseLost,
    LogMismatch,
    NotFound,
    NotPrimary,
    StaleTerm,
    StorageBusy,
    StorageError,
    StorageFull,
    SyncBehind,
    SyncIncomplete,
    SyncUnknown,
)
from vectors.models import LogEntry, Manifest, Namespace, Pin, ShardHead, ShardTerm
from vectors.store import checkpoint, install, leases, log, partial_files, pins, recovery, segment_files, staging
from vectors.store.install import install as install_offer
from vectors.store.log import Position
from vectors.store.manifests import segment_directory
from vectors.store.offer import SyncOffer, file_path
from vectors.store.receive import receive
from vectors.store.slices import slices_in
from vectors.store.staging import chunk_write, offer_take, staged_files
from vectors.store.terms import TermStart, read_terms
from vectors.store.verify import verify_shard


@pytest.fixture
def recorded(shard, batch):
    """A sender's state: two namespaces, two segments in one, deletions in one of them, and a tail."""
    shard.queries.upsert_many(batch(0, 60), namespace="a")
    shard.queries.upsert_many(batch(0, 10, dimension=3), namespace="b")
    shard.checkpoint()
    shard.queries.upsert_many(batch(60, 40), namespace="a")
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(5)])
    shard.checkpoint()
    shard.queries.upsert_many(batch(3, 1), namespace="a")
    shard.queries.delete(namespace="b", keys=[ids.key_of(0)])
    return record(shard)


@pytest.fixture
def later(shard, recorded, batch):
    """The same sender after more writes and a checkpoint: one segment is as it was, but for its deletions."""
    shard.queries.upsert_many(batch(200, 7), namespace="a")
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(20, 24)])
    shard.checkpoint()
    return record(shard)


@pytest.fixture
def replica(shard, settings, tmp_path):
    """Make the shard fixture a copy on another node."""

    def make(recorded):
        move_to_another_node(shard, settings, tmp_path / "replica", uid=recorded.offer.shard)
        return shard

    return make


def follow(copy, recorded):
    """Ship the recorded tail."""
    offer = recorded.offer
    return receive(copy.head.pk, term=offer.head.term, before=Position(offer.term, offer.seq), entries=recorded.entries)


def damage_file(path):
    """Flip a bit where only this file's name gets it: linked files stay as they are."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_a_new_copy_is_what_its_sender_is_and_goes_on_from_there(recorded, replica):
    copy = replica(recorded)
    installed = sync(recorded)
    assert installed == (Position(1, recorded.offer.seq), None, None)
    assert follow(copy, recorded) == recorded.offer.head
    assert digests(copy) == recorded.digests
    assert verify_shard(copy.head).findings == []
    head = ShardHead.objects.get()
    assert (head.manifest_seq, head.last_seq, head.damage) == (recorded.offer.seq, recorded.offer.head.seq, None)
    assert not staged_files(head.uid).exists()


def test_serving_processes_notice_the_new_copy_by_themselves(recorded, later, replica):
    copy = replica(recorded)
    serving = runtime.ShardRuntime(copy.head.pk, budget=None)
    assert serving.fresh(timeout_s=10).engine.names() == []
    sync(recorded)
    assert serving.fresh(timeout_s=10).engine.view("a").count == 95
    before = serving.opened.engine.view("a")
    sync(later)
    assert serving.fresh(timeout_s=10).engine.view("a").count == later.digests["a"][0]
    assert before.count == 95
    assert np.isfinite(before.parts[0].part.matrix).all()


def test_an_offer_says_how_much_there_is_and_survives_the_wire(recorded):
    offer = recorded.offer
    assert offer.rows == 95 + 10
    assert offer.size_bytes == sum(map(len, recorded.files.values()))
    assert SyncOffer.from_document(offer.to_document()) == offer
    assert Pin.objects.get(holder="ship:1").manifest == offer.number


@pytest.mark.parametrize("when", ["one file", "half of a file", "everything"])
def test_a_sender_that_died_is_told_what_is_here(recorded, replica, when):
    copy = replica(recorded)
    paths = list(offer_take(recorded.offer))
    done = {"one file": 1, "half of a file": 0, "everything": len(paths)}[when]
    for path in paths[:done]:
        assert chunk_write(copy.head.uid, path, 0, recorded.files[path]) == len(recorded.files[path])
    if when == "half of a file":
        assert chunk_write(copy.head.uid, paths[0], 0, recorded.files[paths[0]][:50]) == 50
    partial_files._running.clear()
    here = offer_take(recorded.offer)
    assert [here[path] for path in paths[:done]] == [len(recorded.files[path]) for path in paths[:done]]
    assert here[paths[0]] == (50 if when == "half of a file" else len(recorded.files[paths[0]]))
    sent = send_files(recorded)
    assert not set(sent) & set(paths[:done])
    install_offer(copy.head.uid, recorded.offer)
    follow(copy, recorded)
    assert digests(copy) == recorded.digests


def test_chunks_that_come_twice_or_out_of_turn_change_nothing(recorded, replica):
    copy = replica(recorded)
    offer_take(recorded.offer)
    path = next(path for path in recorded.files if path.endswith("vectors.f32.npy"))
    data = recorded.files[path]
    assert chunk_write(copy.head.uid, path, 0, data[:100]) == 100
    assert chunk_write(copy.head.uid, path, 0, data[:100]) == 100
    assert chunk_write(copy.head.uid, path, 200, data[200:300]) == 100
    assert chunk_write(copy.head.uid, path, 100, data[100:]) == len(data)
    assert chunk_write(copy.head.uid, path, 0, data[:100]) == len(data)
    assert (staged_files(copy.head.uid) / path).read_bytes() == data


def test_a_file_that_arrives_altered_is_asked_for_again(recorded, replica):
    copy = replica(recorded)
    spoilt = []

    def spoil_once(path, at, data):
        if path.endswith("vectors.f32.npy") and not spoilt:
            spoilt.append(path)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    sent = send_files(recorded, harm=spoil_once)
    assert sent[spoilt[0]] == 2 * len(recorded.files[spoilt[0]])
    install_offer(copy.head.uid, recorded.offer)
    follow(copy, recorded)
    assert digests(copy) == recorded.digests


def test_an_altered_file_is_found_whichever_process_wrote_which_part(recorded, replica):
    copy = replica(recorded)
    offer_take(recorded.offer)
    path = next(path for path in recorded.files if path.endswith("vectors.f32.npy"))
    data = recorded.files[path]
    chunk_write(copy.head.uid, path, 0, data[:100])
    partial = staged_files(copy.head.uid) / path
    partial = partial.with_name(f".{partial.name}")
    about = partial.stat()
    # Another process's bytes, which this one has not seen.
    with partial.open("r+b") as file:
        file.write(b"\0")
        file.flush()
        os.utime(file.fileno(), ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert chunk_write(copy.head.uid, path, 100, data[100:]) == 0
    assert chunk_write(copy.head.uid, path, 0, data) == len(data)


@pytest.mark.parametrize("missing", ["all", "one", "half of one"])
def test_nothing_is_installed_before_every_file_is_complete(recorded, replica, missing):
    copy = replica(recorded)
    offer_take(recorded.offer)
    paths = list(recorded.files)
    for path in paths if missing != "all" else []:
        data = recorded.files[path]
        chunk_write(copy.head.uid, path, 0, data if path != paths[-1] else data[: 10 * (missing == "half of one")])
    with pytest.raises(SyncIncomplete) as caught:
        install_offer(copy.head.uid, recorded.offer)
    assert caught.value.detail["files"] == (len(paths) if missing == "all" else 1)
    assert (ShardHead.objects.get().last_seq, Manifest.objects.count()) == (0, 0)


def test_an_install_whose_answer_was_lost_answers_again(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    incarnation = ShardHead.objects.get().incarnation
    assert install_offer(copy.head.uid, recorded.offer).position == recorded.offer.head
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    assert install_offer(copy.head.uid, recorded.offer).position == recorded.offer.head
    assert ShardHead.objects.get().incarnation == incarnation
    assert digests(copy) == recorded.digests


def test_only_segments_that_differ_are_sent_again(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    sent = send_files(later)
    known = set(recorded.files.values())
    assert set(sent) == {path for path, data in later.files.items() if data not in known}
    assert 0 < len(sent) < len(later.files)
    install_offer(copy.head.uid, later.offer)
    follow(copy, later)
    assert digests(copy) == later.digests
    assert verify_shard(copy.head).findings == []


def test_a_corrupt_file_of_the_present_copy_is_sent_anew(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    record_ = next(iter(recovery.open_shard(copy.head.pk).manifest.namespaces.items()))
    victim = segment_directory(copy.head.uid, record_[0]) / record_[1].segments[0].uid / "vectors.f32.npy"
    damage_file(victim)
    runtime.reset()
    assert recovery.open_shard(copy.head.pk).damage
    sent = send_files(recorded.with_token(2))
    assert [path.split("/")[2] for path in sent] == ["vectors.f32.npy"]
    installed = install_offer(copy.head.uid, recorded.with_token(2).offer)
    assert installed.position == recorded.offer.head
    assert ShardHead.objects.get().damage is None
    assert digests(copy) == recorded.digests


def test_a_refill_keeps_the_entries_the_copy_has_promised_to_have(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    installed = sync(recorded.with_token(2))
    assert installed == (recorded.offer.head, None, None)
    assert digests(copy) == recorded.digests
    assert verify_shard(copy.head).findings == []


def test_a_copy_is_not_taken_back_behind_what_it_acknowledged(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    for call in (offer_take, lambda offer: install_offer(offer.shard, offer)):
        with pytest.raises(SyncBehind) as caught:
            call(recorded.with_token(2).offer)
        assert caught.value.detail["seq"] == recorded.offer.head.seq
    sync(later)
    assert digests(copy) == later.digests


def test_what_the_sender_has_sent_since_its_offer_stays(shard, recorded, batch, replica):
    """Writes were acknowledged because this copy has them."""
    shard.queries.upsert_many(batch(200, 7), namespace="a")
    grown = record(shard)
    copy = replica(recorded)
    sync(recorded)
    follow(copy, grown)

    installed = sync(recorded.with_token(2))

    assert installed.position == grown.offer.head > recorded.offer.head
    assert installed.set_aside is None
    assert digests(copy) == grown.digests


def test_entries_that_cannot_be_read_are_not_kept(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    last = LogEntry.objects.get(seq=recorded.offer.head.seq)
    LogEntry.objects.filter(pk=last.pk).update(crc32=last.crc32 ^ 1)
    send_files(recorded.with_token(2))
    with pytest.raises(SyncBehind):
        install_offer(copy.head.uid, recorded.with_token(2).offer)
    assert LogEntry.objects.count() == len(recorded.entries)


def test_what_the_sender_does_not_have_is_set_aside_and_the_rest_replaced(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    ours = recorded.offer.head.seq
    newcomer = later.of_term(3, since=ours)
    installed = sync(newcomer)
    assert installed.position == Position(3, later.offer.seq)
    assert (installed.set_aside.entries, installed.set_aside.first_seq, installed.set_aside.last_seq) == (1, ours, ours)
    assert installed.segments is None
    ((before, entries),) = slices_in(installed.set_aside.path)
    assert (before, entries) == (Position(1, ours - 1), recorded.entries[-1:])
    assert read_terms(copy.head.pk) == [TermStart(1, 1), TermStart(3, ours)]
    assert digests(copy) == later.digests
    assert ShardHead.objects.get().promised_term == 3


def test_rows_without_entries_that_the_sender_does_not_have_stay_as_segments(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    installed = sync(later.of_term(3))
    assert installed.set_aside is None
    kept = {path.name: path.stat().st_size for path in installed.segments.rglob("*") if path.is_file()}
    assert kept["manifest.json"] > 0
    assert kept["vectors.f32.npy"] > 0
    assert digests(copy) == later.digests


def test_entries_up_to_the_common_point_stay_when_the_senders_manifest_is_older(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    offer = recorded.offer
    # The newcomer wrote its first entry where this copy has its last one.
    newcomer = recorded.with_token(
        1,
        terms=[TermStart(1, 1), TermStart(3, offer.head.seq)],
        head=Position(3, offer.head.seq),
    )
    installed = sync(newcomer)
    assert installed.position == Position(1, offer.head.seq - 1)
    assert installed.set_aside.entries == 1
    assert LogEntry.objects.count() == len(recorded.entries) - 1
    assert verify_shard(copy.head).findings == []
    start = entry(offer.head.seq, 3, "", StartTerm("n" * 32, 1))
    assert receive(copy.head.pk, term=3, before=installed.position, entries=[start]) == Position(3, offer.head.seq)


def test_namespaces_are_those_of_the_sender(shard, batch, recorded, replica):
    shard.queries.namespace_drop("b")
    shard.queries.upsert_many(batch(0, 3, dimension=5), namespace="b")
    shard.queries.upsert_many(batch(0, 3, dimension=5), namespace="c")
    shard.checkpoint()
    second = record(shard)
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    sync(second)
    rows = Namespace.objects.filter(dropped_at=None).values_list("name", "dimension")
    assert sorted(rows) == [("a", 4), ("b", 5), ("c", 5)]
    assert digests(copy) == second.digests
    assert verify_shard(copy.head).findings == []


def test_a_sender_whose_lease_was_taken_over_is_refused(recorded, later, replica):
    copy = replica(recorded)
    old, new = recorded.with_token(5), later.with_token(6)
    offer_take(old.offer)
    here = offer_take(new.offer)
    assert here.keys() == new.files.keys()
    with pytest.raises(SyncUnknown):
        offer_take(old.offer)
    gone = next(path for path in old.files if path not in new.files)
    with pytest.raises(SyncUnknown):
        chunk_write(copy.head.uid, gone, 0, old.files[gone])
    send_files(new)
    with pytest.raises(SyncUnknown):
        install_offer(copy.head.uid, old.offer)
    install_offer(copy.head.uid, new.offer)
    with pytest.raises(SyncUnknown):
        offer_take(old.offer)
    assert digests(copy) == later.digests


def test_two_senders_at_once_end_with_the_newer_one(recorded, later, replica):
    copy = replica(recorded)
    old, new = recorded.with_token(5), later.with_token(6)
    failures = []

    def run(sender):
        try:
            sync(sender, chunk=200)
        except SyncUnknown:
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            from django.db import connection

            connection.close()

    threads = [threading.Thread(target=run, args=(sender,)) for sender in (old, new, new)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert digests(copy) == later.digests
    assert verify_shard(copy.head).findings == []


def test_a_replica_that_is_registered_anew_is_sent_to_under_tokens_that_begin_again(recorded, replica):
    replica(recorded)
    offer_take(recorded.with_token(7).offer)
    with pytest.raises(SyncUnknown):
        offer_take(recorded.with_token(1).offer)
    assert offer_take(recorded.with_token(1, lease="ship:2").offer)


def test_an_older_term_is_refused_at_every_step(recorded, replica):
    copy = replica(recorded)
    send_files(recorded)
    ShardHead.objects.update(promised_term=2)
    for call in (offer_take, lambda offer: install_offer(offer.shard, offer)):
        with pytest.raises(StaleTerm) as caught:
            call(recorded.offer)
        assert caught.value.detail["promised_term"] == 2
    assert ShardHead.objects.get().last_seq == 0
    assert sync(recorded.of_term(2)).position == Position(2, recorded.offer.seq)
    assert digests(copy)["a"][0] == 95


def test_a_primary_takes_no_full_sync(recorded, shard):
    before = digests(shard)
    with pytest.raises(NotPrimary):
        offer_take(recorded.of_term(2).offer)
    assert digests(shard) == before


def test_a_shard_that_is_not_here_is_not_found(recorded, replica, settings):
    replica(recorded)
    stranger = dataclasses.replace(recorded.offer, shard="f" * 32)
    with pytest.raises(NotFound):
        offer_take(stranger)
    with pytest.raises(SyncUnknown):
        chunk_write("f" * 32, "a/b/c", 0, b"x")


@pytest.mark.parametrize(
    "path",
    ["../../../node-id", "offer.json", "a/../../offer.json", "/etc/passwd", "", "x\0y", ".", "a//b", "ns/seg/new.npy"],
)
def test_no_file_is_written_that_the_offer_does_not_list(recorded, replica, path):
    copy = replica(recorded)
    offer_take(recorded.offer)
    before = sorted(staging._root(copy.head.uid).rglob("*"))
    with pytest.raises(SyncUnknown):
        chunk_write(copy.head.uid, path, 0, b"x")
    assert sorted(staging._root(copy.head.uid).rglob("*")) == before


@pytest.mark.parametrize("uid", ["../../x", "", ".", "a/b", "A" * 32])
def test_a_shard_uid_is_no_path(recorded, replica, uid):
    replica(recorded)
    with pytest.raises(InvalidInput):
        chunk_write(uid, "a/b/c", 0, b"x")


def forged(document, change):
    """Return an offer's document with a part of it changed."""
    (namespace,) = [item for item in document["manifest"]["namespaces"].values() if item["name"] == "b"]
    change(document, namespace, namespace["segments"][0])
    return document


@pytest.mark.parametrize(
    "change",
    [
        lambda document, namespace, segment: segment.update(uid="../" + segment["uid"][3:]),
        lambda document, namespace, segment: segment["files"].update({"../../x": [1, 1]}),
        lambda document, namespace, segment: segment["files"].update({".hidden": [1, 1]}),
        lambda document, namespace, segment: segment["files"].pop("keys.bin"),
        lambda document, namespace, segment: segment["files"].update({"keys.bin": [-1, 1]}),
        lambda document, namespace, segment: segment["files"].update({"keys.bin": ["1", 1]}),
        lambda document, namespace, segment: segment.update(deleted=["deleted.1.1.npy/x", 1, 1, 1]),
        lambda document, namespace, segment: segment.update(dimension=9),
        lambda document, namespace, segment: segment.update(rows=0),
        lambda document, namespace, segment: namespace.update(metric="hamming"),
        lambda document, namespace, segment: namespace.update(name="../x"),
        lambda document, namespace, segment: namespace.pop("segments"),
        lambda document, namespace, segment: document["manifest"]["namespaces"].update({"../x": namespace}),
        lambda document, namespace, segment: document.update(shard="../" + "a" * 29),
        lambda document, namespace, segment: document.update(format=2),
        lambda document, namespace, segment: document.update(seq=document["head"][1] + 1),
        lambda document, namespace, segment: document.update(token="x"),
        lambda document, namespace, segment: document.update(terms=[]),
        lambda document, namespace, segment: document.update(terms=[[1, 1], [1, 2]]),
        lambda document, namespace, segment: document.update(terms=[[1, 1], [2, 2]]),
        lambda document, namespace, segment: document.update(head=[1]),
        lambda document, namespace, segment: document.pop("manifest"),
        lambda document, namespace, segment: document.update(manifest=[]),
    ],
)
def test_an_offer_that_is_none_is_refused_and_names_no_place_outside(recorded, change):
    with pytest.raises(InvalidInput):
        SyncOffer.from_document(forged(recorded.offer.to_document(), change))


@pytest.mark.parametrize("path", ["../node-id", "a/b/c", "/etc/passwd", "a/" + "0" * 32 + "/../x"])
def test_the_sender_reads_no_file_outside_its_segments(recorded, path):
    with pytest.raises(InvalidInput):
        file_path(recorded.offer.shard, path)


def test_bytes_beyond_the_end_of_a_file_are_refused(recorded, replica):
    copy = replica(recorded)
    offer_take(recorded.offer)
    path = next(iter(recorded.files))
    size = len(recorded.files[path])
    for offset, data in ((0, b"x" * (size + 1)), (size, b"x"), (-1, b"x")):
        with pytest.raises(InvalidInput):
            chunk_write(copy.head.uid, path, offset, data)


def test_a_full_disk_in_a_chunk_leaves_the_copy_and_what_came_before(recorded, later, replica, monkeypatch):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    here = offer_take(later.offer)
    path = next(path for path, size in here.items() if size == 0)
    data = later.files[path]
    chunk_write(copy.head.uid, path, 0, data[:40])
    write = os.pwrite

    def full(descriptor, part, offset):
        if offset >= 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, part[: 50 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageFull):
        chunk_write(copy.head.uid, path, 40, data[40:])
    monkeypatch.undo()
    assert digests(copy) == recorded.digests
    assert offer_take(later.offer)[path] == 40
    sync(later)
    assert digests(copy) == later.digests


def test_a_full_sync_for_which_there_is_no_room_does_not_begin(recorded, replica, monkeypatch):
    replica(recorded)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=staging._SPARE_BYTES + 10))
    with pytest.raises(StorageFull) as caught:
        offer_take(recorded.offer)
    assert caught.value.detail["missing_bytes"] == recorded.offer.size_bytes


def test_bytes_that_the_disk_did_not_take_are_asked_for_again(recorded, replica, monkeypatch):
    copy = replica(recorded)
    offer_take(recorded.offer)
    path = next(iter(recorded.files))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(StorageError):
        chunk_write(copy.head.uid, path, 0, recorded.files[path])
    monkeypatch.undo()
    assert offer_take(recorded.offer)[path] == 0


def test_a_checkpoint_that_runs_during_an_install_commits_nothing(recorded, later, replica, monkeypatch):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    send_files(later)
    commit = checkpoint._commit

    def install_first(*args):
        install_offer(copy.head.uid, later.offer)
        return commit(*args)

    monkeypatch.setattr(checkpoint, "_commit", install_first)
    with pytest.raises(LeaseLost):
        checkpoint.checkpoint_run(copy.head.uid, owner="test")
    assert digests(copy) == later.digests
    assert verify_shard(copy.head).findings == []


def test_a_cleaner_that_was_overtaken_by_an_install_takes_no_entry_and_no_file(recorded, later, replica, monkeypatch):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    send_files(recorded.with_token(2))
    clean = checkpoint.clean

    def install_first(*args):
        # Its checkpoint is committed, the log not pruned: the entries are kept on top of an older manifest.
        install_offer(copy.head.uid, recorded.with_token(2).offer)
        return clean(*args)

    monkeypatch.setattr(checkpoint, "clean", install_first)
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    assert ShardHead.objects.get().manifest_seq == recorded.offer.seq
    assert LogEntry.objects.count() == len(recorded.entries)
    assert digests(copy) == recorded.digests
    assert verify_shard(copy.head).findings == []


def test_files_of_an_install_are_cleaned_up_after_like_any_others(recorded, later, replica, batch):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    sync(later)
    for seq in range(later.offer.head.seq + 1, later.offer.head.seq + 3):
        rows = batch(500 + seq, 3)
        uid = Namespace.objects.get(name="a", dropped_at=None).uid
        upsert = entry(seq, 1, uid, Upsert(rows.keys, rows.values, rows.metadata))
        receive(copy.head.pk, term=1, before=Position(1, seq - 1), entries=[upsert])
        checkpoint.checkpoint_run(copy.head.uid, owner="test")
    listed = set()
    for manifest in Manifest.objects.all():
        for uid, namespace in manifest.document["namespaces"].items():
            for segment in namespace["segments"]:
                directory = segment_directory(copy.head.uid, uid) / segment["uid"]
                listed |= {directory / name for name in segment["files"]}
                listed |= {directory / segment["deleted"][0]} if segment["deleted"] else set()
    found = {path for path in segment_directory(copy.head.uid, "").rglob("*") if path.is_file()}
    assert found == listed


def test_a_slice_that_comes_in_during_an_install_is_not_lost(recorded, replica, monkeypatch):
    copy = replica(recorded)
    sync(recorded)
    send_files(recorded.with_token(2))
    kept = install.kept_entries

    def receive_first(head, offer):
        found = kept(head, offer)
        monkeypatch.setattr(install, "kept_entries", kept)
        follow(copy, recorded)
        return found

    monkeypatch.setattr(install, "kept_entries", receive_first)
    assert install_offer(copy.head.uid, recorded.with_token(2).offer).position == recorded.offer.head
    assert digests(copy) == recorded.digests


def test_an_offer_waits_for_an_install_and_not_for_ever(recorded, replica, settings):
    settings.MLVDB_DATABASE_TIMEOUT_S = 0.05
    copy = replica(recorded)
    with staging.locked(copy.head.uid, fcntl.LOCK_EX), pytest.raises(StorageBusy):
        offer_take(recorded.offer)


def test_where_links_are_not_to_be_had_files_are_copied(recorded, later, replica, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    copy = replica(recorded)
    monkeypatch.setattr(os, "link", refuse)
    sync(recorded)
    sync(later)
    follow(copy, later)
    assert digests(copy) == later.digests
    assert verify_shard(copy.head).findings == []


def test_an_empty_manifest_can_be_installed(shard, replica):
    first = record(shard)
    copy = replica(first)
    assert sync(first).position == Position(1, 0)
    assert digests(copy) == {}
    assert verify_shard(copy.head).findings == []


def test_pins_of_the_copy_as_it_was_go(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    pins.pin_set(copy.head.pk, "someone", recorded.offer.seq, ShardHead.objects.get().manifest)
    sync(later)
    assert not pins.pin_beat(copy.head.pk, "someone")
    assert Manifest.objects.count() == 1


def test_what_was_staged_before_a_copy_became_primary_goes_with_its_next_checkpoint(recorded, later, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    offer_take(later.offer)
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    assert staged_files(copy.head.uid).exists()
    ShardHead.objects.update(is_primary=True)
    checkpoint.checkpoint_run(copy.head.uid, owner="test")
    assert not staged_files(copy.head.uid).exists()


def test_a_copy_that_slices_have_brought_on_is_in_no_full_sync_and_drops_what_was_staged(recorded, later, replica):
    """The sender died, and its successor has all of the log: a copy that follows it may be promoted."""
    copy = replica(recorded)
    sync(recorded)
    offer_take(later.offer)
    uid, shard_id = copy.head.uid, copy.head.pk
    assert staging.is_under_way(uid, shard_id, log.read_head(shard_id).position)
    at = log.read_head(shard_id).position

    receive(shard_id, term=2, before=at, entries=[entry(at.seq + 1, 2, "", StartTerm("n" * 32, at.term))])

    assert not staging.is_under_way(uid, shard_id, log.read_head(shard_id).position)
    checkpoint.checkpoint_run(uid, owner="test")
    assert not staged_files(uid).exists()


def test_what_a_slow_reader_found_of_the_copy_as_it_was_is_no_damage_of_the_new_one(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    slow = recovery.open_shard(copy.head.pk)
    sync(recorded.with_token(2))
    recovery.note_damage(slow, "log", {"seq": 1})
    assert ShardHead.objects.get().damage is None


def test_terms_after_the_offered_position_are_not_this_copys(recorded, replica):
    copy = replica(recorded)
    head = recorded.offer.head
    newcomer = recorded.with_token(1, terms=[TermStart(1, 1), TermStart(4, head.seq)], head=Position(4, head.seq))
    sync(newcomer)
    assert ShardTerm.objects.values_list("term", flat=True).get() == 1
    assert read_terms(copy.head.pk) == [TermStart(1, 1)]
    with pytest.raises(LogMismatch):
        receive(
            copy.head.pk,
            term=4,
            before=Position(4, recorded.offer.seq),
            entries=[entry(recorded.offer.seq + 1, 4, "", Delete([]))],
        )


def test_segments_written_by_an_install_say_its_lease(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    token = leases.seize_lease(leases.checkpoint_lease(copy.head.pk), "test").token - 1
    for record_ in recovery.open_shard(copy.head.pk).manifest.namespaces.values():
        for segment in record_.segments:
            assert segment_files._token_of(segment.uid[:8]) == token
            assert segment.deleted is None or segment.deleted.split(".")[2] == f"{token:x}"


def test_the_log_reader_meets_no_gap_over_an_install(recorded, replica):
    copy = replica(recorded)
    sync(recorded)
    follow(copy, recorded)
    entries = list(log.read_after(copy.head.pk, recorded.offer.seq, through=recorded.offer.head.seq))
    assert entries == recorded.entries
