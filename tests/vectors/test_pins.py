"""Pins: what they hold stays, within a bound, for as long as their holder lives."""

from __future__ import annotations

import time

import pytest

from tests.vectors.full_syncs import record
from vectors.engine import ids
from vectors.errors import LogGap, ShardDamaged
from vectors.models import LogEntry, Manifest, Pin, ShardHead
from vectors.store import checkpoint, leases, pins
from vectors.store.checkpoint import checkpoint_run
from vectors.store.log import read_after
from vectors.store.offer import file_path, offer_make
from vectors.store.verify import verify_shard


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock of pins that a test moves on."""
    now = [time.monotonic()]
    monkeypatch.setattr(pins.time, "monotonic", lambda: now[0])

    def pass_s(seconds):
        now[0] += seconds

    return pass_s


def write(shard, batch, count, *, start=0):
    """Write so many entries of one row."""
    for number in range(start, start + count):
        shard.queries.upsert_many(batch(number, 1), namespace="a")


def seqs():
    return list(LogEntry.objects.order_by("seq").values_list("seq", flat=True))


def test_entries_after_a_pin_survive_a_checkpoint_without_gaps(shard, batch):
    write(shard, batch, 9)
    pins.pin_set(shard.head.pk, "replica", 4)
    shard.checkpoint()
    assert seqs() == [5, 6, 7, 8, 9, 10]
    assert [entry.seq for entry in read_after(shard.head.pk, 4, through=10)] == [5, 6, 7, 8, 9, 10]
    assert verify_shard(shard.head).findings == []
    write(shard, batch, 2, start=20)
    assert verify_shard(shard.head).findings == []
    shard.restart()
    assert shard.queries.count(namespace="a").value == 11


def test_the_lowest_pin_counts_and_a_moved_or_dropped_one_lets_go(shard, batch):
    write(shard, batch, 9)
    pins.pin_set(shard.head.pk, "near", 8)
    pins.pin_set(shard.head.pk, "far", 2)
    shard.checkpoint()
    assert seqs()[0] == 3
    pins.pin_set(shard.head.pk, "far", 6)
    shard.checkpoint()
    assert seqs()[0] == 7
    pins.pin_drop(shard.head.pk, "far")
    shard.checkpoint()
    assert seqs()[0] == 9
    pins.pin_drop(shard.head.pk, "near")
    shard.checkpoint()
    assert seqs() == []


def test_what_is_gone_already_cannot_be_pinned(shard, batch):
    write(shard, batch, 9)
    pins.pin_set(shard.head.pk, "replica", 4)
    shard.checkpoint()
    pins.pin_set(shard.head.pk, "other", 4)
    with pytest.raises(LogGap):
        pins.pin_set(shard.head.pk, "other", 3)
    with pytest.raises(LogGap):
        pins.pin_set(shard.head.pk, "other", 9, 77)
    assert Pin.objects.get(holder="other").seq == 4
    pins.pin_set(shard.head.pk, "other", 10)


def test_a_pin_whose_holder_is_silent_is_ignored_after_a_time(shard, batch, settings, clock):
    settings.MLVDB_PIN_S = 60
    write(shard, batch, 9)
    pins.pin_set(shard.head.pk, "dead", 2)
    pins.pin_set(shard.head.pk, "alive", 5)
    shard.checkpoint()
    for _ in range(3):
        clock(30)
        assert pins.pin_beat(shard.head.pk, "alive")
        shard.checkpoint()
    assert seqs()[0] == 6
    assert list(Pin.objects.values_list("holder", flat=True)) == ["alive"]
    assert not pins.pin_beat(shard.head.pk, "dead")


def test_silence_is_counted_from_when_a_pin_is_first_seen(shard, batch, settings, clock):
    settings.MLVDB_PIN_S = 60
    write(shard, batch, 3)
    pins.pin_set(shard.head.pk, "replica", 1)
    clock(1000)
    shard.checkpoint()
    assert seqs()[0] == 2


def test_pins_hold_no_more_than_the_newest_bytes_of_the_log(shard, batch, settings):
    write(shard, batch, 20)
    sizes = {entry.seq: len(entry.payload) for entry in LogEntry.objects.all()}
    newest = max(sizes)
    settings.MLVDB_LOG_RETENTION_BYTES = sizes[newest] + sizes[newest - 1] + sizes[newest - 2]
    pins.pin_set(shard.head.pk, "replica", 0)
    shard.checkpoint()
    assert seqs() == [newest - 2, newest - 1, newest]
    assert verify_shard(shard.head).findings == []
    settings.MLVDB_LOG_RETENTION_BYTES = 0
    shard.checkpoint()
    assert seqs() == []


def test_the_tail_does_not_count_against_what_pins_may_hold(shard, batch, settings, monkeypatch):
    write(shard, batch, 5)
    settings.MLVDB_LOG_RETENTION_BYTES = sum(len(entry.payload) for entry in LogEntry.objects.all())
    pins.pin_set(shard.head.pk, "replica", 0)
    commit = checkpoint._commit

    def write_first(*args):
        shard.queries.upsert_many(batch(100, 200), namespace="a")
        return commit(*args)

    monkeypatch.setattr(checkpoint, "_commit", write_first)
    shard.checkpoint()
    assert seqs() == [1, 2, 3, 4, 5, 6, 7]
    assert verify_shard(shard.head).findings == []


def test_much_is_pruned_in_small_steps_up_to_the_pin(shard, batch, settings):
    settings.MLVDB_LOG_PRUNE_BYTES = 1024
    write(shard, batch, 40)
    pins.pin_set(shard.head.pk, "replica", 33)
    shard.checkpoint()
    assert seqs()[0] == 34


def test_a_pinned_manifest_keeps_its_files_over_checkpoints(shard, batch):
    recorded = None
    write(shard, batch, 4)
    shard.checkpoint()
    recorded = record(shard)
    for number in range(5):
        shard.queries.upsert_many(batch(10 * number, 30), namespace="a")
        shard.queries.delete(namespace="a", keys=[ids.key_of(number)])
        shard.checkpoint()
    assert Manifest.objects.filter(number=recorded.offer.number).exists()
    for path, data in recorded.files.items():
        assert file_path(shard.head.uid, path).read_bytes() == data
    assert seqs()[0] == recorded.offer.seq + 1
    pins.pin_drop(shard.head.pk, "ship:1")
    shard.merge()
    for number in range(2):
        write(shard, batch, 1, start=500 + number)
        shard.checkpoint()
    assert not Manifest.objects.filter(number=recorded.offer.number).exists()
    assert not any(file_path(shard.head.uid, path).exists() for path in recorded.files)


def test_an_offer_that_a_checkpoint_overtakes_is_of_the_newer_manifest(shard, batch, monkeypatch):
    write(shard, batch, 2)
    shard.checkpoint()
    pin_set = pins.pin_set

    def checkpoints_first(*args):
        monkeypatch.setattr(pins, "pin_set", pin_set)
        for number in range(3):
            write(shard, batch, 1, start=50 + number)
            shard.checkpoint()
        return pin_set(*args)

    monkeypatch.setattr(pins, "pin_set", checkpoints_first)
    offer = offer_make(shard.head.pk, leases.seize_lease("ship:1", "test"))
    assert offer.number == ShardHead.objects.get().manifest == 4
    assert all(file_path(shard.head.uid, path).exists() for path in offer.files)


def test_a_pin_set_while_the_log_is_pruned_is_seen_by_the_next_step(shard, batch, settings, monkeypatch):
    settings.MLVDB_LOG_PRUNE_BYTES = 1024
    write(shard, batch, 40)
    floor, asked = pins.pins_floor, []

    def pin_then_ask(shard_id):
        asked.append(shard_id)
        if len(asked) == 2:
            pins.pin_set(shard_id, "late", 30)
        return floor(shard_id)

    monkeypatch.setattr("vectors.store.cleaning.pins_floor", pin_then_ask)
    shard.checkpoint()
    assert seqs()[0] == 31
    assert len(asked) > 3


def test_damage_is_not_offered(shard, batch):
    write(shard, batch, 2)
    ShardHead.objects.update(damage={"log": {"seq": 2}})
    with pytest.raises(ShardDamaged):
        offer_make(shard.head.pk, leases.seize_lease("ship:1", "test"))


def test_a_checkpoint_with_nothing_to_write_still_prunes(shard, batch):
    write(shard, batch, 3)
    pins.pin_set(shard.head.pk, "replica", 0)
    shard.checkpoint()
    pins.pin_drop(shard.head.pk, "replica")
    assert checkpoint_run(shard.head.uid, owner="test") is None
    assert seqs() == []
    assert checkpoint.checkpoint_due(ShardHead.objects.get()) is False
