"""Namespaces as the registry of a sharded cluster has them, in one shard copy: taken in, changed and ended by uid.

Their uids are made elsewhere, one for all shards. A uid that was ended here never comes back, also where it was ended
before its first row came: that is what refuses a row that was on its way for longer than its namespace lived. Nor does
one that is older than the living one of its name: its own end may only come in later, and the registry, which has one
of a name at a time, must have ended it before it made the other.
"""

from __future__ import annotations

import zlib

from django.utils import timezone

from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import NamespaceDrop, NamespacePut, encode
from vectors.errors import Conflict
from vectors.models import Namespace
from vectors.namespace_uids import is_later
from vectors.recall.requests import target_changed
from vectors.store.log import OpenLog
from vectors.store.namespace_rows import namespace_ended


def namespace_adopt(open_log: OpenLog, spec: NamespaceSpec, *, changes: bool = False) -> bool:
    """Have a namespace here, row and log entry, in an append transaction; return False when it has ended.

    An older one of its name that still lives here is what a drop left behind, and ends. `changes` also takes over what
    a namespace may change. Raise Conflict for another name, dimension or metric than the uid has here, and where
    another one of its name lives here and their uids do not say which is older.
    """
    shard_id = open_log.head.shard_id
    row = Namespace.objects.filter(shard_id=shard_id, uid=spec.uid).first()
    if row is not None and row.dropped_at is not None:
        return False
    if row is not None:
        if (row.name, row.dimension, row.metric) != (spec.name, spec.dimension, spec.metric):
            raise Conflict(
                f"namespace {spec.name} ({spec.uid}) is here as {row.name} of dimension {row.dimension}, {row.metric}",
                detail={"namespace": spec.name, "uid": spec.uid},
            )
        if not changes or (row.recall_target, row.picture) == (spec.recall_target, spec.picture):
            return True
        before = row.recall_target
    else:
        for other in Namespace.objects.filter(shard_id=shard_id, name=spec.name, dropped_at__isnull=True):
            is_newer = is_later(spec.uid, other.uid)
            if is_newer is None:
                raise Conflict(
                    f"another namespace {spec.name} ({other.uid}) is here, and which is the older one cannot be told",
                    detail={"namespace": spec.name, "uid": spec.uid, "other_uid": other.uid},
                )
            if not is_newer:
                return False
            _end(open_log, other)
        before = spec.recall_target
        row = Namespace(shard_id=shard_id, uid=spec.uid, name=spec.name, dimension=spec.dimension, metric=spec.metric)
    row.recall_target, row.picture = spec.recall_target, spec.picture
    row.save()
    target_changed(row, before=before)
    put = NamespacePut(row.name, row.dimension, row.metric, row.recall_target, row.picture)
    payload = encode(put)
    open_log.add(row.uid, put.kind, put.rows, payload, zlib.crc32(payload))
    return True


def namespace_end(open_log: OpenLog, uid: str) -> bool:
    """End a namespace for good, also one that has never been here; return False when it was ended before."""
    shard_id = open_log.head.shard_id
    row = Namespace.objects.filter(shard_id=shard_id, uid=uid).first()
    if row is not None and row.dropped_at is not None:
        return False
    _end(open_log, namespace_ended(shard_id, uid) if row is None else row)
    return True


def _end(open_log: OpenLog, row: Namespace) -> None:
    row.dropped_at = timezone.now()
    row.save()
    drop = NamespaceDrop()
    payload = encode(drop)
    open_log.add(row.uid, drop.kind, drop.rows, payload, zlib.crc32(payload))
