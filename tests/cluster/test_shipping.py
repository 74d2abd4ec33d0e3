"""What a ship task makes of a copy that needs a full sync."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.models import ReplicaCopy
from cluster.replication import full_sync
from cluster.replication.full_sync import FullSync
from cluster.replication.sender import Sender, Step
from cluster.services import shipping
from cluster.services.copies import copy_state_set
from cluster.states import CopyState
from cluster.transport.errors import PeerRejected
from tests.cluster.registry import Registry
from vectors.errors import StorageError
from vectors.models import ShardHead
from vectors.store.log import Position
from vectors.store.segment_files import FileStamp


def test_a_copy_that_is_quarantined_during_a_full_sync_is_not_taken_for_sound(
    owner: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That sync has kept what the copy had of its own."""
    replica = owner.replica("a")
    copy = ReplicaCopy.objects.get(replica=replica)

    class Quarantined:
        def __init__(self, **_options: Any) -> None:
            pass

        def run(self) -> Position:
            assert copy_state_set(ReplicaCopy.objects.get(pk=copy.pk), CopyState.QUARANTINED)
            return Position(1, 0)

    monkeypatch.setattr(shipping, "FullSync", Quarantined)
    work: Any = SimpleNamespace(replica=replica, lease=None, check=lambda: None)

    shipping._CopyShipping(work, copy, owner.head)._full_sync()

    assert ReplicaCopy.objects.get(pk=copy.pk).state == CopyState.QUARANTINED


def test_a_copy_is_told_again_while_the_registry_changes_faster_than_it_hears(
    owner: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = owner.replica("a")
    answers = ["need_placement", "need_placement", "need_placement"]
    told: list[str] = []

    def rejected(code: str) -> PeerRejected:
        return PeerRejected(url=replica.url, peer_status=409, peer_code=code, peer_message="refused")

    def step(_sender: Sender, **_options: Any) -> Step:
        if answers:
            raise rejected(answers.pop())
        return Step.UP_TO_DATE

    def push(*, url: str, shard: str) -> None:
        told.append(shard)
        if len(told) == 2:
            # Another process was faster, with a newer one.
            raise rejected("stale_epoch")

    monkeypatch.setattr(Sender, "step", step)
    monkeypatch.setattr(shipping, "placement_push_now", push)
    work: Any = SimpleNamespace(replica=replica, lease=None, check=lambda: None)
    copy = shipping._CopyShipping(work, ReplicaCopy.objects.get(replica=replica), owner.head)

    assert copy._step() is Step.UP_TO_DATE
    assert told == [owner.head.uid] * 3

    answers = ["need_placement"] * 100
    with pytest.raises(PeerRejected):
        copy._step()


def test_a_file_of_this_node_that_is_gone_is_an_error_like_others_and_is_backed_off_from(
    head: ShardHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{'a' * 32}/{'b' * 32}/vectors.f32.npy"
    nothing: Any = None
    sync = FullSync(replica=nothing, copy=nothing, head=head, lease=nothing, check=lambda: None)
    offer: Any = SimpleNamespace(files={path: FileStamp(10, 0)})
    monkeypatch.setattr(full_sync, "peer_client", lambda: nothing)

    with pytest.raises(StorageError):
        sync._send_file(offer, path, 0, nothing, 0.0, 0.0)
