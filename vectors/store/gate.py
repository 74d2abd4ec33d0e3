"""The gate of a log: rows of clients come in only in slots that the shard may be written in.

It is looked at inside the append transaction, so nothing slips in behind the entry that closes a slot. A log that was
never told of slots has no gate, and pays nothing.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from vectors.engine.slots import ALL_SLOTS, SlotSet
from vectors.errors import ShardDamaged, SlotsClosed
from vectors.store.log import Head
from vectors.store.statements import one

_READ_WRITABLE = "SELECT writable FROM vectors_shardslots WHERE shard_id = %s AND seq = %s"
_SLOTS_TOLD = 20


class _Seen(NamedTuple):
    """Which entry of which log a set was read from: a log that was cut back may have another at that seq."""

    uid: str
    incarnation: int
    slots_seq: int


_read: dict[int, tuple[_Seen, SlotSet]] = {}
_read_lock = threading.Lock()


def check_open(head: Head, slots: np.ndarray) -> None:
    """Raise SlotsClosed unless rows of `slots` (n,) may be added to the log whose locked head this is."""
    if not head.slots_seq:
        return
    writable = _writable(head)
    if writable == ALL_SLOTS:
        return
    inside = writable.has(slots)
    if not inside.all():
        closed = np.unique(slots[~inside])
        raise SlotsClosed(
            f"{len(closed)} of the slots are not to be written in shard {head.label} at the moment",
            detail={"shard": head.label, "slots": closed[:_SLOTS_TOLD].tolist(), "count": len(closed)},
        )


def _writable(head: Head) -> SlotSet:
    seen = _Seen(head.uid, head.incarnation, head.slots_seq)
    known = _read.get(head.shard_id)
    if known is not None and known[0] == seen:
        return known[1]
    row = one(_READ_WRITABLE, (head.shard_id, head.slots_seq))
    if row is None:
        raise ShardDamaged(
            f"shard {head.label} does not know in which slots it may be written", detail={"shard": head.label}
        )
    writable = SlotSet(bytes(row[0]))
    with _read_lock:
        _read[head.shard_id] = (seen, writable)
    return writable
