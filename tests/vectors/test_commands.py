"""`manage.py checkpoint` and `manage.py verify` on a node that is well."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from vectors.models import MaintenanceLease, Manifest
from vectors.store import leases


def test_checkpoint_prints_what_it_wrote(shard, batch, capsys):
    shard.queries.upsert_many(batch(0, 30), namespace="a")
    call_command("checkpoint")
    assert "shard_0: seq 2, manifest 1, 1 segments, 30 rows" in capsys.readouterr().out
    call_command("checkpoint")
    assert "nothing to do" in capsys.readouterr().out


def test_checkpoint_if_due_leaves_a_small_young_tail_alone(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 30), namespace="a")
    call_command("checkpoint", if_due=True)
    assert not Manifest.objects.exists()
    settings.MLVDB_TAIL_SOFT_BYTES = 100
    call_command("checkpoint", if_due=True)
    assert Manifest.objects.count() == 1


def test_checkpoint_if_due_takes_a_tail_that_is_old(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    settings.MLVDB_CHECKPOINT_INTERVAL_S = 0
    call_command("checkpoint", if_due=True)
    assert Manifest.objects.count() == 1


def test_checkpoint_says_who_holds_the_lease(shard, batch):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    lease = leases.take_lease(shard.head.pk, "somebody")
    with lease, pytest.raises(CommandError, match="somebody"):
        call_command("checkpoint", wait=0.3)
    assert MaintenanceLease.objects.get().owner == ""


@pytest.mark.parametrize("command", ["checkpoint", "verify"])
def test_an_unknown_shard_is_refused(shard, command):
    with pytest.raises(CommandError, match="no shard nowhere"):
        call_command(command, shard="nowhere")


def test_verify_is_content_with_an_empty_node(shard, capsys):
    call_command("verify")
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
