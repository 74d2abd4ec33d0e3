"""The namespace rows of a copy that others' entries fill: they follow the log, in the transaction that changes it.

On the primary `vectors.services` writes row and entry together; a copy that receives entries, cuts them back or is
filled from a manifest makes its rows from those. A dropped uid never returns; its name may.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from django.utils import timezone

from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Kind, NamespaceDrop, NamespacePut, Operation
from vectors.errors import CorruptRecord
from vectors.models import LogEntry, Namespace
from vectors.recall.requests import target_changed
from vectors.store.log import Entry

_CHANGES = (Kind.NAMESPACE_PUT, Kind.NAMESPACE_DROP)
_ROWS_AT_ONCE = 500


def namespace_follow(shard_id: int, entry: Entry, operation: Operation) -> None:
    """Apply one entry to the rows; entries of other kinds than put and drop change nothing.

    Raise CorruptRecord for a put under a name that another namespace has: no primary writes such a log.
    """
    if isinstance(operation, NamespaceDrop):
        dropped = Namespace.objects.filter(shard_id=shard_id, uid=entry.namespace)
        if not dropped.filter(dropped_at__isnull=True).update(dropped_at=timezone.now()) and not dropped.exists():
            namespace_ended(shard_id, entry.namespace).save()
    elif isinstance(operation, NamespacePut):
        row = Namespace.objects.filter(shard_id=shard_id, uid=entry.namespace).first()
        if row is not None and row.dropped_at is not None:
            return
        same_name = Namespace.objects.filter(shard_id=shard_id, name=operation.name, dropped_at__isnull=True)
        if same_name.exclude(uid=entry.namespace).exists():
            raise CorruptRecord(
                f"log entry {entry.seq} makes a second namespace {operation.name} of this copy", seq=entry.seq
            )
        known = None if row is None else _spec_of(row)
        _write(shard_id, row, _after_put(entry.namespace, known, operation))


def namespace_ended(shard_id: int, uid: str) -> Namespace:
    """Return a row, not saved yet, for a uid that has ended here before anything was known of it."""
    return Namespace(shard_id=shard_id, uid=uid, name=uid, dimension=1, dropped_at=timezone.now())


def namespaces_alive(shard_id: int) -> list[NamespaceSpec]:
    """Return the living namespaces of a copy as its rows have them, in order of their names."""
    return [_spec_of(row) for row in Namespace.objects.filter(shard_id=shard_id, dropped_at__isnull=True)]


def namespaces_at(
    shard_id: int, before: Mapping[str, NamespaceSpec], *, after_seq: int, through: int
) -> dict[str, NamespaceSpec]:
    """Return the living namespaces by uid at seq `through`: those of `before`, at `after_seq`, and the entries between.

    Raise CorruptRecord for an entry that cannot be read.
    """
    alive = dict(before)
    changes = LogEntry.objects.filter(shard_id=shard_id, seq__gt=after_seq, seq__lte=through, kind__in=_CHANGES)
    columns = ("seq", "term", "namespace", "kind", "payload", "crc32")
    for seq, term, uid, kind, payload, crc32 in changes.order_by("seq").values_list(*columns):
        operation = Entry(seq, term, uid, kind, bytes(payload), crc32).operation()
        if isinstance(operation, NamespacePut):
            alive[uid] = _after_put(uid, alive.get(uid), operation)
        else:
            alive.pop(uid, None)
    return alive


def namespaces_changed_after(shard_id: int, seq: int) -> set[str]:
    """Return the uids of the namespaces that entries after `seq` make, change or end."""
    changes = LogEntry.objects.filter(shard_id=shard_id, seq__gt=seq, kind__in=_CHANGES)
    return set(changes.order_by().values_list("namespace", flat=True))


def namespaces_rebuild(
    shard_id: int, alive: Mapping[str, NamespaceSpec], *, forget: Collection[str] | None = None
) -> None:
    """Make `alive` the living namespaces of a copy, in the transaction that cuts its log or fills it anew.

    All other living rows go, and dropped ones whose uid is in `forget` (None: every one): what made them is in the log
    no more, and may come again.
    """
    rows = {row.uid: row for row in Namespace.objects.filter(shard_id=shard_id)}
    doomed = [
        row.pk
        for uid, row in rows.items()
        if uid not in alive and (row.dropped_at is None or forget is None or uid in forget)
    ]
    for start in range(0, len(doomed), _ROWS_AT_ONCE):
        Namespace.objects.filter(pk__in=doomed[start : start + _ROWS_AT_ONCE]).delete()
    for uid, spec in alive.items():
        row = rows.get(uid)
        if row is None or row.dropped_at is not None or _spec_of(row) != spec:
            _write(shard_id, row, spec)


def _after_put(uid: str, known: NamespaceSpec | None, put: NamespacePut) -> NamespaceSpec:
    spec = NamespaceSpec.of(uid, put)
    # As the engine does: dimension and metric are those of the first put.
    return spec if known is None else replace(spec, dimension=known.dimension, metric=known.metric)


def _spec_of(row: Namespace) -> NamespaceSpec:
    return NamespaceSpec(row.uid, row.name, row.dimension, row.metric, row.recall_target, row.picture)  # type: ignore[arg-type]


def _write(shard_id: int, row: Namespace | None, spec: NamespaceSpec) -> None:
    before = spec.recall_target if row is None else row.recall_target
    row = row or Namespace(shard_id=shard_id, uid=spec.uid)
    row.name, row.dimension, row.metric = spec.name, spec.dimension, spec.metric
    row.recall_target, row.picture, row.dropped_at = spec.recall_target, spec.picture, None
    row.save()
    target_changed(row, before=before)
