"""Cutting a copy's log back to what it shares with its primary's.

Preconditions: the copy is not a primary; `to` is a position of its log that no segment covers beyond. Steps:
1. the entries behind `to` are written to a file, which is on disk before anything else happens;
2. in an append transaction, if the log still is what was set aside: remove the entries, move the head back over them
   and change the incarnation, forget the terms they began and the slots they opened or closed, and make the namespace
   rows those of `to`.
Afterwards every process throws its engine away and builds one from the shorter log. A crash between the steps leaves
the log as it was and a file of what it still holds; the next attempt writes the same file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from vectors.errors import LogGap, LogMismatch, MLVectorDBError, StorageBusy
from vectors.store import log
from vectors.store.log import START, Position
from vectors.store.manifests import read_manifest
from vectors.store.namespace_rows import namespaces_at, namespaces_changed_after, namespaces_rebuild
from vectors.store.receive import position_detail, sender_check, sender_refusal
from vectors.store.set_aside import SetAside, entries_set_aside, set_aside_locked, set_aside_undo
from vectors.store.slot_rows import slots_cut
from vectors.store.statements import one
from vectors.store.terms import read_terms, term_at, terms_cut

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_DELETE = "DELETE FROM vectors_logentry WHERE shard_id = %s AND seq > %s"
_TAIL_BYTES = (
    "SELECT coalesce(sum(length(payload)), 0) FROM vectors_logentry WHERE shard_id = %s AND seq > %s AND seq <= %s"
)


class CutBack(NamedTuple):
    """What was cut, from `first_seq` to `last_seq`, and the file it is in; nothing when `entries` is 0."""

    path: Path | None
    entries: int
    first_seq: int
    last_seq: int


def cut_back(shard_id: int, *, to: Position, term: int) -> CutBack:
    """Set aside and remove what the log has behind `to`, as the primary of `term` asks; a shorter log stays as it is.

    Raise LogMismatch when it has another entry at `to`; LogGap when segments cover entries behind it: only a full sync
    helps then; StaleTerm, NotPrimary and ShardDamaged as `receive` does; StorageFull, StorageBusy and the like.
    """
    to = to if to.seq else START
    for _attempt in range(_ATTEMPTS):
        seen = log.read_head(shard_id)
        if seen is None:
            raise LogGap(f"shard copy {shard_id} is not on this node")
        cut = _attempt_cut(seen, to, term)
        if cut is not None:
            return cut
        # Another process added to the log, or cut it, since it was read.
    raise StorageBusy("the log changed again and again while it was to be cut back", retry_after_s=1)


def _attempt_cut(seen: log.Head, to: Position, term: int) -> CutBack | None:
    """Cut the log as it was seen; None when it is another one by now."""
    if to.seq >= seen.last_seq or _refusal(seen, to, term) is not None:
        return _in_transaction(seen, to, term, None)
    with set_aside_locked(seen.uid):
        try:
            aside = entries_set_aside(seen, after_seq=to.seq)
        except LogGap:
            return None
        try:
            cut = _in_transaction(seen, to, term, aside)
        except BaseException:
            set_aside_undo(aside, seen)
            raise
        if cut is None or cut.path is None:
            set_aside_undo(aside, seen)
        return cut


def _in_transaction(seen: log.Head, to: Position, term: int, aside: SetAside | None) -> CutBack | None:
    cut: CutBack | None = None
    with log.append_transaction(seen.shard_id) as open_log:
        head = open_log.head
        refusal = _refusal(head, to, term)
        if term > head.promised_term:
            open_log.promise(term)
        if refusal is None and head.last_seq <= to.seq:
            cut = CutBack(None, 0, to.seq + 1, to.seq)
        elif refusal is None and aside is not None and _is_same_log(seen, head):
            _cut(open_log, to)
            cut = CutBack(aside.path, aside.entries, aside.first_seq, aside.last_seq)
    if refusal is not None:
        raise refusal
    if cut is not None and aside is not None and cut.path is not None:
        _tell(seen, to, aside)
    return cut


def _is_same_log(seen: log.Head, now: log.Head) -> bool:
    return (seen.incarnation, seen.position) == (now.incarnation, now.position)


def _tell(head: log.Head, to: Position, aside: SetAside) -> None:
    logger.warning(
        "log_cut_back shard=%s to_term=%d to_seq=%d entries=%d last_term=%d last_seq=%d file=%s",
        head.label,
        to.term,
        to.seq,
        aside.entries,
        head.term,
        head.last_seq,
        aside.path,
    )


def _refusal(head: log.Head, to: Position, term: int) -> MLVectorDBError | None:
    """Return why the log may not be cut there; raise what leaves even the sender's term unnoted."""
    sender_check(head, term)
    history = read_terms(head.shard_id)
    detail = {**position_detail(head, history), "manifest_seq": head.manifest_seq}
    if to.seq <= head.last_seq and term_at(history, to.seq) != to.term:
        return LogMismatch(
            f"shard {head.label} has an entry of term {term_at(history, to.seq)} at {tuple(to)}", detail=detail
        )
    if to.seq < head.last_seq and head.term == term and not head.is_primary:
        # One sender looked, and another has cut this log and sent since: those entries are acknowledged.
        return LogMismatch(
            f"shard {head.label} has entries of term {term} itself behind {tuple(to)}: they are its primary's",
            detail=detail,
        )
    if to.seq < head.last_seq and to.seq < head.manifest_seq:
        return LogGap(
            f"segments of shard {head.label} hold all operations up to {head.manifest_seq}, behind {to.seq}",
            detail=detail,
        )
    return sender_refusal(head, term)


def _cut(open_log: log.OpenLog, to: Position) -> None:
    head = open_log.head
    manifest = read_manifest(head.shard_id, head.manifest)
    at_manifest = {uid: record.spec for uid, record in manifest.namespaces.items()}
    alive = namespaces_at(head.shard_id, at_manifest, after_seq=manifest.seq, through=to.seq)
    namespaces_rebuild(head.shard_id, alive, forget=namespaces_changed_after(head.shard_id, to.seq))
    one(_DELETE, (head.shard_id, to.seq))
    terms_cut(head.shard_id, to.seq)
    slots_cut(head.shard_id, to.seq)
    row = one(_TAIL_BYTES, (head.shard_id, head.manifest_seq, to.seq))
    assert row is not None
    open_log.cut(to, tail_bytes=int(row[0]))
