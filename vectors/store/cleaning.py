"""Removing what no reader needs after a checkpoint or an install: covered log entries, older manifests, their files.

Pins hold entries and manifests back. Every step checks the lease in its own transaction, since whoever took it over
may have filled the log anew; files are removed only where a lease before this one wrote them, since what a successor
has written is not listed yet, and of merges only what those wrote that are over (`leases.tokens_over`). Changes of
slots that held only before the oldest entry and manifest left go with them.
"""

from __future__ import annotations

import logging

from django.conf import settings
from django.db import transaction
from django.db.models import Min

from vectors.errors import LeaseLost
from vectors.models import LogEntry, Manifest, ShardHead
from vectors.store import leases, staging
from vectors.store.append_lock import writers_in_line
from vectors.store.manifests import ManifestRecord, read_manifest, segment_directory
from vectors.store.pins import pins_floor
from vectors.store.segment_files import remove_unlisted
from vectors.store.slot_rows import slots_prune
from vectors.store.statements import every, one

logger = logging.getLogger(__name__)

_CHECKPOINTS_KEPT = 2
_MOST_MANIFESTS_KEPT = 8
_OLDEST_SIZES = (
    "SELECT seq, length(payload) FROM vectors_logentry WHERE shard_id = %s AND seq <= %s ORDER BY seq LIMIT 1000"
)
_NEWEST_BEYOND = (
    "SELECT max(seq) FROM (SELECT seq, sum(length(payload)) OVER (ORDER BY seq DESC) AS held FROM vectors_logentry"
    " WHERE shard_id = %s AND seq > %s AND seq <= %s) AS sizes WHERE held > %s"
)
_DELETE = "DELETE FROM vectors_logentry WHERE shard_id = %s AND seq <= %s"


def clean(head: ShardHead, manifest: ManifestRecord, lease: leases.Lease) -> None:
    """Remove what neither pins nor the newest manifests up to `manifest` need.

    What a manifest lists is kept until two checkpoints later, since a process may be opening it now, or a person
    copying its files; merges and indexes in between count only where there are many. Stops where the lease is lost: its
    new holder cleans up.
    """
    try:
        prune_log(head.pk, manifest.seq, lease)
        with writers_in_line(), transaction.atomic(durable=True):
            # A pin is set under the head's lock: what is not pinned now will not be.
            ShardHead.objects.select_for_update().get(pk=head.pk)
            lease.check()
            older = Manifest.objects.filter(shard_id=head.pk, number__lt=_oldest_kept(head.pk, manifest.number))
            older.exclude(number__in=pins_floor(head.pk).manifests).delete()
            slots_prune(head.pk, _oldest_asked(head.pk))
    except LeaseLost:
        logger.info("cleaning_left_to_another shard=%s manifest=%d", head.label, manifest.number)
        return
    is_over = leases.tokens_over(head.pk, lease)
    listed: dict[str, dict[str, set[str]]] = {}
    for number in Manifest.objects.filter(shard_id=head.pk).values_list("number", flat=True):
        for uid, record in read_manifest(head.pk, number).namespaces.items():
            segments = listed.setdefault(uid, {})
            for segment in record.segments:
                beside = {segment.deleted, None if segment.index is None else segment.index.name}
                segments.setdefault(segment.uid, set()).update(name for name in beside if name is not None)
    root = segment_directory(head.uid, "").resolve()
    if root.is_dir():
        for directory in root.iterdir():
            remove_unlisted(directory, keep=listed.get(directory.name, {}), is_over=is_over)
    staging.clear_unneeded(head)


def prune_log(shard_id: int, through: int, lease: leases.Lease) -> None:
    """Remove log entries up to seq `through`, except what pins hold: of that the newest MLVDB_LOG_RETENTION_BYTES.

    Raise LeaseLost.
    """
    beyond: int | None = None
    while True:
        # Asked before each step: a pin may have been set or have expired meanwhile.
        floor = pins_floor(shard_id).seq
        removable = through
        if floor is not None and floor < through:
            if beyond is None:
                parameters = (shard_id, floor, through, settings.MLVDB_LOG_RETENTION_BYTES)
                beyond = (one(_NEWEST_BEYOND, parameters) or (None,))[0] or 0
            removable = max(floor, beyond)
        last = _last_of_step(shard_id, removable)
        if last is None:
            return
        with writers_in_line(), transaction.atomic(durable=True):
            lease.check()
            one(_DELETE, (shard_id, last))


def _oldest_kept(shard_id: int, newest: int) -> int:
    """Return the number of the oldest manifest that is kept whether it is pinned or not."""
    rows = Manifest.objects.filter(shard_id=shard_id, number__lte=newest).order_by("-number")
    checkpoints, oldest = 0, newest
    for number, origin in rows.values_list("number", "origin")[:_MOST_MANIFESTS_KEPT]:
        oldest = number
        checkpoints += origin in (Manifest.Origin.CHECKPOINT, Manifest.Origin.INSTALL)
        if checkpoints == _CHECKPOINTS_KEPT:
            break
    return oldest


def _oldest_asked(shard_id: int) -> int:
    """Return the oldest seq at which a copy of this log may be opened, offered or cut: of a manifest, or of the log."""
    manifest = Manifest.objects.filter(shard_id=shard_id).aggregate(seq=Min("seq"))["seq"]
    entry = LogEntry.objects.filter(shard_id=shard_id).aggregate(seq=Min("seq"))["seq"]
    asked = [seq for seq in (manifest, None if entry is None else entry - 1) if seq is not None]
    return min(asked, default=0)


def _last_of_step(shard_id: int, through: int) -> int | None:
    """Return up to which seq the next transaction removes: a large one would hold the write lock against inserts."""
    last, total = None, 0
    for seq, size in every(_OLDEST_SIZES, (shard_id, through)):
        last, total = seq, total + size
        if total >= settings.MLVDB_LOG_PRUNE_BYTES:
            break
    return last
