"""Corrupt records and files: the rest is served, flagged, read-only, and the damage is named."""

from __future__ import annotations

import errno

import pytest
from django.core.management import CommandError, call_command

from vectors import runtime
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.errors import ShardDamaged, StorageError
from vectors.models import LogEntry, Manifest, Namespace, ShardHead
from vectors.query_processor import RequestOptions, SearchRequest
from vectors.store import recovery
from vectors.store.copies import shard_create
from vectors.store.manifests import segment_directory
from vectors.store.verify import verify_shard

PARTIAL = RequestOptions(partial=True)


def tear(seq):
    """Flip one byte of a log entry's payload."""
    entry = LogEntry.objects.get(seq=seq)
    payload = bytearray(entry.payload)
    payload[len(payload) // 2] ^= 0xFF
    LogEntry.objects.filter(pk=entry.pk).update(payload=bytes(payload))


def segment_file(shard, name):
    """Return the path of a file of the only segment."""
    (directory,) = segment_directory(shard.head.uid, Namespace.objects.get().uid).iterdir()
    return directory / name


@pytest.fixture
def torn(shard, batch):
    """Three entries of ten rows; the one in the middle is torn."""
    for start in (0, 10, 20):
        shard.queries.upsert_many(batch(start, 10), namespace="a")
    tear(3)
    shard.restart()
    return shard


def test_invariant_9_a_torn_record_stops_the_replay_there_and_searches_are_flagged(torn, batch):
    answer = torn.queries.find_similar(SearchRequest(query=batch(0, 1).values[0], top_k=100), namespace="a")
    assert len(answer.value) == 10
    assert (answer.complete, answer.failed) == (False, ["shard_0"])
    assert answer.shards[0].lag == 2
    assert torn.queries.count(namespace="a", options=PARTIAL).value == 10


def test_invariant_9_a_torn_record_fails_reads_that_allow_no_part(torn):
    for call in (
        lambda: torn.queries.count(namespace="a"),
        lambda: torn.queries.get(ids.key_of(3), namespace="a"),
        lambda: torn.queries.fetch([ids.key_of(25)], namespace="a"),
        lambda: torn.queries.scroll(namespace="a", limit=5),
    ):
        with pytest.raises(ShardDamaged) as caught:
            call()
        assert caught.value.detail["damage"]["log"]["seq"] == 3


def test_a_damaged_shard_takes_no_writes_and_no_checkpoint(torn, batch):
    torn.queries.count(namespace="a", options=PARTIAL)
    entries = LogEntry.objects.count()
    with pytest.raises(ShardDamaged):
        torn.queries.upsert_many(batch(50, 1), namespace="a")
    with pytest.raises(ShardDamaged):
        torn.checkpoint()
    assert LogEntry.objects.count() == entries
    assert ShardHead.objects.get().damage["log"]["last_seq"] == 4
    assert runtime.readiness().detail["damage"]["shard_0"]["log"]["reason"]


def test_verify_names_the_torn_record_and_fails(torn, capsys):
    with pytest.raises(CommandError) as caught:
        call_command("verify")
    assert caught.value.returncode == 1
    assert "log entry 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vectors.f32.npy", "metadata.bin", "hashes.u64.npy"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_corrupt_segment_file_is_left_out_and_named(shard, batch, name, harm):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    shard.checkpoint()
    shard.queries.upsert_many(batch(10, 5), namespace="a")
    path = segment_file(shard, name)
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data if harm == "flip" else data[:-1])
    shard.restart()
    answer = shard.queries.find_similar(SearchRequest(query=batch(0, 1).values[0], top_k=100), namespace="a")
    assert (len(answer.value), answer.complete) == (5, False)
    lost = ShardHead.objects.get().damage["segments"][0]
    assert (lost["namespace"], lost["rows"]) == ("a", 10)
    assert name in lost["reason"]
    with pytest.raises(ShardDamaged):
        shard.queries.upsert_many(batch(50, 1), namespace="a")
    assert any(name in finding for finding in verify_shard(shard.head).findings)


def test_a_corrupt_manifest_row_is_damage_and_no_crash(shard, batch):
    shard.queries.upsert_many(batch(0, 10), namespace="a")
    shard.checkpoint()
    manifest = Manifest.objects.get()
    manifest.document["namespaces"] = {}
    manifest.save()
    shard.restart()
    answer = shard.queries.find_similar(SearchRequest(query=batch(0, 1).values[0]), namespace="a")
    assert (answer.value, answer.complete) == ([], False)
    with pytest.raises(ShardDamaged):
        shard.queries.count(namespace="a")
    with pytest.raises(CommandError):
        call_command("verify")


