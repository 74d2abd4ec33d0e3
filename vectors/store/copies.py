"""Making a copy of another node's shard on this node, which has to be empty for it.

The shard that a node makes for itself on first use goes: what nobody has written to is no loss. Files of copies that
are gone are removed afterwards, and by the next call where a crash came in between.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from typing import NamedTuple

from django.conf import settings
from django.db import transaction

from vectors.engine.operations import Kind
from vectors.errors import NotEmpty
from vectors.models import LogEntry, Manifest, Namespace, ShardHead
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults
from vectors.store.file_lock import file_locked

logger = logging.getLogger(__name__)


class Contents(NamedTuple):
    """Living namespaces of a copy, and at most how many rows they have: counted without opening it."""

    namespaces: list[str]
    rows: int


@storage_faults()
def copy_create(uid: str, label: str) -> ShardHead:
    """Return this node's copy of the shard `uid`, made as a replica when there is none; its own empty shards go.

    A copy that is there stays what it is. Raise NotEmpty when a shard of this node's own has namespaces.
    """
    # No copy is made while files are removed: it could be of the uid whose files these are.
    lock = settings.NODE_FILES.root / "copies.lock"
    with file_locked(lock, fcntl.LOCK_EX, timeout_s=settings.MLVDB_DATABASE_TIMEOUT_S):
        with writers_in_line(), transaction.atomic(durable=True):
            copy = ShardHead.objects.filter(uid=uid).first()
            if copy is None:
                _drop_own_empty_shards()
                copy = ShardHead.objects.create(uid=uid, label=_free_label(label, uid), is_primary=False)
                logger.info("copy_created shard=%s uid=%s", copy.label, uid)
        _remove_files_of_the_gone()
    return copy


@storage_faults()
def copy_is_empty(shard_id: int) -> bool:
    """Return whether a copy has no living namespace, and so no rows."""
    return not Namespace.objects.filter(shard_id=shard_id, dropped_at__isnull=True).exists()


@storage_faults()
def copy_contents(shard_id: int) -> Contents:
    """Return what a copy holds, from its manifest and its log. Rows written twice are counted twice."""
    alive = dict(
        Namespace.objects.filter(shard_id=shard_id, dropped_at__isnull=True).order_by("name").values_list("uid", "name")
    )
    head = ShardHead.objects.get(pk=shard_id)
    rows = 0
    for document in Manifest.objects.filter(shard_id=shard_id, number=head.manifest).values_list("document", flat=True):
        for uid, namespace in document["namespaces"].items():
            if uid in alive:
                rows += sum(item["rows"] - (item["deleted"] or (None, 0, 0, 0))[3] for item in namespace["segments"])
    written = LogEntry.objects.filter(shard_id=shard_id, seq__gt=head.manifest_seq, kind=Kind.UPSERT)
    rows += sum(written.filter(namespace__in=list(alive)).values_list("rows", flat=True))
    return Contents(list(alive.values()), rows)


def _drop_own_empty_shards() -> None:
    for head in ShardHead.objects.select_for_update().filter(is_primary=True):
        if not copy_is_empty(head.pk):
            contents = copy_contents(head.pk)
            raise NotEmpty(
                f"this node holds data of its own: shard {head.label} has {len(contents.namespaces)} namespaces with"
                f" at most {contents.rows} rows; only an empty node can become a replica",
                detail={"shard": head.label, "rows": contents.rows, "namespaces": contents.namespaces[:20]},
            )
        logger.warning("empty_shard_dropped shard=%s uid=%s", head.label, head.uid)
        head.delete()


def _free_label(label: str, uid: str) -> str:
    return f"{label[:119]}-{uid[:8]}" if ShardHead.objects.filter(label=label).exists() else label


def _remove_files_of_the_gone() -> None:
    roots = (settings.NODE_FILES.segments, settings.NODE_FILES.staging)
    found = [path for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()]
    known = set(ShardHead.objects.values_list("uid", flat=True))
    for path in found:
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)
