"""Replicas of all shards of a coordinator: they keep a copy of every shard, those on other nodes included.

Such a replica is registered here, and by the same id and URL with the node of each other shard, which keeps the
registry of its own copies (`cluster.services.shard_replicas`). The order matters: a shard's node is told only when the
replica has taken this node's placement, by which it knows the shards it may be given. Whatever could not be done is
done by beat; a shard that is added later gets the replicas that there are.

They also have every namespace, from before its first row on, as an entry in the log of each shard of this node: so
whoever takes this node's place knows them (`cluster.services.succession`).
"""

from __future__ import annotations

import logging

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from cluster.models import PlacementPush, Replica, ReplicaCopy, Shard, ShardCopy, ShardedNamespace, Topology
from cluster.services import shard_replicas
from cluster.services.changes import TASK
from cluster.services.namespace_errands import spec_of
from cluster.services.sweeps import Sweeps
from cluster.states import ShardState
from vectors.errors import MLVectorDBError
from vectors.models import Namespace, ShardHead
from vectors.query_processor.moving import MovingCopy

logger = logging.getLogger(__name__)


def full_replicas_settle() -> None:
    """Have every shard on another node keep a copy at each replica of all shards; why one does not is its last error.

    By beat.
    """
    _sweeps.next()
    if not Topology.objects.filter(is_owner=True, sharding_enabled=True).exists():
        return
    namespaces_spread()
    for replica in _full():
        if not _knows(replica):
            continue
        errors = [error for shard in remote_shards() if (error := _settled(replica, shard))]
        if errors or replica.last_error.startswith(_NOT_ADDED):
            words = errors[0][:500] if errors else ""
            Replica.objects.filter(pk=replica.pk).exclude(last_error=words).update(
                last_error=words, last_error_at=timezone.now()
            )


def full_replica_remove(url: str, *, force: bool, actor: str) -> None:
    """Remove the copies that a replica of all shards has of those on other nodes, after it was removed here.

    With `force` a shard that cannot be asked is passed over. Raise what `shard_replicas.copy_remove` raises.
    """
    for copy in ShardCopy.objects.filter(url=url).select_related("shard"):
        if not ShardState(copy.shard.state).is_shard:
            continue
        try:
            shard_replicas.copy_remove(copy.shard, name=copy.name, force=force, actor=actor)
        except MLVectorDBError as error:
            if not force:
                raise
            logger.warning(
                "full_replica_not_removed shard=%s replica=%s error=%s", copy.shard, copy.name, error.message
            )


def full_replica_sync(url: str, *, namespace: str | None, actor: str) -> None:
    """Have the shards on other nodes sync the copies of a replica of all shards; what does not answer does so later."""
    for copy in ShardCopy.objects.filter(url=url).select_related("shard"):
        try:
            shard_replicas.copy_sync(copy.shard, name=copy.name, namespace=namespace, actor=actor)
        except MLVectorDBError as error:
            logger.warning("full_replica_not_synced shard=%s replica=%s error=%s", copy.shard, copy.name, error.message)


def namespaces_spread() -> None:
    """Have every namespace in the log of each shard of this node, where there is a replica that is to know them."""
    if not _full():
        return
    rows = {row.uid: row for row in ShardedNamespace.objects.filter(dropped_at__isnull=True)}
    local = Shard.objects.filter(url="").values_list("uid", "state")
    uids = [uid for uid, state in local if ShardState(state).may_own]
    for head in ShardHead.objects.filter(uid__in=uids, is_primary=True):
        known = set(Namespace.objects.filter(shard=head).values_list("uid", flat=True))
        for uid in sorted(rows.keys() - known):
            try:
                MovingCopy(head.pk).namespace_adopt(spec_of(rows[uid]))
            except MLVectorDBError as error:
                logger.warning("namespace_not_spread shard=%s uid=%s error=%s", head.label, uid, error.message)


def remote_shards() -> list[Shard]:
    """Return the shards on other nodes that have taken their assignment."""
    return [shard for shard in Shard.objects.exclude(url="").order_by("pk") if ShardState(shard.state).may_own]


_sweeps = Sweeps()
_NOT_ADDED = "not_added: "


def _settled(replica: Replica, shard: Shard) -> str:
    """Have a shard keep a copy at a replica; return why it does not, empty when it does or is left alone for now."""
    # Its name may be another there: who becomes the coordinator names the former one anew.
    if ShardCopy.objects.filter(shard=shard, url=replica.url).exists():
        return ""
    if not _sweeps.is_due(shard.attempts):
        return replica.last_error if replica.last_error.startswith(_NOT_ADDED) else ""
    try:
        shard_replicas.copy_add(shard, name=replica.name, url=replica.url, actor=TASK)
    except MLVectorDBError as error:
        logger.warning("full_replica_not_added shard=%s replica=%s error=%s", shard.label, replica.name, error.message)
        return f"{_NOT_ADDED}shard {shard.label}: {error.message}"
    return ""


def _full() -> list[Replica]:
    return list(Replica.objects.filter(shard="").order_by("pk"))


def _knows(replica: Replica) -> bool:
    """Whether a replica has taken the present placements of all shards that it keeps of this node."""
    if not replica.node or replica.node == settings.MLVDB_NODE_ID:
        return False
    copies = ReplicaCopy.objects.filter(replica=replica)
    waiting = PlacementPush.objects.filter(url=replica.url, acknowledged_epoch__lt=F("epoch"))
    return copies.exists() and not waiting.exists()
