"""Background work on this node's data: checkpoints, on request and by schedule."""

from __future__ import annotations

import logging
import os
import socket

from celery import shared_task

from vectors.errors import ShardDamaged
from vectors.models import ShardHead
from vectors.store.checkpoint import checkpoint_due, checkpoint_run

logger = logging.getLogger(__name__)


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


@shared_task(name="vectors.tasks.checkpoint_sweep")
def checkpoint_sweep() -> None:
    """Checkpoint every shard that is due: the net under lost knocks."""
    for head in ShardHead.objects.all():
        if checkpoint_due(head):
            checkpoint_shard(head.uid)


def _checkpoint(head: ShardHead) -> None:
    try:
        checkpoint_run(head.uid, owner=lease_owner())
    except ShardDamaged as error:
        logger.warning("checkpoint_refused shard=%s reason=%s", head.label, error.message)
