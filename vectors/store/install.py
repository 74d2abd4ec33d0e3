"""Installing a full sync: the staged files become the copy.

Preconditions: the offer was taken and every file of it is complete. Steps, each safe to lose to a crash:
1. seize the checkpoint lease: whoever checkpoints this copy now can commit nothing more, and the new segments get a
   token that no cleaner before it removes;
2. link the staged files into segments of this copy's own, which no manifest lists yet;
3. set aside, in files, what this copy's log has and the sender's does not;
4. in one append transaction, if lease, role and log still are what they were: a manifest that lists the new segments,
   the head on it with another incarnation and no damage, the log without what the manifest covers or what was set
   aside, terms, namespaces and writable slots as they are at the sender, and no cursor of a move;
5. remove the staged files, and those of the copy as it was.
Afterwards every process builds its engine anew. Before step 4 has committed, the copy is what it was: segments that no
manifest lists go with the next clean-up, and the next attempt begins with the staged files as they are.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from django.db import DatabaseError
from django.db.models import F, Max

from vectors.errors import InvalidInput, LogGap, MLVectorDBError, StorageBusy, SyncIncomplete, SyncUnknown
from vectors.models import Manifest, MoveCursor, Pin, ShardHead, ShardTerm
from vectors.store import log, staging
from vectors.store.cleaning import clean, prune_log
from vectors.store.faults import storage_faults
from vectors.store.leases import Lease, checkpoint_lease, seize_lease
from vectors.store.log import Position
from vectors.store.manifests import ManifestRecord, NamespaceRecord, document_crc32, segment_directory
from vectors.store.namespace_rows import namespaces_at, namespaces_rebuild
from vectors.store.offer import SyncOffer
from vectors.store.reconcile import Kept, check_offer, check_role, kept_entries
from vectors.store.segment_files import (
    BUILDING,
    SegmentRecord,
    deleted_name,
    index_name,
    link_or_copy,
    make_directories,
    segment_uid,
    stamps_of,
    sync_directory,
)
from vectors.store.segments_aside import segments_set_aside
from vectors.store.set_aside import SetAside, entries_set_aside, set_aside_locked, set_aside_undo
from vectors.store.slices import oldest_seq
from vectors.store.slot_rows import slots_refill
from vectors.store.statements import one
from vectors.store.terms import term_at

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_MISSING_TOLD = 20
_DELETE_OTHERS = "DELETE FROM vectors_logentry WHERE shard_id = %s AND (seq <= %s OR seq > %s)"


class Installed(NamedTuple):
    """Where the copy stands now, and what was set aside on the way: entries, and segments of rows that had no entry
    any more."""

    position: Position
    set_aside: SetAside | None = None
    segments: Path | None = None


@storage_faults()
def install(shard_uid: str, offer: SyncOffer) -> Installed:
    """Make the staged files of an offer the copy; return where it stands. Installing again answers that once more.

    Raise SyncUnknown when another offer is staged, SyncIncomplete when files are missing; StaleTerm, NotPrimary and
    SyncBehind as at the offer; StorageFull, StorageBusy, StorageError. Then the copy is as it was.
    """
    if shard_uid != offer.shard:
        raise InvalidInput("the offer is of another shard", field="shard")
    with staging.locked(shard_uid, fcntl.LOCK_EX):
        head = ShardHead.objects.filter(uid=shard_uid).first()
        if head is not None and staging.is_installed(head.pk, offer):
            return Installed(Position(head.term, head.last_seq))
        shard_id = check_offer(offer).shard_id
        _check_staged(offer)
        with seize_lease(checkpoint_lease(shard_id), f"install:{os.getpid()}") as lease:
            manifest = _place(offer, lease.token, number=_next_number(shard_id))
            with set_aside_locked(shard_uid):
                installed = _switch(shard_id, offer, manifest, lease)
            shutil.rmtree(staging.staged_files(shard_uid), ignore_errors=True)
            _clean(shard_id, manifest, lease)
    logger.info(
        "sync_installed shard=%s manifest=%d term=%d seq=%d bytes=%d",
        shard_uid,
        manifest.number,
        *installed.position,
        offer.size_bytes,
    )
    return installed


def _check_staged(offer: SyncOffer) -> None:
    staged = staging.staged_offer(offer.shard)
    if staged is None or staged.identity != offer.identity or staged.files != offer.files:
        raise SyncUnknown("this full sync was not offered, or a newer one has taken over")
    missing = staging.missing_files(offer)
    if missing:
        raise SyncIncomplete(
            f"{len(missing)} of {len(offer.files)} files are not complete",
            detail={"missing": dict(list(missing.items())[:_MISSING_TOLD]), "files": len(missing)},
        )


def _next_number(shard_id: int) -> int:
    newest = Manifest.objects.filter(shard_id=shard_id).aggregate(number=Max("number"))["number"] or 0
    return 1 + max(newest, ShardHead.objects.values_list("manifest", flat=True).get(pk=shard_id))


def _place(offer: SyncOffer, token: int, *, number: int) -> ManifestRecord:
    """Link the staged files into new segments, all on disk when this returns; return the manifest that lists them."""
    namespaces: dict[str, NamespaceRecord] = {}
    for uid, record in offer.manifest.namespaces.items():
        parent = segment_directory(offer.shard, uid)
        staged = staging.staged_files(offer.shard) / uid
        segments = [_place_segment(parent, staged / segment.uid, segment, token) for segment in record.segments]
        if segments:
            sync_directory(parent)
        namespaces[uid] = NamespaceRecord(record.spec, segments)
    return ManifestRecord(number, offer.seq, offer.term, namespaces)


def _place_segment(parent: Path, staged: Path, segment: SegmentRecord, token: int) -> SegmentRecord:
    uid = segment_uid(token)
    placed = dataclasses.replace(segment, uid=uid, wish=0)
    # What the sender's tokens say of files is nothing to the cleaners here: such files get names of this lease.
    renamed: dict[str, str] = {}
    if segment.deleted is not None:
        renamed[segment.deleted] = deleted_name(int(segment.deleted.split(".")[1]), token)
        placed = dataclasses.replace(placed, deleted=renamed[segment.deleted])
    if segment.index is not None:
        renamed[segment.index.name] = index_name(int(segment.index.name.split(".")[1]), token)
        index = dataclasses.replace(segment.index, name=renamed[segment.index.name])
        placed = dataclasses.replace(placed, index=index)
    building = parent / f"{BUILDING}{uid}"
    make_directories(building)
    for name in stamps_of(segment):
        link_or_copy(staged / name, building / renamed.get(name, name))
    sync_directory(building)
    building.rename(parent / uid)
    return placed


def _switch(shard_id: int, offer: SyncOffer, manifest: ManifestRecord, lease: Lease) -> Installed:
    for _attempt in range(_ATTEMPTS):
        seen = check_offer(offer)
        kept = kept_entries(seen, offer)
        # In small steps what may go before all else: one long transaction would keep writers waiting.
        prune_log(shard_id, min(seen.manifest_seq, offer.seq, kept.common.seq), lease)
        try:
            aside = entries_set_aside(seen, after_seq=kept.common.seq)
        except LogGap:
            continue
        segments = None
        if seen.last_seq > kept.common.seq and oldest_seq(shard_id) > kept.common.seq + 1:
            segments = segments_set_aside(seen)
        try:
            position = _commit(seen, kept, offer, manifest, lease)
        except BaseException:
            set_aside_undo(aside, seen)
            raise
        if position is not None:
            return _reported(Installed(position, aside, segments), seen)
        # A slice came in since the log was read.
        set_aside_undo(aside, seen)
    raise StorageBusy("the log changed again and again while a full sync was to be installed", retry_after_s=1)


def _commit(seen: log.Head, kept: Kept, offer: SyncOffer, manifest: ManifestRecord, lease: Lease) -> Position | None:
    """Put the copy on the manifest; return its position, None when its log is not what was seen of it."""
    shard_id = seen.shard_id
    document = {**manifest.to_document(), "installed": offer.identity}
    position = Position(term_at(offer.terms, kept.through), kept.through)
    with log.append_transaction(shard_id) as open_log:
        head = open_log.head
        lease.check()
        check_role(head, offer)
        if (head.incarnation, head.position, head.manifest) != (seen.incarnation, seen.position, seen.manifest):
            return None
        specs = {uid: record.spec for uid, record in manifest.namespaces.items()}
        namespaces_rebuild(shard_id, namespaces_at(shard_id, specs, after_seq=offer.seq, through=kept.through))
        one(_DELETE_OTHERS, (shard_id, offer.seq, kept.through))
        ShardTerm.objects.filter(shard_id=shard_id).delete()
        ShardTerm.objects.bulk_create(
            ShardTerm(shard_id=shard_id, term=start.term, first_seq=start.first_seq)
            for start in offer.terms
            if start.first_seq <= kept.through
        )
        slots_refill(shard_id, offer.slots, after_seq=offer.seq, through=kept.through)
        MoveCursor.objects.filter(shard_id=shard_id).delete()
        # Those of the copy as it was belong to another history: none of them is a state of this one.
        Manifest.objects.filter(shard_id=shard_id).delete()
        Manifest.objects.create(
            shard_id=shard_id,
            number=manifest.number,
            seq=manifest.seq,
            term=manifest.term,
            document=document,
            crc32=document_crc32(document),
            origin=Manifest.Origin.INSTALL,
        )
        Pin.objects.filter(shard_id=shard_id).delete()
        ShardHead.objects.filter(pk=shard_id).update(
            term=position.term,
            last_seq=position.seq,
            manifest=manifest.number,
            manifest_seq=manifest.seq,
            tail_bytes=kept.tail_bytes,
            incarnation=F("incarnation") + 1,
            damage=None,
            index_faults={},
            **_promise(head, offer),
        )
    return position


def _promise(head: log.Head, offer: SyncOffer) -> Mapping[str, int | str]:
    if offer.head.term <= head.promised_term:
        return {}
    return {"promised_term": offer.head.term, "voted_for": ""}


def _reported(installed: Installed, seen: log.Head) -> Installed:
    if installed.set_aside is not None or installed.segments is not None:
        logger.warning(
            "sync_set_aside shard=%s last_term=%d last_seq=%d entries=%s segments=%s",
            seen.label,
            *seen.position,
            None if installed.set_aside is None else installed.set_aside.path,
            installed.segments,
        )
    return installed


def _clean(shard_id: int, manifest: ManifestRecord, lease: Lease) -> None:
    try:
        clean(ShardHead.objects.get(pk=shard_id), manifest, lease)
    except (MLVectorDBError, DatabaseError, OSError):
        # The copy is installed: what is left over goes with its next checkpoint.
        logger.warning("sync_clean_failed shard_id=%d", shard_id, exc_info=True)
