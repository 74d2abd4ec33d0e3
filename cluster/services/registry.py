"""The registry of replicas: switched on, added to, paused, checked, synced. Removal has a module of its own.

`actor` says who asks, for the history: a user, a key, a node, a task.
"""

from __future__ import annotations

import logging
import uuid
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from cluster.health.rounds import probe_now
from cluster.models import Move, Placement, Replica, ReplicaCopy, ShardCopy, Topology
from cluster.node_urls import check_own_url, node_url
from cluster.replication.knocks import SHIP_TASK
from cluster.replication.moves import move_begin
from cluster.replication.quorum import PRIMARY
from cluster.services.candidates import OwnUrl, ask_status, check_candidate, host_now, words_of
from cluster.services.changes import Change, Unchanged, event_write, locked_topology, registry_change
from cluster.services.copies import copies_of
from cluster.states import CopyState
from cluster.transport.errors import PeerError
from mlvdb_site.celery import publish
from mlvdb_site.markers import topology_changed
from vectors.errors import Conflict, InvalidInput, NotFound
from vectors.models import ShardHead
from vectors.names import checked_name, checked_namespace
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults

logger = logging.getLogger(__name__)

#: Words that are routes below `/replication/replicas`, and the name of the primary.
RESERVED_NAMES = frozenset({"health", PRIMARY})


class ReplicaNotFound(NotFound):
    """Raised when no replica has that name."""

    code = "replica_not_found"


class ReplicaExists(Conflict):
    """Raised when a name or a URL is another replica's."""

    code = "replica_exists"


class ReplicationNotEnabled(InvalidInput):
    """Raised for a change of replicas on a node where replication was not switched on."""

    code = "replication_not_enabled"


class OnReplica(Conflict):
    """Raised when a node that is a replica itself is to have one; `detail`: primary_url."""

    code = "not_primary"


@storage_faults()
def replication_enable(*, actor: str) -> bool:
    """Let this node have replicas; return whether it could not before. A node that obeys another stays as it is."""
    with writers_in_line(), transaction.atomic(durable=True):
        row = locked_topology()
        if row is not None and (row.replication_enabled or not row.is_owner):
            return False
        if Placement.objects.exists():
            return False
        if row is None:
            row = Topology.objects.create(cluster=uuid.uuid4().hex, replication_enabled=True)
        else:
            row.replication_enabled = True
            row.save(update_fields=["replication_enabled"])
        event_write(
            actor=actor,
            action="replication_enabled",
            subject=settings.MLVDB_NODE_ID,
            after={"cluster": row.cluster},
            epoch=row.epoch,
        )
        topology_changed()
    logger.info("replication_enabled cluster=%s", row.cluster)
    return True


def check_owner() -> Topology:
    """Return this node's topology; raise ReplicationNotEnabled or OnReplica where it cannot have replicas."""
    topology = Topology.objects.first()
    if topology is None or not topology.replication_enabled:
        raise ReplicationNotEnabled("Replication is not enabled")
    if not topology.is_owner:
        raise _on_replica()
    return topology


def replica_add(*, name: str, url: str, shard: str = "", actor: str) -> tuple[Replica, bool]:
    """Register a node as replica of all shards, or of one (uid or label); return it and whether it is new.

    A node that answers is looked at first, and refused with the reason when it cannot be a replica. One that does not
    answer yet is registered all the same: beat asks it again. What follows, placement, full sync, joining the members,
    goes on in the background. Raise ReplicaExists when name or URL are taken.
    """
    topology = check_owner()
    name = checked_name(name, field="replica_id", reserved=RESERVED_NAMES)
    url = node_url(url, field="replica_url")
    shard_uid = _shard_uid(shard)
    own = check_own_url()
    known = _known(name, url, shard_uid)
    if known is not None:
        publish(SHIP_TASK, known.pk)
        return known, False
    if url == own:
        raise OwnUrl(f"{url} is this node itself", field="replica_url")
    found = _look_at(url, topology.cluster, name)
    with registry_change(actor=actor, action="replica_added", subject=name) as change:
        # Another request may have been faster; the lock of the topology lets in one at a time.
        known = _known(name, url, shard_uid)
        if known is not None:
            raise Unchanged
        replica = _create(change, name, url, shard_uid, found)
    if known is not None:
        return known, False
    logger.info("replica_added replica=%s url=%s node=%s error=%r", name, url, found.node, found.error)
    publish(SHIP_TASK, replica.pk)
    replica.refresh_from_db()
    return replica, True


def replica_of(name: str) -> Replica:
    """Return a replica by its name; raise ReplicaNotFound."""
    replica = Replica.objects.filter(name=name).first()
    if replica is None:
        topology = Topology.objects.first()
        elsewhere = "" if topology is None or topology.is_owner else f" in the registry here: {_on_replica().message}"
        raise ReplicaNotFound(f"there is no replica {name}{elsewhere}", field="replica_id")
    return replica


def replica_pause(*, name: str, actor: str) -> Replica:
    """Send nothing to a replica until it is resumed; it keeps its place among the members, and falls behind."""
    return _set_paused(name, actor, paused=True)


def replica_resume(*, name: str, actor: str) -> Replica:
    """Send to a replica again."""
    replica = _set_paused(name, actor, paused=False)
    publish(SHIP_TASK, replica.pk)
    return replica


def replica_check(*, name: str) -> bool:
    """Probe a replica now; return whether it answered as it should. The probe is a sample for its health."""
    return probe_now([replica_of(name)])[name]


