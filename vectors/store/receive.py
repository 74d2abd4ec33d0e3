"""Receiving a slice: entries of the primary's log are added to this copy's, as they are.

Preconditions: none; any process may do this at any time, and several may be given overlapping slices at once. Steps:
1. without a lock, where the copy has all of the slice already, answer that;
2. check the slice by itself: seqs without gaps, terms that follow one another, each entry's checksum and form;
3. in an append transaction, refuse a term that is over, a gap, and other entries than this copy's; note the sender's
   term as promised; add what is not there yet, with namespaces, terms and slots, and move the head over it.
Afterwards this copy's log is a prefix of the sender's, at least up to the position answered. Raising, nothing was
added, but a newer term may have been noted: the older ones are refused from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.conf import settings

from vectors.engine.operations import Operation, SetSlots, StartTerm
from vectors.errors import CheckpointBehind, CorruptRecord, LogGap, LogMismatch, MLVectorDBError, NotPrimary
from vectors.store import log
from vectors.store.log import START, Entry, Position
from vectors.store.namespace_rows import namespace_follow
from vectors.store.slot_rows import slots_add
from vectors.store.statements import every
from vectors.store.terms import History, TermStart, read_terms, stale_term, term_add, term_at

_READ_CHECKSUMS = "SELECT seq, crc32 FROM vectors_logentry WHERE shard_id = %s AND seq >= %s AND seq <= %s"


class _Checked(NamedTuple):
    entry: Entry
    operation: Operation


def receive(shard_id: int, *, term: int, before: Position, entries: Sequence[Entry]) -> Position:
    """Add `entries`, which follow `before` in the log of the primary of `term`; return how far this copy has its log.

    That is the copy's last position when its last entry is of that term, else at most the end of the slice: what
    stands behind it may not be the primary's. A tail near its hard limit takes as much as fits.

    Raise StaleTerm when a higher term was promised; LogGap when `before` is behind the end of this log; LogMismatch
    when it has another entry at `before` or in the slice; CorruptRecord; CheckpointBehind when nothing fits;
    NotPrimary when this copy is still the primary of an older term; ShardDamaged, and StorageFull and the like.
    """
    before = before if before.seq else START
    end = Position(entries[-1].term, entries[-1].seq) if entries else before
    held = _held_already(shard_id, term, end, entries)
    if held is not None:
        return held
    checked = _checked(shard_id, term, before, entries)
    with log.append_transaction(shard_id) as open_log:
        head = open_log.head
        sender_check(head, term)
        if term > head.promised_term:
            open_log.promise(term)
        refusal = sender_refusal(head, term) or _add(open_log, before, checked)
    if refusal is not None:
        raise refusal
    return _held(open_log.new_head, term, end)


def sender_check(head: log.Head, term: int) -> None:
    """Raise StaleTerm unless `term` may change this copy's log, and ShardDamaged for a copy that has lost data."""
    if term < head.promised_term or (head.is_primary and term <= head.term):
        raise stale_term(head, term)
    log.check_whole(head)


def sender_refusal(head: log.Head, term: int) -> NotPrimary | None:
    """Return the error for a newer primary that finds this copy not released yet: its term is noted all the same."""
    if not head.is_primary:
        return None
    return NotPrimary(
        f"shard {head.label} here is still the primary of term {head.term}; term {term} has to release it first",
        detail={"shard": head.label, "term": head.term, "promised_term": max(term, head.promised_term)},
    )


def position_detail(head: log.Head, history: History) -> dict[str, Any]:
    """Return what a sender needs to find the last common entry, for `detail` of an error."""
    return {"term": head.term, "seq": head.last_seq, "terms": [list(start) for start in history]}


def _held_already(shard_id: int, term: int, end: Position, entries: Sequence[Entry]) -> Position | None:
    head = log.read_head(shard_id)
    if (
        head is None
        or head.is_primary
        or head.damage is not None
        or head.promised_term != term
        or head.last_seq < end.seq
        or term_at(read_terms(shard_id), end.seq) != end.term
        or not _same_checksums(shard_id, entries)
    ):
        return None
    return _held(head, term, end)


def _held(head: log.Head, term: int, end: Position) -> Position:
    return head.position if head.term == term else min(head.position, end)


