"""Which slots of a shard copy clients may write: said once for the whole shard, by an entry of its log.

Every append of clients' rows looks at the newest one (`vectors.store.gate`); replicas of the shard get it with the log.
"""

from __future__ import annotations

from typing import NamedTuple

from vectors.engine.slots import SlotSet
from vectors.errors import CursorMismatch, StaleScope
from vectors.models import MoveCursor
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.log import Position
from vectors.store.slot_rows import SlotsChange, slots_at, slots_changes
from vectors.store.terms import read_terms, term_at

_NEWEST = 2**63 - 1


class SlotsNow(NamedTuple):
    """What holds since `seq`: the slots that may be written, and the epoch of the slot table they were decided at."""

    seq: int
    epoch: int
    writable: SlotSet


@storage_faults()
def slots_now(shard_id: int) -> SlotsNow | None:
    """Return what holds, None where nothing was ever said: then all slots may be written."""
    change = slots_at(shard_id, _NEWEST)
    return None if change is None else SlotsNow(change.seq, change.epoch, SlotSet(change.writable))


@storage_faults()
def slots_history(shard_id: int) -> list[SlotsNow]:
    """Return since when clients may write which slots, the oldest change that is known first."""
    changes = slots_changes(shard_id, through=_NEWEST)
    return [SlotsNow(change.seq, change.epoch, SlotSet(change.writable)) for change in changes]


def slots_set(shard_id: int, *, epoch: int, writable: SlotSet, cursor_of: str = "") -> Position:
    """Let clients write in some slots only; return the position of the entry that says so.

    The same again adds nothing. Raise StaleScope for an epoch before that of what holds: it comes from somebody who has
    been overtaken, and would open what was closed since. Raise NotPrimary, ShardDamaged, StorageFull and the like.

    With `cursor_of`, a move, raise CursorMismatch where no rows of it have come in in this term: whoever finds the
    slots open may then trust that what was moved is in the log before the entry.
    """
    with log.append_transaction(shard_id) as open_log:
        open_log.check_writable()
        if cursor_of and not MoveCursor.objects.filter(shard_id=shard_id, move=cursor_of).exists():
            raise CursorMismatch("this copy has no cursor of the move", detail={"cursor": ""})
        now = slots_at(shard_id, _NEWEST)
        if now is not None and _holds(now, epoch, writable):
            return Position(term_at(read_terms(shard_id), now.seq), now.seq)
        return open_log.set_slots(epoch, writable)


def _holds(now: SlotsChange, epoch: int, writable: SlotSet) -> bool:
    if epoch < now.epoch:
        raise StaleScope(
            f"the slots of this copy were changed at epoch {now.epoch}, after {epoch}", detail={"epoch": now.epoch}
        )
    return (epoch, writable.packed) == (now.epoch, now.writable)
