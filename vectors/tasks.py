"""Background work on this node's data: checkpoints, merges and measures of recall, on request and by schedule."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

from celery import shared_task

from vectors import measuring
from vectors.errors import MLVectorDBError, ShardDamaged
from vectors.models import ShardHead
from vectors.runtime import release_memory
from vectors.services import checkpoint_request, merge_request, recall_measure_request
from vectors.store.checkpoint import checkpoint_due, checkpoint_run
from vectors.store.merging import merge_due, merge_run

logger = logging.getLogger(__name__)

# After this a merge asks to be continued, so that those of other shards have their turn.
_MERGE_TIME_S = 300.0


def lease_owner() -> str:
    """Return how this process names itself in a lease."""
    return f"{socket.gethostname()}:{os.getpid()}"


@shared_task(name="vectors.tasks.checkpoint_shard")
def checkpoint_shard(shard_uid: str) -> None:
    """Checkpoint a shard whose tail is due; nothing to do is success."""
    head = ShardHead.objects.filter(uid=shard_uid).first()
    if head is not None and checkpoint_due(head):
        _checkpoint(head)


@shared_task(name="vectors.tasks.checkpoint_now")
def checkpoint_now(shard_uid: str) -> None:
    """Checkpoint a shard whose tail may be small and young: a person asked for it."""
    head = ShardHead.objects.filter(uid=shard_uid).first()
    if head is not None and head.last_seq > head.manifest_seq:
        _checkpoint(head)


@shared_task(name="vectors.tasks.checkpoint_rested")
def checkpoint_rested(shard_uid: str, seq: int) -> None:
    """Checkpoint a shard whose tail has been at rest with `seq` as its last entry."""
    head = ShardHead.objects.filter(uid=shard_uid).first()
    if head is not None and head.manifest_seq < seq:
        _checkpoint(head)


@shared_task(name="vectors.tasks.merge_shard")
def merge_shard(shard_uid: str) -> None:
    """Merge and index a shard's segments; nothing to do, or another merge at work, is success: the sweep comes by."""
    head = ShardHead.objects.filter(uid=shard_uid).first()
    if head is None or not merge_due(head):
        return
    try:
        result = merge_run(shard_uid, owner=lease_owner(), time_s=_MERGE_TIME_S)
    except MLVectorDBError as error:
        logger.warning("merge_failed shard=%s reason=%s", head.label, error.message)
        return
    finally:
        release_memory()
    if result is not None and result.indexed:
        recall_measure_request(shard_uid, result.indexed)
    if result is None:
        return
    if not result.is_done:
        merge_request(shard_uid)
    if result.steps:
        # Knocks of other shards came in vain meanwhile. Only after a step: for what waits for rest the sweep comes by.
        for other in ShardHead.objects.exclude(uid=shard_uid):
            if merge_due(other):
                merge_request(other.uid)


@shared_task(name="vectors.tasks.recall_measure")
def recall_measure() -> None:
    """Measure the recall of every namespace with an index."""
    for head in ShardHead.objects.all():
        _measure(head)


@shared_task(name="vectors.tasks.recall_measure_now")
def recall_measure_now(shard_uid: str, namespace_uids: list[str]) -> None:
    """Measure the recall of some namespaces: a person asked for it, or their indexes are new."""
    head = ShardHead.objects.filter(uid=shard_uid).first()
    if head is not None:
        _measure(head, only=namespace_uids)


@shared_task(name="vectors.tasks.checkpoint_sweep")
def checkpoint_sweep() -> None:
    """Checkpoint every shard that is due, and have merged what is to be merged: the net under lost knocks."""
    for head in ShardHead.objects.all():
        if checkpoint_due(head):
            checkpoint_shard(head.uid)
        elif merge_due(head):
            merge_request(head.uid)


def _checkpoint(head: ShardHead) -> None:
    try:
        result = checkpoint_run(head.uid, owner=lease_owner())
    except ShardDamaged as error:
        logger.warning("checkpoint_refused shard=%s reason=%s", head.label, error.message)
        return
    head.refresh_from_db()
    if result is not None and checkpoint_due(head):
        # What came meanwhile is beyond the limit already, and after a load's last write nobody else would ask for it.
        checkpoint_request(head.uid, if_due=True)
    if merge_due(head):
        merge_request(head.uid)


def _measure(head: ShardHead, *, only: Sequence[str] | None = None) -> None:
    try:
        measuring.recall_measure(head, owner=lease_owner(), only=only)
    except MLVectorDBError as error:
        # The other shards are measured all the same, and this one in the next round.
        logger.warning("recall_not_measured shard=%s reason=%s", head.label, error.message)
    finally:
        release_memory()
