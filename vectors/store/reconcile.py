"""What becomes of the log of a copy that a full sync fills: decided before a byte is sent, and again at the install.

A copy's position is a promise: writes were acknowledged because this copy has them, and promotions count on it. So a
full sync never takes a copy back behind the entries that it shares with the sender. Those after the offered manifest
are kept and replayed on top of it; where they cannot be, the sender needs a newer manifest. What the two do not share
is set aside.
"""

from __future__ import annotations

from typing import NamedTuple

from vectors.errors import CorruptRecord, NotFound, NotPrimary, SyncBehind
from vectors.models import ShardHead
from vectors.store import log, recovery
from vectors.store.faults import storage_faults
from vectors.store.log import Head, Position
from vectors.store.offer import SyncOffer
from vectors.store.slices import oldest_seq
from vectors.store.terms import last_common, read_terms, stale_term


class Kept(NamedTuple):
    """The entries of a log that stay in it: those after the offer's seq up to `through`; `tail_bytes` is their size.

    `common` is the last position shared with the sender.
    """

    common: Position
    through: int
    tail_bytes: int


@storage_faults()
def check_offer(offer: SyncOffer) -> Head:
    """Return the head of the copy that an offer is for, if it may take it.

    Raise NotFound when there is no such copy, NotPrimary when it still orders its shard's writes, StaleTerm when it
    has promised a higher term than the sender's, SyncBehind, WrongNode, and StorageError and the like.
    """
    shard_id = ShardHead.objects.filter(uid=offer.shard).values_list("pk", flat=True).first()
    head = None if shard_id is None else log.read_head(shard_id)
    if head is None:
        raise NotFound("this node has no copy of the shard", field="shard")
    recovery.check_node(head.shard_id)
    check_role(head, offer)
    common = _common(head, offer)
    if common.seq > offer.seq and oldest_seq(head.shard_id) > offer.seq + 1:
        raise _behind(head, offer, common)
    return head


def check_role(head: Head, offer: SyncOffer) -> None:
    """Raise NotPrimary or StaleTerm when a copy must not be filled by the sender of an offer."""
    if offer.head.term < head.promised_term:
        raise stale_term(head, offer.head.term)
    if head.is_primary:
        raise NotPrimary(
            f"this copy of shard {head.label} orders its writes until it is released; it takes no full sync",
            detail={"shard": head.label, "term": head.term, "promised_term": head.promised_term},
        )


def kept_entries(head: Head, offer: SyncOffer) -> Kept:
    """Return which entries stay, having read and checked each. Raise SyncBehind, and StorageError and the like."""
    common = _common(head, offer)
    if common.seq <= offer.seq:
        return Kept(common, offer.seq, 0)
    expected, size = offer.seq, 0
    try:
        for entry in log.read_after(head.shard_id, offer.seq, through=common.seq):
            expected += 1
            if entry.seq != expected:
                raise _behind(head, offer, common)
            entry.operation()
            size += len(entry.payload)
    except CorruptRecord as error:
        raise _behind(head, offer, common) from error
    if expected != common.seq:
        raise _behind(head, offer, common)
    return Kept(common, common.seq, size)


def _common(head: Head, offer: SyncOffer) -> Position:
    # What this log has of the sender's own term behind the offer's head was sent since the offer was made.
    their_seq = max(offer.head.seq, head.last_seq) if head.term == offer.head.term else offer.head.seq
    return last_common(read_terms(head.shard_id), head.last_seq, offer.terms, their_seq)


def _behind(head: Head, offer: SyncOffer, common: Position) -> SyncBehind:
    return SyncBehind(
        f"this copy of shard {head.label} shares entries up to {common.seq} with the sender and cannot keep those after"
        f" {offer.seq}: a manifest of the sender has to cover them",
        detail={"seq": common.seq, "offered_seq": offer.seq},
    )
