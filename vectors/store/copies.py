"""Making and dropping shard copies of this node: of another node's shard as its replica, and of a new shard.

A node has to be empty to become a replica or a shard of others: the shard that it makes for itself on first use goes
then, for what nobody has written to is no loss. Files of copies that are gone are removed afterwards, and by the next
call where a crash came in between.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.conf import settings
from django.db import transaction

from vectors.engine.operations import Kind
from vectors.engine.slots import SlotSet
from vectors.errors import NotEmpty
from vectors.models import LogEntry, Manifest, Namespace, ShardHead
from vectors.store import leases, log
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
    with _copies_locked():
        with writers_in_line(), transaction.atomic(durable=True):
            copy = ShardHead.objects.filter(uid=uid).first()
            if copy is None:
                _drop_own_empty_shards("a replica")
                copy = ShardHead.objects.create(uid=uid, label=_free_label(label, uid), is_primary=False)
                logger.info("copy_created shard=%s uid=%s", copy.label, uid)
        _remove_files_of_the_gone()
    return copy


@storage_faults()
def shard_create(
    uid: str, label: str, *, writable: SlotSet | None = None, epoch: int = 0, drop_own: bool = False
) -> ShardHead:
    """Return this node's primary copy of the new shard `uid`, made when there is none; one that is there stays.

    With `writable` its log begins with an entry that says so, as decided at `epoch`: not even the first row may be one
    of other slots. `drop_own` drops the shard that this node made for itself. Raise NotEmpty when that has namespaces.
    """
    with _copies_locked():
        with writers_in_line(), transaction.atomic(durable=True):
            copy = ShardHead.objects.filter(uid=uid).first()
            if copy is None:
                if drop_own:
                    _drop_own_empty_shards("a shard of a cluster")
                copy = ShardHead.objects.create(uid=uid, label=_free_label(label, uid))
                if writable is not None:
                    with log.append_inside(copy.pk) as open_log:
                        open_log.set_slots(epoch, writable)
                logger.info("shard_created shard=%s uid=%s", copy.label, uid)
        _remove_files_of_the_gone()
    copy.refresh_from_db()
    return copy


@storage_faults()
def shard_drop(uid: str) -> None:
    """Remove this node's copy of a shard, rows and files; whose rows these are has been settled before.

    A copy that is not here is fine: its files go, if a crash has left some.
    """
    with _copies_locked():
        with writers_in_line(), transaction.atomic(durable=True):
            copy = ShardHead.objects.select_for_update().filter(uid=uid).first()
            if copy is not None:
                leases.leases_forget(copy.pk)
                copy.delete()
                logger.warning("shard_dropped shard=%s uid=%s", copy.label, uid)
        _remove_files_of_the_gone()


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


@contextmanager
def _copies_locked() -> Iterator[None]:
    # No copy is made while files are removed: it could be of the uid whose files these are.
    lock = settings.NODE_FILES.root / "copies.lock"
    with file_locked(lock, fcntl.LOCK_EX, timeout_s=settings.MLVDB_DATABASE_TIMEOUT_S):
        yield


def _drop_own_empty_shards(role: str) -> None:
    for head in ShardHead.objects.select_for_update().filter(is_primary=True):
        if not copy_is_empty(head.pk):
            contents = copy_contents(head.pk)
            raise NotEmpty(
                f"this node holds data of its own: shard {head.label} has {len(contents.namespaces)} namespaces with"
                f" at most {contents.rows} rows; only an empty node can become {role}",
                detail={"shard": head.label, "rows": contents.rows, "namespaces": contents.namespaces[:20]},
            )
        logger.info("empty_shard_dropped shard=%s uid=%s", head.label, head.uid)
        leases.leases_forget(head.pk)
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
