"""`manage.py checkpoint` and `manage.py verify` on a node that is well."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from vectors import tasks
from vectors.models import Lease, LogEntry, Manifest, ShardHead
from vectors.store import checkpoint, leases
from vectors.store.checkpoint import checkpoint_due


def test_checkpoint_prints_what_it_wrote(shard, batch, capsys):
    shard.queries.upsert_many(batch(0, 30), namespace="a")
    call_command("checkpoint")
    assert "shard_0: seq 2, manifest 1, 1 segments, 30 rows" in capsys.readouterr().out
    call_command("checkpoint")
    assert "nothing to do" in capsys.readouterr().out


def test_a_tail_is_due_when_it_is_long(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 30), namespace="a")
    assert not checkpoint_due(ShardHead.objects.get())
    settings.MLVDB_TAIL_SOFT_BYTES = 100
    assert checkpoint_due(ShardHead.objects.get())
    tasks.checkpoint_sweep()
    assert Manifest.objects.count() == 1


def test_invariant_10_a_tail_is_due_when_it_is_old_by_the_monotonic_clock(shard, batch, monkeypatch):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    LogEntry.objects.update(created_at=timezone.now() - timedelta(days=400))
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    assert not checkpoint_due(ShardHead.objects.get())
    now[0] += 299
    assert not checkpoint_due(ShardHead.objects.get())
    now[0] += 2
    assert checkpoint_due(ShardHead.objects.get())


def test_a_tail_behind_a_newer_manifest_is_young_again(shard, batch, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    assert not checkpoint_due(ShardHead.objects.get())
    shard.checkpoint()
    shard.queries.upsert_many(batch(3, 3), namespace="a")
    now[0] += 301
    assert not checkpoint_due(ShardHead.objects.get())


def test_invariant_8_tasks_treat_nothing_to_do_as_success(shard, batch, settings):
    settings.MLVDB_TAIL_SOFT_BYTES = 1024
    tasks.checkpoint_shard("f" * 32)
    tasks.checkpoint_shard(shard.head.uid)
    shard.queries.upsert_many(batch(0, 300), namespace="a")
    with leases.take_lease(leases.checkpoint_lease(shard.head.pk), "somebody"):
        tasks.checkpoint_shard(shard.head.uid)
        assert not Manifest.objects.exists()
    for _ in range(3):
        tasks.checkpoint_shard(shard.head.uid)
        tasks.checkpoint_now(shard.head.uid)
    assert Manifest.objects.count() == 1
    assert shard.digest("a")[0] == 300


def test_checkpoint_says_who_holds_the_lease(shard, batch):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    lease = leases.take_lease(leases.checkpoint_lease(shard.head.pk), "somebody")
    with lease, pytest.raises(CommandError, match="somebody"):
        call_command("checkpoint", wait=0.3)
    assert Lease.objects.get().owner == ""


@pytest.mark.parametrize("command", ["checkpoint", "verify"])
def test_an_unknown_shard_is_refused(shard, command):
    with pytest.raises(CommandError, match="no shard nowhere"):
        call_command(command, shard="nowhere")


def test_verify_is_content_with_an_empty_node(shard, capsys):
    call_command("verify")
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
