"""Terms of a shard's log: where each begins, what two logs share, and who may begin the next.

A history is the list of a log's terms with the seq of each one's first entry. It is kept when the entries are pruned,
and since a term has one primary, an entry with the same (term, seq) in two logs means that they are equal up to it: so
two histories and lengths tell the last common entry without a look at any entry.

A promise is durable before it is answered, and made under the lock of every append: a primary that has promised a
higher term commits nothing more, and what it committed before is in the position that its promise answers.
"""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from django.conf import settings

from vectors.engine.operations import StartTerm, encode
from vectors.errors import StaleTerm
from vectors.models import MoveCursor
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.log import START, Position
from vectors.store.statements import every, one
from vectors.tokens import Token

logger = logging.getLogger(__name__)

_READ = "SELECT term, first_seq FROM vectors_shardterm WHERE shard_id = %s ORDER BY first_seq, term"
_INSERT = "INSERT INTO vectors_shardterm (shard_id, term, first_seq) VALUES (%s, %s, %s)"
_FORGET_AFTER = "DELETE FROM vectors_shardterm WHERE shard_id = %s AND first_seq > %s"


class TermStart(NamedTuple):
    """A term and the seq of its first entry."""

    term: int
    first_seq: int


History = Sequence[TermStart]
"""The terms of a log in order, the first from seq 1."""


class TokenState(Enum):
    """What a log knows of the entry that a session token names."""

    HELD = "held"
    LATER = "later"
    LOST = "lost"


def term_at(history: History, seq: int) -> int:
    """Return the term of the entry at `seq`, which the log must have had; 0 is before the first entry."""
    if seq == 0:
        return START.term
    return history[bisect_right(history, seq, key=lambda start: start.first_seq) - 1].term


def last_common(ours: History, our_seq: int, theirs: History, their_seq: int) -> Position:
    """Return the position up to which two logs, of `our_seq` and `their_seq` entries, are the same; START for none."""
    common = START
    for (term, first, last), (other, other_first, other_last) in zip(
        _spans(ours, our_seq), _spans(theirs, their_seq), strict=False
    ):
        # A term that begins elsewhere is another one of that number: only a forced promotion makes such.
        if (term, first) != (other, other_first):
            break
        common = Position(term, min(last, other_last))
    return common


def token_state(token: Token, *, uid: str, history: History, seq: int) -> TokenState:
    """Return what a log of `seq` entries knows of a token: LATER when its entry may still come, LOST when it cannot."""
    if not token.names(uid):
        return TokenState.LOST
    if token.seq == 0:
        return TokenState.HELD
    held = term_at(history, min(token.seq, seq))
    if token.seq <= seq and held == token.term:
        return TokenState.HELD
    # Terms only rise along a log: what an older term would have had there is not there and will not be.
    return TokenState.LOST if held > token.term else TokenState.LATER


@storage_faults()
def read_terms(shard_id: int) -> list[TermStart]:
    """Return the history of a shard copy's log. Raise StorageError and the like."""
    starts = [TermStart(*row) for row in every(_READ, (shard_id,))]
    if not starts or starts[0].first_seq > 1:
        starts.insert(0, TermStart(START.term, 1))
    return starts


def term_add(shard_id: int, start: TermStart) -> None:
    """Note where a term begins, in the transaction that adds its first entry."""
    one(_INSERT, (shard_id, *start))


def terms_cut(shard_id: int, seq: int) -> None:
    """Forget the terms that begin after `seq`, in the transaction that cuts their entries."""
    one(_FORGET_AFTER, (shard_id, seq))


