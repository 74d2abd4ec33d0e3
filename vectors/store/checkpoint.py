"""Checkpoints: turn the tail of a shard into segments, merge small segments, prune the log.

Preconditions: the maintenance lease. Steps, each safe to lose to a crash:
1. open the shard from its manifest and replay the tail: the state up to seq S;
2. write a segment of the tail's living rows, merged with older segments where size tiers ask for it, and a file of
   deletions for every other segment that lost rows: new names, fsynced, so that no reader sees them yet;
3. in one transaction check lease, manifest and incarnation, add the manifest of S and point the head at it;
4. remove log entries up to S, little by little, and files that neither this manifest nor the one before lists, as
   far as no pin holds them.
Afterwards every process notices the new manifest, maps it and drops the part of its tail that it covers.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from django.conf import settings
from django.db import transaction
from django.db.models import F

from vectors.engine.namespace import NamespaceEngine
from vectors.engine.parts import FrozenPart, Part
from vectors.errors import LeaseLost, ShardDamaged
from vectors.models import Manifest, ShardHead
from vectors.store import leases, recovery
from vectors.store.cleaning import clean
from vectors.store.faults import storage_faults
from vectors.store.manifests import ManifestRecord, NamespaceRecord, document_crc32, segment_directory
from vectors.store.segment_files import SegmentRecord, write_deleted, write_segment

logger = logging.getLogger(__name__)

_SMALLEST_TIER_BYTES = 4 * 1024 * 1024
_DEAD_SHARE = 0.3

# Shard → the manifest its tail was seen behind, and since when.
_tails_seen: dict[int, tuple[int, float]] = {}


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """What a checkpoint did."""

    shard: str
    seq: int
    manifest: int
    segments_written: int
    rows_written: int
    bytes_written: int
    took_s: float


def checkpoint_due(head: ShardHead, *, patience: float = 1.0) -> bool:
    """Whether a shard's tail is over the soft limit, or old enough for a checkpoint of any size.

    The age is what this process has seen of it on its monotonic clock: whoever looks again and again finds an old tail.
    `patience` is how many times MLVDB_CHECKPOINT_INTERVAL_S it may be.
    """
    if head.damage is not None or head.last_seq <= head.manifest_seq:
        _tails_seen.pop(head.pk, None)
        return False
    if head.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
        return True
    now = time.monotonic()
    manifest, since = _tails_seen.setdefault(head.pk, (head.manifest, now))
    if manifest != head.manifest:
        _tails_seen[head.pk] = (head.manifest, now)
        return False
    return now - since >= patience * settings.MLVDB_CHECKPOINT_INTERVAL_S


def checkpoint_run(shard_uid: str, *, owner: str) -> CheckpointResult | None:
    """Checkpoint one shard now; None when another process holds the lease or there is nothing to write.

    Raise ShardDamaged for a shard with damage, WrongNode, StorageFull and the like; then the shard is as before.
    """
    head = ShardHead.objects.get(uid=shard_uid)
    recovery.check_node(head.pk)
    if head.damage is not None:
        raise ShardDamaged(f"shard {head.label} has lost data; its tail is kept as it is", detail=head.damage)
    lease = leases.take_lease(leases.checkpoint_lease(head.pk), owner)
    if lease is None:
        return None
    with lease, storage_faults():
        return _run(head, lease)


def _run(head: ShardHead, lease: leases.Lease) -> CheckpointResult | None:
    started = time.monotonic()
    opened = recovery.open_shard(head.pk)
    if opened.damage:
        raise ShardDamaged(f"shard {head.label} has lost data; its tail is kept as it is", detail=opened.damage)
    if opened.engine.seq == opened.manifest.seq:
        clean(head, opened.manifest, lease)
        return None
    writer = _Writer(opened, lease.token)
    try:
        manifest = writer.write()
        _commit(head, opened, manifest, lease)
    except BaseException:
        writer.discard()
        raise
    clean(head, manifest, lease)
    result = CheckpointResult(
        shard=head.label,
        seq=manifest.seq,
        manifest=manifest.number,
        segments_written=len(writer.written),
        rows_written=sum(record.rows for _, record in writer.written),
        bytes_written=sum(record.size_bytes for _, record in writer.written),
        took_s=time.monotonic() - started,
    )
    logger.info(
        "checkpoint shard=%s seq=%d manifest=%d segments=%d rows=%d bytes=%d took_s=%.3f",
        result.shard,
        result.seq,
        result.manifest,
        result.segments_written,
        result.rows_written,
        result.bytes_written,
        result.took_s,
    )
    return result


class _Writer:
    """Writes the segments of one checkpoint, and can take them back."""

    def __init__(self, opened: recovery.OpenShard, token: int) -> None:
        self._opened = opened
        self._token = token
        self.written: list[tuple[str, SegmentRecord]] = []

    def write(self) -> ManifestRecord:
        """Write what is new and return the manifest that lists it."""
        opened = self._opened
        namespaces = {}
        for namespace in opened.engine.namespaces():
            uid = namespace.spec.uid
            before = opened.manifest.namespaces.get(uid)
            records = {} if before is None else {record.uid: record for record in before.segments}
            namespaces[uid] = NamespaceRecord(namespace.spec, self._write_namespace(namespace, records))
        return ManifestRecord(opened.manifest.number + 1, opened.engine.seq, opened.engine.term, namespaces)

    def discard(self) -> None:
        """Remove the segments written; files of deletions go with the next clean-up."""
        for namespace_uid, record in self.written:
            shutil.rmtree(segment_directory(self._opened.head.uid, namespace_uid) / record.uid, ignore_errors=True)

    def _write_namespace(
        self, namespace: NamespaceEngine, records: dict[str, SegmentRecord]
    ) -> Sequence[SegmentRecord]:
        merging = _choose_merge(namespace)
        kept = [
            self._with_deletions(namespace, part, records[part.uid])
            for part in namespace.frozen
            if part not in merging and part.alive
        ]
        sources: list[Part] = [*merging, *namespace.tail]
        rows = _rows_in_key_order(sources)
        if rows:
            directory = segment_directory(self._opened.head.uid, namespace.spec.uid)
            record = write_segment(directory, rows=rows, dimension=namespace.spec.dimension, token=self._token)
            self.written.append((namespace.spec.uid, record))
            kept.append(record)
        return kept

    def _with_deletions(self, namespace: NamespaceEngine, part: FrozenPart, record: SegmentRecord) -> SegmentRecord:
        if part.dead == record.deleted_rows:
            return record
        directory = segment_directory(self._opened.head.uid, namespace.spec.uid) / record.uid
        name, stamp = write_deleted(directory, seq=self._opened.engine.seq, deleted=~part.living, token=self._token)
        return SegmentRecord(record.uid, record.rows, record.dimension, record.files, name, stamp, part.dead)


def _choose_merge(namespace: NamespaceEngine) -> list[FrozenPart]:
    """Return the segments to merge with the tail: full size tiers from the smallest up, and those with many dead rows.

    Tiers grow by MLVDB_SEGMENT_TIER, so a row is rewritten about log(n) times and a tier holds fewer segments than
    that.
    """
    factor = settings.MLVDB_SEGMENT_TIER
    row_bytes = 4 * namespace.spec.dimension + 64

    def tier(size: int) -> int:
        return 0 if size <= _SMALLEST_TIER_BYTES else math.floor(math.log(size / _SMALLEST_TIER_BYTES, factor)) + 1

    small = [part for part in namespace.frozen if part.alive * row_bytes <= settings.MLVDB_SEGMENT_MAX_BYTES]
    merging = [part for part in small if part.dead > _DEAD_SHARE * part.rows]
    size = namespace.tail_alive * row_bytes + sum(part.alive * row_bytes for part in merging)
    while size:
        same = [part for part in small if part not in merging and tier(part.alive * row_bytes) <= tier(size)]
        if len(same) + 1 < factor:
            break
        merging.extend(same)
        size += sum(part.alive * row_bytes for part in same)
    return merging


def _rows_in_key_order(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    rows = [(part.keys[row], part, row) for part in parts for row in np.flatnonzero(part.living).tolist()]
    rows.sort(key=lambda item: item[0])
    return [(part, row) for _, part, row in rows]


def _commit(head: ShardHead, opened: recovery.OpenShard, manifest: ManifestRecord, lease: leases.Lease) -> None:
    document = manifest.to_document()
    with transaction.atomic(durable=True):
        lease.check()
        moved = ShardHead.objects.filter(
            pk=head.pk, manifest=opened.manifest.number, incarnation=opened.head.incarnation
        ).update(manifest=manifest.number, manifest_seq=manifest.seq, tail_bytes=F("tail_bytes") - opened.log_bytes)
        if not moved:
            raise LeaseLost(f"shard {head.label} changed under its checkpoint")
        Manifest.objects.create(
            shard_id=head.pk,
            number=manifest.number,
            seq=manifest.seq,
            term=manifest.term,
            document=document,
            crc32=document_crc32(document),
        )
