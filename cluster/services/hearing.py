"""What a replica's node hears of its primary beside the log itself, and what it was told to set aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import F

from cluster.models import Placement
from cluster.services.changes import event_write
from vectors.store.cut_back import CutBack
from vectors.store.set_aside import SetAside


def primary_heard(*, cluster: str, epoch: int, heads: Mapping[str, tuple[int, int]]) -> int:
    """Note that the primary was heard, and where its logs end: `heads` is {shard uid: (term, seq)}.

    A primary of an older epoch or term than this node knows is not the primary any more: nothing is noted. Return how
    many placements were found.
    """
    noted = 0
    for uid, (term, seq) in heads.items():
        current = Placement.objects.filter(shard=uid, cluster=cluster, epoch__lte=epoch, term__lte=term)
        # heard counts: readers see that it moved, on their own clocks.
        noted += current.update(primary_seq=seq, heard=F("heard") + 1)
    return noted


def set_aside_note(*, shard_uid: str, aside: CutBack | SetAside | None, segments: Path | None = None) -> None:
    """Write down that what the primary does not have was taken out of this copy, and where it is kept."""
    placement = Placement.objects.filter(shard=shard_uid).first()
    label = shard_uid if placement is None else str(placement.document["shard"]["label"])
    after: dict[str, Any] = {}
    if aside is not None:
        after = {
            "entries": aside.entries,
            "first_seq": aside.first_seq,
            "last_seq": aside.last_seq,
            "file": None if aside.path is None else aside.path.name,
        }
    if segments is not None:
        after["segments"] = segments.name
    with transaction.atomic():
        event_write(
            actor="primary",
            action="set_aside",
            subject=label,
            after=after,
            epoch=0 if placement is None else placement.epoch,
            alarm=True,
        )