def term_promise(shard_id: int, term: int, *, candidate: str) -> log.Head:
    """Give this copy's vote in `term` to the node `candidate`; return the head, promise included.

    From here on nothing of an older term gets into the log, neither clients' writes nor slices. A second call for the
    same candidate answers the head of then. Raise StaleTerm when a higher term was promised, or this one's vote given
    to another; and StorageError and the like.
    """
    with log.append_transaction(shard_id) as open_log:
        head = open_log.head
        if (head.promised_term, head.voted_for) == (term, candidate):
            return head
        if term <= head.promised_term:
            raise stale_term(head, term)
        open_log.promise(term, voted_for=candidate)
        promised = open_log.new_head
    logger.info("term_promised shard=%s term=%d candidate=%s seq=%d", head.label, term, candidate, head.last_seq)
    return promised


def term_heard(shard_id: int, term: int) -> log.Head:
    """Note that a term exists: older primaries, this copy as well, are refused from here on. Return the head."""
    with log.append_transaction(shard_id) as open_log:
        head = open_log.head
        if term <= head.promised_term:
            return head
        open_log.promise(term)
        heard = open_log.new_head
    logger.info("term_heard shard=%s term=%d", head.label, term)
    return heard


def term_start(shard_id: int, term: int) -> Position:
    """Make this copy the primary of `term`, with the first entry of that term; return the entry's position.

    Precondition: this node has this copy's own vote in the term, or no copy here has heard of it. A second call
    answers the same. The caller tells the senders: this append flips `knocked` like any other. Raise StaleTerm,
    ShardDamaged, and StorageError and the like.
    """
    with log.append_transaction(shard_id) as open_log:
        return term_begin(open_log, term)


def term_begin(open_log: log.OpenLog, term: int) -> Position:
    """Do what `term_start` does inside the caller's `append_transaction`, which may commit more along with it."""
    node = settings.MLVDB_NODE_ID
    head = open_log.head
    if head.takes_writes and head.term == term:
        return Position(term, dict(read_terms(head.shard_id)).get(term, 0))
    if term <= head.term or not _may_start(head, term, node):
        raise stale_term(head, term)
    open_log.start(term, node=node)
    operation = StartTerm(node, head.term)
    payload = encode(operation)
    position = open_log.add("", operation.kind, operation.rows, payload, zlib.crc32(payload))
    term_add(head.shard_id, TermStart(term, position.seq))
    # Cursors are not in the log: one of an earlier term may speak of rows that this copy has lost since.
    MoveCursor.objects.filter(shard_id=head.shard_id).delete()
    logger.info("term_started shard=%s term=%d seq=%d", head.label, term, position.seq)
    return position


def primary_release(shard_id: int, term: int) -> log.Head:
    """Make this copy a replica that follows the primary of `term` or a later one; return the head.

    Raise StaleTerm when it is itself the primary of a later term.
    """
    with log.append_transaction(shard_id) as open_log:
        release(open_log, term)
        return open_log.new_head


def release(open_log: log.OpenLog, term: int) -> None:
    """Do what `primary_release` does inside the caller's `append_transaction`, which may commit more along with it."""
    head = open_log.head
    if head.is_primary and term < head.term:
        raise stale_term(head, term)
    if term > head.promised_term:
        open_log.promise(term)
    if head.is_primary:
        open_log.release()
        logger.warning("primary_released shard=%s term=%d promised_term=%d", head.label, head.term, term)


def stale_term(head: log.Head, term: int) -> StaleTerm:
    """Return the error for a term that this copy has left behind."""
    return StaleTerm(
        f"shard {head.label} has promised term {head.promised_term}; term {term} is over or another node's",
        detail={"promised_term": head.promised_term, "voted_for": head.voted_for, "term": head.term},
    )


def _may_start(head: log.Head, term: int, node: str) -> bool:
    return term > head.promised_term or (term == head.promised_term and head.voted_for == node)


def _spans(history: History, seq: int) -> list[tuple[int, int, int]]:
    """Return (term, first seq, last seq) of each term with entries in a log of `seq` entries."""
    ends = [start.first_seq - 1 for start in history[1:]] + [seq]
    return [
        (term, first, min(end, seq)) for (term, first), end in zip(history, ends, strict=True) if first <= min(end, seq)
    ]