def test_verify_finds_a_missing_entry_and_a_wrong_count(shard, batch):
    for start in (0, 10, 20):
        shard.queries.upsert_many(batch(start, 10), namespace="a")
    runtime.reset()
    LogEntry.objects.filter(seq=3).delete()
    findings = verify_shard(shard.head).findings
    assert any("log entries 3 to 3 are missing" in line for line in findings)
    assert any("bytes of tail" in line for line in findings)


def test_verify_prints_equal_digests_for_equal_contents(shard, batch, capsys):
    shard.queries.upsert_many(batch(0, 30), namespace="a")
    shard.queries.upsert_many(batch(0, 30), namespace="b")
    call_command("verify")
    call_command("checkpoint")
    call_command("verify")
    digests = [line.split("digest ")[1] for line in capsys.readouterr().out.splitlines() if "digest" in line]
    assert len(digests) == 4
    assert len(set(digests)) == 1


def test_a_damaged_shard_takes_no_change_of_a_namespace(torn):
    torn.queries.count(namespace="a", options=PARTIAL)
    with pytest.raises(ShardDamaged):
        torn.queries.namespace_drop("a")
    with pytest.raises(ShardDamaged):
        torn.queries.namespace_put("b", dimension=3)
    assert [row.name for row in Namespace.objects.filter(dropped_at=None)] == ["a"]


def test_an_engine_that_has_every_row_is_not_exchanged_for_a_damaged_one(shard, batch):
    shard.queries.upsert_many(batch(0, 20), namespace="a")
    serving = runtime.ShardRuntime(shard.head.pk, budget=None)
    serving.fresh(timeout_s=10)
    shard.checkpoint()
    path = segment_file(shard, "vectors.f32.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not serving.swap()
    assert not serving.swap()
    assert serving.fresh(timeout_s=10).engine.view("a").count == 20
    assert ShardHead.objects.get().damage["segments"][0]["rows"] == 20


def test_an_engine_is_not_exchanged_for_one_that_meets_a_torn_record_on_the_way(shard, batch, monkeypatch):
    """The record is read for the new engine only when writers wait for the exchange; the old one has its rows."""
    shard.queries.upsert_many(batch(0, 20), namespace="a")
    serving = runtime.ShardRuntime(shard.head.pk, budget=None)
    serving.fresh(timeout_s=10)
    shard.checkpoint()
    open_shard = recovery.open_shard

    def open_and_be_overtaken(*args, **names):
        fresh = open_shard(*args, **names)
        monkeypatch.setattr(recovery, "open_shard", open_shard)
        shard.queries.upsert_many(batch(20, 10), namespace="a")
        serving.fresh(timeout_s=10)
        tear(ShardHead.objects.get().last_seq)
        return fresh

    monkeypatch.setattr(recovery, "open_shard", open_and_be_overtaken)
    assert not serving.swap()
    assert serving.opened.engine.view("a").count == 30
    assert "log" in ShardHead.objects.get().damage


def test_a_shard_that_cannot_be_opened_keeps_nobody_from_looking_after_the_others(shard, batch, monkeypatch):
    """Nobody but the background thread maps new segments, and lets go of the tails that they cover."""
    other = shard_create("b" * 32, "shard_1")
    node = runtime.Runtime()
    caught_up = runtime.ShardRuntime.caught_up

    def unless_it_is_the_first(self, head, *, timeout_s):
        if self.shard_id == shard.head.pk:
            raise StorageError("a file failed")
        return caught_up(self, head, timeout_s=timeout_s)

    with monkeypatch.context() as failing:
        failing.setattr(runtime.ShardRuntime, "caught_up", unless_it_is_the_first)
        with pytest.raises(StorageError):
            node._look_after()
    assert node.shard(other.pk).is_open
    assert not node.readiness().ready
    node._look_after()
    assert node.readiness().ready


def test_a_process_out_of_file_descriptors_marks_no_damage(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 20), namespace="a")
    shard.checkpoint()

    def full(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(type(segment_file(shard, "x")), "open", full)
    with pytest.raises(StorageError):
        recovery.open_shard(shard.head.pk)
    monkeypatch.undo()
    assert ShardHead.objects.get().damage is None
    assert recovery.open_shard(shard.head.pk).engine.view("a").count == 20


def test_a_damaged_shard_refuses_deletes_and_patches_of_what_it_may_have_lost(torn):
    for call in (
        lambda: torn.queries.delete(namespace="a", filter=parse_filter({"n": 25})),
        lambda: torn.queries.delete(namespace="a", keys=[ids.key_of(25)]),
        lambda: torn.queries.patch(ids.key_of(25), metadata=b"{}", namespace="a"),
    ):
        with pytest.raises(ShardDamaged):
            call()
