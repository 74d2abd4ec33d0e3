"""How what a merge has written gets listed: under both leases, if its sources still are where they were."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from django.core.exceptions import ObjectDoesNotExist
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from django.utils import timezone

from vectors.errors import LeaseLost, MLVectorDBError, ShardDamaged, StorageBusy
from vectors.models import Manifest, ShardHead
from vectors.store import leases, log
from vectors.store.append_lock import writers_in_line
from vectors.store.cleaning import clean
from vectors.store.faults import storage_faults
from vectors.store.index_files import faults_left
from vectors.store.manifests import ManifestRecord, NamespaceRecord, document_crc32, read_manifest
from vectors.store.segment_files import SegmentRecord

logger = logging.getLogger(__name__)

_LEASE_WAIT_S = 60.0
_LOOK_EVERY_S = 0.1
_ATTEMPTS = 5


class StepVoid(Exception):
    """Raised when the manifest is no longer one that a step was made for; nothing was committed."""


class Change:
    """What a step changes of a namespace's segments."""

    origin: Manifest.Origin
    namespace: str
    rows: int

    def segments(self, manifest: ManifestRecord, listed: Sequence[SegmentRecord]) -> Sequence[SegmentRecord]:
        """Return the segments as they are to be listed after `manifest`, where they are `listed` now.

        May write files. Raise StepVoid, and CorruptSegment and the like.
        """
        raise NotImplementedError


def newest(shard_id: int) -> tuple[log.Head, ManifestRecord]:
    """Return the head of a shard and its manifest.

    Raise ShardDamaged for one that has lost data, LeaseLost for one that is gone, StorageBusy.
    """
    for _attempt in range(_ATTEMPTS):
        head = log.read_head(shard_id)
        if head is None:
            raise LeaseLost(f"shard copy {shard_id} is not on this node any more")
        if head.damage is not None:
            raise ShardDamaged(f"shard {head.label} has lost data; its segments are kept as they are")
        try:
            return head, read_manifest(shard_id, head.manifest)
        except Manifest.DoesNotExist:
            # Newer ones came between.
            continue
    raise StorageBusy("manifests change faster than they are read", retry_after_s=1)


def commit(shard_id: int, lease: leases.Lease, change: Change) -> None:
    """List what was written, then remove what is listed no more.

    Raise StepVoid, or an MLVectorDBError (LeaseLost, ShardDamaged, CorruptSegment, StorageFull, …): then surely nothing
    was committed. What else is raised, a database that failed say, does not tell; the files must stay for a cleaner to
    judge.
    """
    # The work took its time: a connection that was cut meanwhile is found out now rather than at the commit.
    if not connection.in_atomic_block:
        connection.close()
    with _checkpoint_lease(shard_id, lease.owner) as checkpoint:
        with storage_faults():
            head, before = newest(shard_id)
            space = before.namespaces.get(change.namespace)
            if space is None:
                raise StepVoid("the namespace has ended")
            segments = change.segments(before, space.segments)
        namespaces = {**before.namespaces, change.namespace: NamespaceRecord(space.spec, segments)}
        manifest = ManifestRecord(before.number + 1, before.seq, before.term, namespaces)
        with writers_in_line(), transaction.atomic(durable=True):
            lease.check()
            checkpoint.check()
            _list(head, manifest, change)
        try:
            clean(ShardHead.objects.get(pk=shard_id), manifest, checkpoint)
        except (MLVectorDBError, DatabaseError, ObjectDoesNotExist, OSError):
            # It is committed: what is left over goes with the next cleaning.
            logger.warning("merge_clean_failed shard=%s", head.label, exc_info=True)


def same_segments(listed: Sequence[SegmentRecord], sources: Sequence[SegmentRecord]) -> list[SegmentRecord]:
    """Return the sources of a step as they are listed now; raise StepVoid when one of them is not."""
    by_uid = {segment.uid: segment for segment in listed}
    found = []
    for source in sources:
        now = by_uid.get(source.uid)
        if now is None or now.files != source.files:
            raise StepVoid(f"segment {source.uid} is not listed any more")
        found.append(now)
    return found


def _checkpoint_lease(shard_id: int, owner: str) -> leases.Lease:
    """Take the checkpoint lease, waiting for a checkpoint that is at work. Raise StorageBusy."""
    deadline = time.monotonic() + _LEASE_WAIT_S
    while True:
        lease = leases.take_lease(leases.checkpoint_lease(shard_id), owner)
        if lease is not None:
            return lease
        if time.monotonic() > deadline:
            raise StorageBusy("checkpoints leave no room for a merge to commit", retry_after_s=1)
        time.sleep(_LOOK_EVERY_S)


def _list(head: log.Head, manifest: ManifestRecord, change: Change) -> None:
    """Put the head on a manifest, in the caller's transaction; raise LeaseLost when it is not what was seen of it."""
    shard_id = head.shard_id
    faults = ShardHead.objects.values_list("index_faults", flat=True).filter(pk=shard_id).first() or {}
    moved = ShardHead.objects.filter(
        pk=shard_id, manifest=head.manifest, incarnation=head.incarnation, damage__isnull=True
    ).update(
        manifest=manifest.number,
        rows_merged=F("rows_merged") + change.rows,
        merged_at=timezone.now(),
        index_faults=faults_left(faults, manifest),
    )
    if not moved:
        raise LeaseLost(f"shard {head.label} changed under its merge")
    document = manifest.to_document()
    installed = Manifest.objects.get(shard_id=shard_id, number=head.manifest).document.get("installed")
    if installed is not None:
        # The state is the one that was installed: a sender that asks again is to hear so.
        document["installed"] = installed
    Manifest.objects.create(
        shard_id=shard_id,
        number=manifest.number,
        seq=manifest.seq,
        term=manifest.term,
        document=document,
        crc32=document_crc32(document),
        origin=change.origin,
    )
