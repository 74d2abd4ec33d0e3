"""Checkpoints: turn the tail of a shard into a segment for each namespace, prune the log.

Quick, so that tails stay short: segments are merged and indexed by `merging`, beside checkpoints and searches.

Preconditions: the checkpoint lease. Steps, each safe to lose to a crash:
1. open the shard from its manifest and replay the tail: the state up to seq S;
2. write a segment of the tail's living rows, and a file of deletions for every older segment that lost rows: new names,
   fsynced, so that no reader sees them yet;
3. in one transaction check lease, manifest and incarnation, add the manifest of S and point the head at it;
4. remove log entries up to S, little by little, and files that neither this manifest nor the one before lists, as
   far as no pin holds them.
Afterwards every process notices the new manifest, maps it and drops the part of its tail that it covers.

A segment stays listed also when all of its rows are deleted: only a merge or a full sync takes segments from a
manifest, so a merge that finds its sources listed knows where each of their rows is.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import F

from vectors.engine.namespace import NamespaceEngine
from vectors.engine.parts import FrozenPart
from vectors.errors import CorruptSegment, LeaseLost, MLVectorDBError, ShardDamaged
from vectors.models import Manifest, ShardHead
from vectors.store import leases, recovery
from vectors.store.cleaning import clean
from vectors.store.faults import FULL, storage_faults
from vectors.store.manifests import (
    ManifestRecord,
    NamespaceRecord,
    document_crc32,
    read_manifest,
    segment_directory,
)
from vectors.store.merge_plan import Tiers
from vectors.store.row_order import RowOrder
from vectors.store.segment_files import CheckedFiles, SegmentRecord
from vectors.store.segment_writing import write_deleted, write_segment

logger = logging.getLogger(__name__)

_checked = CheckedFiles()
_REST_S = 1.0
_MOST_SEGMENTS = 128


class _Tail(NamedTuple):
    """A tail behind `covered` as this process has seen it since `since`, and its last entry since `still_since`."""

    covered: int
    since: float
    last_seq: int
    still_since: float


_tails_seen: dict[int, _Tail] = {}


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
    """Whether a shard's tail is over the soft limit, or beyond MLVDB_TAIL_REST_BYTES and at rest, or old enough for a
    checkpoint of any size.

    Age and rest are what this process has seen of it on its monotonic clock: whoever looks again and again finds an old
    tail. `patience` is how many times MLVDB_CHECKPOINT_INTERVAL_S it may be.
    """
    if head.damage is not None or head.last_seq <= head.manifest_seq:
        _tails_seen.pop(head.pk, None)
        return False
    if head.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
        return True
    now = time.monotonic()
    tail = _tails_seen.get(head.pk)
    if tail is None or tail.covered != head.manifest_seq:
        tail = _Tail(head.manifest_seq, now, head.last_seq, now)
    elif tail.last_seq != head.last_seq:
        tail = tail._replace(last_seq=head.last_seq, still_since=now)
    _tails_seen[head.pk] = tail
    if head.tail_bytes > settings.MLVDB_TAIL_REST_BYTES and now - tail.still_since >= patience * _REST_S:
        return True
    return now - tail.since >= patience * settings.MLVDB_CHECKPOINT_INTERVAL_S


def is_crowded(head: ShardHead) -> bool:
    """Whether a namespace has so many segments that merges have to come first: each takes descriptors and time.

    Then the tail grows to its hard limit, and writers are told to wait, until merges have caught up.
    """
    try:
        manifest = read_manifest(head.pk, head.manifest)
    except (CorruptSegment, Manifest.DoesNotExist):
        return False
    tiers = Tiers(settings.MLVDB_SEGMENT_TIER, settings.MLVDB_SEGMENT_MAX_BYTES)
    spaces = [record.segments for record in manifest.namespaces.values()]
    return any(len(segments) >= _MOST_SEGMENTS and tiers.to_merge(segments) for segments in spaces)


def checkpoint_run(shard_uid: str, *, owner: str) -> CheckpointResult | None:
    """Checkpoint one shard now; None when another process holds the lease, there is nothing to write, or merges have
    to come first.

    Raise ShardDamaged for a shard with damage, WrongNode, StorageFull and the like; then the shard is as before.
    """
    head = ShardHead.objects.get(uid=shard_uid)
    recovery.check_node(head.pk)
    if head.damage is not None:
        raise ShardDamaged(f"shard {head.label} has lost data; its tail is kept as it is", detail=head.damage)
    if is_crowded(head):
        logger.warning("checkpoint_waits_for_merges shard=%s tail_bytes=%d", head.label, head.tail_bytes)
        return None
    lease = leases.take_lease(leases.checkpoint_lease(head.pk), owner)
    if lease is None:
        return None
    with lease, storage_faults():
        return _run(head, lease)


def _run(head: ShardHead, lease: leases.Lease) -> CheckpointResult | None:
    started = time.monotonic()
    opened = recovery.open_shard(head.pk, checked=_checked)
    if opened.damage:
        raise ShardDamaged(f"shard {head.label} has lost data; its tail is kept as it is", detail=opened.damage)
    if opened.engine.seq == opened.manifest.seq:
        clean(head, opened.manifest, lease)
        return None
    writer = _Writer(opened, lease.token)
    try:
        manifest = writer.write()
    except BaseException as error:
        writer.discard()
        if isinstance(error, OSError) and error.errno in FULL:
            _make_room(head, opened.manifest, lease)
        raise
    rows_written = sum(record.rows for _, record in writer.written)
    try:
        _commit(head, opened, manifest, lease, rows_written)
    except LeaseLost:
        writer.discard()
        raise
    # What else may fail says nothing of whether it was committed: then the files stay for the next cleaner to judge.
    clean(head, manifest, lease)
    result = CheckpointResult(
        shard=head.label,
        seq=manifest.seq,
        manifest=manifest.number,
        segments_written=len(writer.written),
        rows_written=rows_written,
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
        kept = [self._with_deletions(namespace, part, records[part.uid]) for part in namespace.frozen]
        rows = RowOrder(namespace.tail)
        if len(rows):
            directory = segment_directory(self._opened.head.uid, namespace.spec.uid)
            record = write_segment(
                directory,
                rows=rows,
                dimension=namespace.spec.dimension,
                token=self._token,
                with_columns=len(rows) >= settings.MLVDB_INDEX_MIN_ROWS,
            )
            self.written.append((namespace.spec.uid, record))
            kept.append(record)
        return kept

    def _with_deletions(self, namespace: NamespaceEngine, part: FrozenPart, record: SegmentRecord) -> SegmentRecord:
        if part.dead == record.deleted_rows:
            return record
        directory = segment_directory(self._opened.head.uid, namespace.spec.uid) / record.uid
        name, stamp = write_deleted(directory, seq=self._opened.engine.seq, deleted=~part.living, token=self._token)
        return replace(record, deleted=name, deleted_stamp=stamp, deleted_rows=part.dead)


def _make_room(head: ShardHead, manifest: ManifestRecord, lease: leases.Lease) -> None:
    """Remove what nobody needs: killed writers may have left what fills the disk, and no checkpoint gets to its end."""
    try:
        clean(head, manifest, lease)
    except (MLVectorDBError, DatabaseError, OSError):
        logger.warning("full_disk_not_cleaned shard=%s", head.label, exc_info=True)


def _commit(
    head: ShardHead, opened: recovery.OpenShard, manifest: ManifestRecord, lease: leases.Lease, rows_written: int
) -> None:
    document = manifest.to_document()
    with transaction.atomic(durable=True):
        lease.check()
        moved = ShardHead.objects.filter(
            pk=head.pk, manifest=opened.manifest.number, incarnation=opened.head.incarnation
        ).update(
            manifest=manifest.number,
            manifest_seq=manifest.seq,
            tail_bytes=F("tail_bytes") - opened.log_bytes,
            rows_flushed=F("rows_flushed") + rows_written,
        )
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