def _checked(shard_id: int, term: int, before: Position, entries: Sequence[Entry]) -> list[_Checked]:
    """Return the entries with their operations, having checked all that a slice says by itself."""
    checked = []
    last = before
    for entry in entries:
        operation = entry.operation()
        if entry.seq != last.seq + 1:
            raise CorruptRecord(f"entry {entry.seq} follows {last.seq} in the slice", seq=entry.seq)
        starts_term = isinstance(operation, StartTerm)
        follows = operation.after == last.term < entry.term if isinstance(operation, StartTerm) else False
        if entry.term > term or (starts_term and not follows) or (not starts_term and entry.term != last.term):
            # Not a corrupt slice: a sender that was cut back while it read its log has mixed two histories.
            raise LogMismatch(
                f"entry ({entry.term}, {entry.seq}) cannot follow {tuple(last)} in a log of term {term}",
                detail=_detail_of_now(shard_id),
            )
        checked.append(_Checked(entry, operation))
        last = Position(entry.term, entry.seq)
    return checked


def _detail_of_now(shard_id: int) -> dict[str, Any]:
    head = log.read_head(shard_id)
    own = {} if head is None else position_detail(head, read_terms(shard_id))
    return {"common_term": START.term, "common_seq": START.seq, **own}


def _add(open_log: log.OpenLog, before: Position, slice_: Sequence[_Checked]) -> MLVectorDBError | None:
    head = open_log.head
    history = read_terms(head.shard_id)
    if before.seq > head.last_seq:
        return LogGap(
            f"shard {head.label} ends at seq {head.last_seq}, the slice begins after {before.seq}",
            detail=position_detail(head, history),
        )
    known = [item.entry for item in slice_ if item.entry.seq <= head.last_seq]
    if (refusal := _mismatch(head, history, before, known)) is not None:
        return refusal
    added = _as_fits(head, slice_[len(known) :])
    if not added and len(slice_) > len(known):
        return CheckpointBehind("the tail has reached MLVDB_TAIL_HARD_BYTES; a checkpoint is due", retry_after_s=2)
    last_term = head.term
    for entry, operation in added:
        if entry.term != last_term:
            term_add(head.shard_id, TermStart(entry.term, entry.seq))
            last_term = entry.term
        namespace_follow(head.shard_id, entry, operation)
        if isinstance(operation, SetSlots):
            slots_add(head.shard_id, entry.seq, operation)
    open_log.copy((entry, operation.rows) for entry, operation in added)
    return None


def _as_fits(head: log.Head, slice_: Sequence[_Checked]) -> Sequence[_Checked]:
    total = head.tail_bytes
    for number, (entry, _) in enumerate(slice_):
        # An entry that alone is too long for this node's limit: the primary has acknowledged it, so it must go in.
        if total and total + len(entry.payload) > settings.MLVDB_TAIL_HARD_BYTES:
            return slice_[:number]
        total += len(entry.payload)
    return slice_


def _mismatch(head: log.Head, history: History, before: Position, known: Sequence[Entry]) -> LogMismatch | None:
    """Return the error for a slice that begins or goes on with other entries than this log has at those seqs."""
    common: Position | None = None
    if term_at(history, before.seq) != before.term:
        # The sender's terms below `before` are not known here: what is newer than its term there is not common.
        seq = before.seq - 1
        while seq and term_at(history, seq) > before.term:
            seq = next(start.first_seq for start in reversed(history) if start.first_seq <= seq) - 1
        common = Position(term_at(history, seq), seq)
    else:
        crc32s = _checksums(head.shard_id, known)
        last = before
        for entry in known:
            if term_at(history, entry.seq) != entry.term or crc32s.get(entry.seq, entry.crc32) != entry.crc32:
                common = last
                break
            last = Position(entry.term, entry.seq)
    if common is None:
        return None
    return LogMismatch(
        f"shard {head.label} has other entries than the slice after {tuple(common)}",
        detail={"common_term": common.term, "common_seq": common.seq, **position_detail(head, history)},
    )


def _same_checksums(shard_id: int, entries: Sequence[Entry]) -> bool:
    crc32s = _checksums(shard_id, entries)
    return all(crc32s.get(entry.seq, entry.crc32) == entry.crc32 for entry in entries)


def _checksums(shard_id: int, entries: Sequence[Entry]) -> dict[int, int]:
    """Return the checksums that this log has at the seqs of `entries`, as far as it is not pruned.

    Two primaries of one term are possible only by force; what they wrote differs in these.
    """
    return dict(every(_READ_CHECKSUMS, (shard_id, entries[0].seq, entries[-1].seq))) if entries else {}
