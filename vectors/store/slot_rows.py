"""The rows that say which slots of a copy may be written: they follow its log, in the transaction that changes it.

A `ShardSlots` row stands for one `SetSlots` entry and outlives it; `ShardHead.slots_seq` is the seq of the newest, 0
where there is none. A copy that becomes primary refuses what its predecessor refused, whatever was pruned meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vectors.engine.operations import SetSlots
from vectors.models import ShardHead, ShardSlots

_KEPT = 100


class SlotsChange(NamedTuple):
    """One row: from `seq` on rows may be written in `writable`, a packed SlotSet, as decided at `epoch`."""

    seq: int
    epoch: int
    writable: bytes


def slots_add(shard_id: int, seq: int, operation: SetSlots) -> None:
    """Note what an entry says, in the transaction that adds it to the log."""
    ShardSlots.objects.create(shard_id=shard_id, seq=seq, epoch=operation.epoch, writable=operation.writable)
    ShardHead.objects.filter(pk=shard_id).update(slots_seq=seq)


def slots_cut(shard_id: int, seq: int) -> None:
    """Forget the entries after `seq`, in the transaction that cuts them."""
    if ShardSlots.objects.filter(shard_id=shard_id, seq__gt=seq).delete()[0]:
        _point_head(shard_id)


def slots_prune(shard_id: int, through: int) -> None:
    """Forget all but the newest changes up to seq `through`; what held before that seq no entry and manifest asks.

    More than the one that holds there are kept: a coordinator that takes over asks who was last to have a slot open.
    """
    rows = ShardSlots.objects.filter(shard_id=shard_id)
    newest = rows.filter(seq__lte=through).order_by("-seq").values_list("seq", flat=True)[:_KEPT]
    if len(newest) == _KEPT:
        rows.filter(seq__lt=newest[_KEPT - 1]).delete()


def slots_refill(shard_id: int, at_manifest: SlotsChange | None, *, after_seq: int, through: int) -> None:
    """Make the rows those of a copy that is filled anew, in that transaction.

    `at_manifest` is the newest change up to the manifest at `after_seq`, as its sender has it; of this copy's own the
    ones stay whose entries do, those up to `through`.
    """
    rows = ShardSlots.objects.filter(shard_id=shard_id)
    rows.filter(seq__lte=after_seq).delete()
    rows.filter(seq__gt=through).delete()
    if at_manifest is not None:
        ShardSlots.objects.create(shard_id=shard_id, **at_manifest._asdict())
    _point_head(shard_id)


def slots_at(shard_id: int, seq: int | None = None) -> SlotsChange | None:
    """Return the newest change, up to `seq` where it is given; None when there was none."""
    rows = ShardSlots.objects.filter(shard_id=shard_id).order_by("-seq")
    row = (rows if seq is None else rows.filter(seq__lte=seq)).first()
    return None if row is None else SlotsChange(row.seq, row.epoch, bytes(row.writable))


def slots_changes(shard_id: int, *, through: int) -> Iterable[SlotsChange]:
    """Return all changes up to seq `through`, in order."""
    rows = ShardSlots.objects.filter(shard_id=shard_id, seq__lte=through).order_by("seq")
    return [SlotsChange(row.seq, row.epoch, bytes(row.writable)) for row in rows]


def _point_head(shard_id: int) -> None:
    newest = ShardSlots.objects.filter(shard_id=shard_id).order_by("-seq").values_list("seq", flat=True).first()
    ShardHead.objects.filter(pk=shard_id).update(slots_seq=newest or 0)