def replica_sync(*, name: str, namespace: str | None = None, actor: str) -> Move:
    """Start a catch-up, or go on with the full sync that a copy needs, without waiting for a back-off; return the move.

    The log of a shard has all of its namespaces: `namespace` is noted, and all of them are synced. Of several shards
    the move of the first is returned. Raise ReplicaNotFound, and Conflict for a paused replica.
    """
    # Replicas of other shards are asked of their nodes, which know this registry's rules as well.
    from cluster.services.full_replicas import full_replica_sync

    check_owner()
    replica = replica_of(name)
    if namespace is not None:
        checked_namespace(namespace)
    if replica.paused:
        raise Conflict(f"replica {name} is paused: resume it first", field="replica_id")
    copies = copies_of(replica)
    moves = [_sync_move(replica, copy, head, namespace) for copy, head in copies]
    if not moves:
        raise Conflict("this node has no shard of which it is the primary")
    with storage_faults(), transaction.atomic():
        Replica.objects.filter(pk=replica.pk).update(sweeps_to_skip=0)
        for copy, _ in copies:
            if copy.state == CopyState.QUARANTINED:
                # A person has decided that this node's contents are the right ones.
                copy.digest_detail = {**copy.digest_detail, "waits_for_person": False}
                copy.save(update_fields=["digest_detail"])
        event_write(actor=actor, action="replica_sync", subject=name, after={"moves": [move.pk for move in moves]})
    publish(SHIP_TASK, replica.pk)
    if not replica.shard:
        full_replica_sync(replica.url, namespace=namespace, actor=actor)
    return moves[0]


class _Found(NamedTuple):
    """What a node that is to be added said of itself, or why it said nothing."""

    node: str = ""
    version: str = ""
    error: str = ""


def _look_at(url: str, cluster: str, name: str) -> _Found:
    try:
        status = ask_status(url, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S)
    except PeerError as error:
        # Not up yet, or not to be talked to yet: the sweep goes on asking.
        return _Found(error=words_of(error))
    check_candidate(host_now(cluster), url, status, name=name)
    return _Found(str(status["node"]), str(status.get("version") or "")[:32])


def _create(change: Change, name: str, url: str, shard_uid: str, found: _Found) -> Replica:
    replica = Replica.objects.create(
        name=name,
        url=url,
        shard=shard_uid,
        node=found.node,
        version=found.version,
        last_error=found.error,
        last_error_at=timezone.now() if found.error else None,
    )
    uids = ShardHead.objects.filter(is_primary=True).values_list("uid", flat=True)
    for uid in uids:
        if shard_uid in ("", uid):
            ReplicaCopy.objects.create(replica=replica, shard=uid)
    change.after = {"url": url, "shard": shard_uid, "node": found.node}
    change.epoch_raise()
    return replica


def _known(name: str, url: str, shard_uid: str) -> Replica | None:
    """Return the replica of that name when it is the same in all; raise ReplicaExists when it, or the URL, is not."""
    for replica in Replica.objects.filter(Q(name=name) | Q(url=url)):
        if replica.name != name:
            raise ReplicaExists(f"the URL {url} is the replica {replica.name}'s", field="replica_url")
        if replica.url != url:
            raise ReplicaExists(
                f"the replica {name} is at {replica.url}: remove it first to add another",
                field="replica_url",
                detail={"url": replica.url},
            )
        if replica.shard != shard_uid:
            raise ReplicaExists(
                f"the replica {name} keeps {'one shard' if replica.shard else 'all shards'}: remove it first",
                field="shard_id",
                detail={"shard": replica.shard},
            )
        return replica
    for copy in ShardCopy.objects.filter(Q(name=name) | Q(url=url)).select_related("shard"):
        # One that keeps all shards is a replica of theirs under the same name.
        if shard_uid or (copy.name, copy.url) != (name, url):
            raise ReplicaExists(
                f"the replica {copy.name} at {copy.url} is one of shard {copy.shard.label}: remove it first",
                field="replica_id" if copy.name == name else "replica_url",
                detail={"url": copy.url, "shard": copy.shard.label},
            )
    return None


def _shard_uid(shard: str) -> str:
    """Return the uid of a shard of this node by uid or label, empty for all."""
    if not shard:
        return ""
    head = ShardHead.objects.filter(Q(uid=shard) | Q(label=shard), is_primary=True).first()
    if head is None:
        raise NotFound(f"this node is not the primary of a shard {shard}", field="shard_id")
    return head.uid


def _set_paused(name: str, actor: str, *, paused: bool) -> Replica:
    check_owner()
    replica = replica_of(name)
    action = "replica_paused" if paused else "replica_resumed"
    with registry_change(actor=actor, action=action, subject=name) as change:
        if not Replica.objects.filter(pk=replica.pk, paused=not paused).update(paused=paused, sweeps_to_skip=0):
            raise Unchanged
        change.before, change.after = {"paused": not paused}, {"paused": paused}
    replica.refresh_from_db()
    return replica


def _sync_move(replica: Replica, copy: ReplicaCopy, head: ShardHead, namespace: str | None) -> Move:
    needs_segments = CopyState(copy.state) is not CopyState.FOLLOWING
    lacking = max(0, head.last_seq - copy.seq)
    plan = {"from_seq": copy.seq, "to_seq": head.last_seq, **({"namespace": namespace} if namespace else {})}
    kind = Move.Kind.FULL_SYNC if needs_segments else Move.Kind.CATCH_UP
    total = 0 if needs_segments else lacking
    return move_begin(kind=kind, replica=replica, shard=head.uid, plan=plan, rows_total=total)


def _on_replica() -> OnReplica:
    placement = Placement.objects.filter(cluster__in=Topology.objects.values("cluster")).first()
    url = "" if placement is None else str(placement.document["primary"]["url"])
    return OnReplica(
        f"this node is a replica itself: ask its primary{f' at {url}' if url else ''}", detail={"primary_url": url}
    )
