"""What a ship task makes of a copy that needs a full sync."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.models import ReplicaCopy
from cluster.replication import full_sync
from cluster.replication.full_sync import FullSync
from cluster.services import shipping
from cluster.services.copies import copy_state_set
from cluster.states import CopyState
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
