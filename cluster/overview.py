"""What people and dashboards are shown of the cluster: replication, storage, topology, moves, health over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.conf import settings

from cluster.models import HealthCheck, Move, Placement, Replica, ReplicaCopy, Shard, ShardCopy
from cluster.node_urls import own_url
from cluster.replication.quorum import PRIMARY
from cluster.services.shard_replicas import copies_of_one_shard
from cluster.states import CopyState, Membership, PeerHealth, ShardState
from cluster.topology import CopyView, PlacementView, ShardView, TopologyView, topology
from mlvdb_site.heartbeats import BEAT, process_states, process_warnings, worker_name
from vectors.engine.slots import SlotSet
from vectors.models import ShardHead

#: From the one that says least of all copies of a replica to the one that says most.
_STATES = (CopyState.REFUSED, CopyState.NEW, CopyState.QUARANTINED, CopyState.SYNCING, CopyState.FOLLOWING)
_MEMBERSHIPS = (Membership.NONE, Membership.JOINING, Membership.LEAVING, Membership.MEMBER)


def replication_info() -> dict[str, Any]:
    """Return the answer of `/replication/info` on a node where replication is enabled.

    At the owner `replicas` are its replicas. On a replica they are the copies it knows of from its placement, the
    primary among them; what it does not know is null.
    """
    picture = topology()
    states = process_states()
    background = {
        "workers_alive": all(states[name].alive for name in (worker_name("replication"), worker_name("health"), BEAT)),
        "warnings": process_warnings(states),
    }
    own = {"node": settings.MLVDB_NODE_ID, "url": own_url(), "cluster": picture.cluster, "epoch": picture.epoch}
    if picture.is_owner:
        replicas = _registered() | {copy.name: _elsewhere(copy) for copy in copies_of_one_shard()}
        return {
            "role": "primary",
            "primary_replica": PRIMARY,
            "total_replicas": len(replicas),
            "healthy_replicas": sum(replica["is_healthy"] for replica in replicas.values()),
            **background,
            **own,
            "replicas": replicas,
        }
    placement = picture.placement
    replicas = _told(picture)
    return {
        "role": "replica" if placement is None else placement.role,
        "primary_replica": PRIMARY,
        "primary_url": None if placement is None else placement.primary_url,
        "replica_id": None if placement is None else placement.name,
        "total_replicas": len([name for name in replicas if name != PRIMARY]),
        "healthy_replicas": len([name for name, known in replicas.items() if name != PRIMARY and known["is_healthy"]]),
        **background,
        **own,
        "replicas": replicas,
    }


def storage_section() -> dict[str, Any] | None:
    """Return the section `replication` of `/storage/info`, None where there is nothing to say."""
    picture = topology()
    if not picture.replication_enabled:
        return None
    placement = picture.placement
    if not picture.is_owner and placement is not None:
        return {
            "role": placement.role,
            "replica_id": placement.name,
            "primary_url": placement.primary_url,
            "state": placement.state.value,
            "epoch": picture.epoch,
        }
    # Copies of other nodes' shards that this one keeps have replicas of their own.
    own = [shard for shard in picture.shards.values() if shard.placement is None]
    replicas = {copy.name: copy for shard in own for copy in shard.copies}
    return {
        "role": "primary",
        "total_replicas": len(replicas),
        "healthy_replicas": sum(copy.health is PeerHealth.ALIVE for copy in replicas.values()),
        "epoch": picture.epoch,
    }


def topology_picture() -> dict[str, Any]:
    """Return the whole picture, for dashboards: shards, their copies, running moves."""
    picture = topology()
    heads = {head.uid: head for head in ShardHead.objects.all()}
    elsewhere: dict[str, list[ShardCopy]] = defaultdict(list)
    for copy in ShardCopy.objects.order_by("name").select_related("shard"):
        elsewhere[copy.shard.uid].append(copy)
    return {
        "cluster": picture.cluster,
        "epoch": picture.epoch,
        "node": settings.MLVDB_NODE_ID,
        "url": own_url(),
        "is_owner": picture.is_owner,
        "shards": {shard.label: _shard(shard, heads.get(uid), elsewhere[uid]) for uid, shard in picture.shards.items()},
        "moves": [move_view(move) for move in Move.objects.filter(ended_at__isnull=True)],
    }


def replica_health(replica: Replica) -> bool:
    """Return whether a replica counts as healthy: it answers, as far as is known now."""
    return PeerHealth(replica.health).is_routable


def move_view(move: Move) -> dict[str, Any]:
    """Return a move as the API shows it."""
    return {
        "id": move.pk,
        "kind": move.kind,
        "replica_id": move.replica_name or None,
        "shard": move.shard,
        "phase": move.phase,
        "plan": move.plan,
        "rows_done": move.rows_done,
        "rows_total": move.rows_total,
        "bytes_done": move.bytes_done,
        "bytes_total": move.bytes_total,
        "eta_s": None if move.eta_s is None else round(move.eta_s, 1),
        "error": move.error or None,
        "paused": move.paused,
        "cancelled": move.cancelled,
        "actor": move.actor or None,
        "steps": [
            {
                "source": step.source.label,
                "target": step.target.label,
                "slots": len(SlotSet(bytes(step.slots))),
                "phase": step.phase,
                "rows_done": step.rows_done,
                "rows_total": step.rows_total,
                "closed_s": step.state.get("closed_s"),
                "error": step.error or None,
            }
            for step in move.steps.select_related("source", "target")
        ],
        "started_at": move.started_at.isoformat(),
        "ended_at": None if move.ended_at is None else move.ended_at.isoformat(),
    }


def health_history(*, replica: str = "", limit: int) -> dict[str, list[dict[str, Any]]]:
    """Return {replica: its newest probes, oldest first}."""
    replicas = Replica.objects.filter(name=replica) if replica else Replica.objects.all()
    return {row.name: _probes(HealthCheck.objects.filter(replica=row)[:limit]) for row in replicas}


def shard_history(*, shard: str = "", limit: int) -> dict[str, list[dict[str, Any]]]:
    """Return {shard: the newest probes of its node, oldest first}; those of this node have none."""
    shards = Shard.objects.exclude(state=ShardState.REMOVED)
    return {
        row.label: _probes(HealthCheck.objects.filter(shard=row)[:limit])
        for row in (shards.filter(label=shard) if shard else shards)
    }


def _probes(newest_first: Iterable[HealthCheck]) -> list[dict[str, Any]]:
    return [
        {
            "at": check.at.isoformat(),
            "ok": check.ok,
            "health": check.health,
            "took_ms": check.took_ms,
            "error": check.error or None,
        }
        for check in reversed(list(newest_first))
    ]


def _registered() -> dict[str, dict[str, Any]]:
    heads = {head.uid: head for head in ShardHead.objects.filter(is_primary=True)}
    copies: dict[int, list[ReplicaCopy]] = defaultdict(list)
    for copy in ReplicaCopy.objects.all():
        copies[copy.replica_id].append(copy)
    return {replica.name: _replica(replica, copies[replica.pk], heads) for replica in Replica.objects.all()}


def _replica(replica: Replica, copies: list[ReplicaCopy], heads: dict[str, ShardHead]) -> dict[str, Any]:
    """Return a replica as a whole, and each of its copies: the whole is as its worst copy."""
    worst = min((CopyState(copy.state) for copy in copies), key=_STATES.index, default=CopyState.NEW)
    least = min((Membership(copy.membership) for copy in copies), key=_MEMBERSHIPS.index, default=Membership.NONE)
    shards = {
        heads[copy.shard].label: {
            "state": copy.state,
            "state_since": copy.state_since.isoformat(),
            "membership": copy.membership,
            "applied_seq": copy.seq,
            "applied_term": copy.term,
            "lag": max(0, heads[copy.shard].last_seq - copy.seq),
            "digest": copy.digest_verdict or None,
            "digest_at": None if copy.digest_at is None else copy.digest_at.isoformat(),
        }
        for copy in copies
        if copy.shard in heads
    }
    return {
        "url": replica.url,
        "node": replica.node or None,
        "version": replica.version or None,
        "is_healthy": replica_health(replica),
        "health": replica.health,
        "last_health_check": None if replica.checked_at is None else replica.checked_at.isoformat(),
        "is_primary": False,
        "state": worst.value,
        "member": least is Membership.MEMBER,
        "membership": least.value,
        "paused": replica.paused,
        "applied_seq": min((copy.seq for copy in copies), default=0),
        "lag": sum(shard["lag"] for shard in shards.values()),
        "last_error": replica.last_error or None,
        "shards": shards,
    }


def _elsewhere(copy: ShardCopy) -> dict[str, Any]:
    """Return a replica of one shard on another node, as that node told of it in its last probe."""
    lag = max(0, copy.shard.head_seq - copy.seq)
    return {
        "url": copy.url,
        "node": copy.node or None,
        "version": None,
        "is_healthy": PeerHealth(copy.health).is_routable,
        "health": copy.health,
        "last_health_check": None if copy.checked_at is None else copy.checked_at.isoformat(),
        "is_primary": False,
        "state": copy.state,
        "member": copy.membership == Membership.MEMBER,
        "membership": copy.membership,
        "paused": False,
        "applied_seq": copy.seq,
        "lag": lag,
        "in_sync": copy.in_sync,
        "last_error": copy.last_error or None,
        "shards": {
            copy.shard.label: {
                "state": copy.state,
                "membership": copy.membership,
                "applied_seq": copy.seq,
                "applied_term": copy.term,
                "lag": lag,
            }
        },
    }


def _told(picture: TopologyView) -> dict[str, dict[str, Any]]:
    """Return the copies that this node knows of from its placements, the primary among them."""
    heads = {head.uid: head for head in ShardHead.objects.all()}
    heard = {row.shard: row for row in Placement.objects.all()}
    known: dict[str, dict[str, Any]] = {}
    for shard in picture.shards.values():
        placement = shard.placement
        if placement is None:
            continue
        row, head = heard.get(shard.uid), heads.get(shard.uid)
        known.setdefault(PRIMARY, _primary(placement, row, head))
        for copy in shard.copies:
            applied = head.last_seq if copy.is_self and head is not None else None
            behind = None if applied is None or row is None else max(0, row.primary_seq - applied)
            known.setdefault(
                copy.name,
                {
                    "url": copy.url,
                    "node": copy.node or None,
                    "is_healthy": True if copy.is_self else None,
                    "last_health_check": None,
                    "is_primary": False,
                    "state": copy.state.value,
                    "member": copy.membership is Membership.MEMBER,
                    "membership": copy.membership.value,
                    "applied_seq": applied,
                    "lag": behind,
                    "last_error": None,
                },
            )
    return known


def _primary(placement: PlacementView, row: Placement | None, head: ShardHead | None) -> dict[str, Any]:
    """Return the primary as a replica knows it: at `primary_seq` when it was last heard, with all that it has sent."""
    known = [0 if row is None else row.primary_seq, 0 if head is None else head.last_seq]
    return {
        "url": placement.primary_url,
        "node": placement.primary_node or None,
        "is_healthy": None,
        "last_health_check": None,
        "is_primary": True,
        "state": PRIMARY,
        "member": True,
        "membership": Membership.MEMBER.value,
        "applied_seq": max(known),
        "lag": 0,
        "last_error": None,
    }


def _shard(shard: ShardView, head: ShardHead | None, elsewhere: list[ShardCopy]) -> dict[str, Any]:
    """Return a shard; its copies are `elsewhere`, as its node has told, where this node knows of none by itself."""

    def seq_of(copy: CopyView) -> int | None:
        # Where the copies are is known to the primary only; every node knows where its own is.
        if copy.is_self:
            return None if head is None else head.last_seq
        return copy.seq if shard.is_local_primary else None

    return {
        "uid": shard.uid,
        "term": None if head is None else head.term,
        "seq": None if head is None else head.last_seq,
        "is_local": shard.shard_id is not None,
        "is_primary": shard.is_local_primary,
        "primary_url": own_url() if shard.is_local_primary else shard.primary_url,
        "copies": [
            {
                "name": copy.name,
                "url": copy.url,
                "node": copy.node or None,
                "state": copy.state.value,
                "membership": copy.membership.value,
                "health": copy.health.value,
                "seq": seq_of(copy),
                "paused": copy.paused,
                "is_self": copy.is_self,
            }
            for copy in shard.copies
        ]
        or [
            {
                "name": copy.name,
                "url": copy.url,
                "node": copy.node or None,
                "state": copy.state,
                "membership": copy.membership,
                "health": copy.health,
                "seq": copy.seq,
                "paused": False,
                "is_self": False,
            }
            for copy in elsewhere
        ],
    }
