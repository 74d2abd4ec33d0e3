"""The registry of shards: switched on, added to, weighed, checked. Removal has a module of its own.

The node where shards are registered is their coordinator. Shards without a URL are copies of its own; a shard with one
is a plain node that has taken an assignment. A new shard owns no slots until a move has filled it, so that adding one
changes no answer. `actor` says who asks, for the history: a user, a key, a node, a task.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from cluster.health.shards import shards_check
from cluster.models import Assignment, Move, Placement, Replica, ReplicaCopy, Shard, Topology
from cluster.moves.control import fill_now
from cluster.node_urls import check_own_url, node_url, own_url
from cluster.replication.knocks import knock
from cluster.replication.placements import NodeAddress
from cluster.services.candidates import OwnUrl, ask_status, words_of
from cluster.services.changes import Change, Unchanged, event_write, locked_topology, registry_change
from cluster.services.joining_lock import joining
from cluster.services.namespaces import namespaces_import
from cluster.services.placements import placements_push
from cluster.services.sharding_assignments import assignments_push
from cluster.services.sharding_candidates import check_shard_candidate, coordinator_now
from cluster.services.sharding_gates import gate_write
from cluster.services.sharding_removal import shard_remove
from cluster.services.sharding_rows import (
    HASH,
    LARGEST_NUMBER,
    RESERVED_LABELS,
    ROUND_ROBIN,
    STRATEGIES,
    CannotCoordinate,
    LastShard,
    ShardExists,
    ShardingNotEnabled,
    ShardNotFound,
    ShardUnreachable,
    StrategyFixed,
    check_coordinator,
    check_same_strategy,
    check_strategy,
    check_weight,
    shard_of,
)
from cluster.sharding.table import SlotTable
from cluster.states import ShardState
from cluster.transport.errors import PeerError
from mlvdb_site.markers import topology_changed
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import NO_SLOTS
from vectors.errors import Conflict, InvalidInput, NotFound
from vectors.models import Namespace, ShardHead
from vectors.names import checked_name
from vectors.services import DEFAULT_SHARD_LABEL, ensure_local_shard
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults

__all__ = [
    "HASH",
    "RESERVED_LABELS",
    "ROUND_ROBIN",
    "STRATEGIES",
    "CannotCoordinate",
    "LastShard",
    "ShardExists",
    "ShardNotFound",
    "ShardUnreachable",
    "ShardingNotEnabled",
    "StrategyFixed",
    "check_coordinator",
    "shard_add",
    "shard_change",
    "shard_check",
    "shard_of",
    "shard_remove",
    "sharding_begin",
    "sharding_enable",
]

logger = logging.getLogger(__name__)


def sharding_enable(
    *, strategy: str = HASH, shards: int = 1, copies: Mapping[str, str] | None = None, actor: str
) -> bool:
    """Let this node have shards; return whether it had none before.

    `copies` names those of this node's own copies that become shards, {label: uid of the copy}; without it the node's
    first copy does, and `shards` - 1 new ones. Where none of them has a namespace the slots are divided evenly, at
    once. Otherwise the one that has some owns all slots, and the others are filled by a move. Namespaces are taken into
    the registry as they are.

    Raise InvalidInput, StrategyFixed, CannotCoordinate, and Conflict when several of the copies hold data: which of
    two rows with one id is the right one, nobody knows.
    """
    if not sharding_begin(strategy=strategy, shards=shards, copies=copies, actor=actor):
        return False
    placements_push()
    for head in ShardHead.objects.filter(is_primary=True):
        knock(head.uid)
    fill_now(actor=actor)
    return True


def sharding_begin(*, strategy: str, shards: int, copies: Mapping[str, str] | None = None, actor: str) -> bool:
    """Do what `sharding_enable` writes, and leave what follows from it to beat: no thread is started, nobody asked."""
    check_strategy(strategy)
    if not 1 <= shards <= settings.MLVDB_MAX_SHARDS:
        raise InvalidInput(f"shards is 1 to {settings.MLVDB_MAX_SHARDS}", field="shards")
    if not Topology.objects.filter(sharding_enabled=True).exists() and not copies:
        ensure_local_shard()
    with joining(), storage_faults(), writers_in_line(), transaction.atomic(durable=True):
        row = locked_topology()
        if row is not None and row.sharding_enabled:
            check_same_strategy(row, strategy)
            return False
        _check_may_coordinate(row)
        if row is None:
            row = Topology.objects.create(cluster=uuid.uuid4().hex)
        after = _begin(row, _heads(copies, shards), strategy, actor)
        event_write(
            actor=actor, action="sharding_enabled", subject=settings.MLVDB_NODE_ID, after=after, epoch=row.epoch
        )
        topology_changed()
    logger.info("sharding_enabled strategy=%s shards=%s", strategy, after["shards"])
    return True


def shard_add(
    *,
    label: str,
    url: str = "",
    weight: float = 1.0,
    rebalance: bool = True,
    auto_failover: bool | None = None,
    actor: str,
) -> tuple[Shard, bool, Move | None]:
    """Register a shard, on this node without a URL; return it, whether it is new, and the move that fills it.

    A node that answers is looked at first, and refused with the reason when it cannot be a shard. One that does not
    answer yet is registered all the same: beat asks it again, and fills it then. With `rebalance` off the shard stays
    empty until asked. `auto_failover` is MLVDB_AUTO_FAILOVER when not given, and changed of a shard that is there when
    it is. Raise ShardExists when label or URL are taken.
    """
    topology = check_coordinator()
    label = checked_name(label, field="shard_id", reserved=RESERVED_LABELS)
    check_weight(weight)
    url = node_url(url, field="shard_url") if url else ""
    known = _known(label, url)
    if known is not None:
        if auto_failover is not None:
            known = shard_change(label=label, auto_failover=auto_failover, actor=actor)
        return known, False, None
    node = version = error = ""
    if url:
        if url == check_own_url():
            raise OwnUrl(f"{url} is this node itself: a shard on it needs no URL", field="shard_url")
        # One that was a shard until a moment ago may not know yet that it is none any more.
        assignments_push(urls=[url])
        node, version, error = _look_at(url, topology.cluster, label)
    with registry_change(actor=actor, action="shard_added", subject=label) as change:
        # Another request may have been faster; the lock of the topology lets in one at a time.
        known = _known(label, url)
        if known is not None:
            raise Unchanged
        shard = _create(change, label=label, url=url, weight=weight)
        shard.node, shard.version, shard.fill_due = node, version, rebalance
        shard.last_error, shard.last_error_at = error, timezone.now() if error else None
        shard.auto_failover = settings.MLVDB_AUTO_FAILOVER if auto_failover is None else auto_failover
        shard.save()
        change.after = {"url": url, "weight": weight, "node": node}
    if known is not None:
        return known, False, None
    logger.info("shard_added shard=%s url=%s node=%s error=%r", label, url, node, error)
    if url:
        assignments_push(urls=[url])
    move = fill_now(actor=actor)
    shard.refresh_from_db()
    return shard, True, move


def shard_change(*, label: str, weight: float | None = None, auto_failover: bool | None = None, actor: str) -> Shard:
    """Give a shard another weight, or say whether it fails over by itself; what is None stays. Raise ShardNotFound.

    By another weight its rows stay where they are until the next rebalancing.
    """
    check_coordinator()
    if weight is not None:
        check_weight(weight)
    shard = shard_of(label)
    wanted = {"weight": weight, "auto_failover": auto_failover}
    with registry_change(actor=actor, action="shard_changed", subject=label) as change:
        now = Shard.objects.get(pk=shard.pk)
        changed = {name: value for name, value in wanted.items() if value not in (None, getattr(now, name))}
        if not changed:
            raise Unchanged
        Shard.objects.filter(pk=shard.pk).update(**changed)
        change.before, change.after = {name: getattr(now, name) for name in changed}, changed
    shard.refresh_from_db()
    return shard


def shard_check(*, label: str) -> bool:
    """Probe a shard's node now; return whether it is what it should be. A local shard is when its copy is whole.

    The probe is a sample for its health. Raise ShardNotFound.
    """
    check_coordinator()
    return shards_check([shard_of(label)])[label]


def _check_may_coordinate(row: Topology | None) -> None:
    if Placement.objects.exists() or (row is not None and not row.is_owner):
        raise CannotCoordinate("this node is a replica: its primary may have shards")
    assignment = Assignment.objects.first()
    if assignment is not None:
        raise CannotCoordinate(
            f"this node is the shard {assignment.label} of the coordinator at {assignment.coordinator_url}",
            detail={"coordinator_url": assignment.coordinator_url},
        )


def _heads(copies: Mapping[str, str] | None, shards: int) -> list[ShardHead]:
    """Return the copies that become shards, new ones among them, inside the transaction that makes them so."""
    if copies:
        by_uid = {head.uid: head for head in ShardHead.objects.filter(is_primary=True, uid__in=copies.values())}
        for label, uid in copies.items():
            checked_name(label, field="shard_id", reserved=RESERVED_LABELS)
            if uid not in by_uid:
                raise NotFound(f"this node is not the primary of a shard {uid}", field="shard_id")
            if by_uid[uid].label != label:
                by_uid[uid].label = label
                by_uid[uid].save(update_fields=["label"])
        return [by_uid[uid] for uid in copies.values()]
    rows = ShardHead.objects.order_by("pk")
    first = (rows.select_for_update() if connection.features.has_select_for_update else rows).first()
    assert first is not None
    heads, number = [first], 0
    while len(heads) < shards:
        label = f"{DEFAULT_SHARD_LABEL.rstrip('0')}{number}"
        number += 1
        if not ShardHead.objects.filter(label=label).exists():
            heads.append(ShardHead.objects.create(label=label))
    return heads


def _begin(row: Topology, heads: list[ShardHead], strategy: str, actor: str) -> dict[str, object]:
    """Write the first rows of the registry: shards, slot table, namespaces, and the gates of the copies."""
    address = NodeAddress(settings.MLVDB_NODE_ID, own_url())
    change = Change(row, actor, "sharding_enabled", settings.MLVDB_NODE_ID, address)
    epoch = change.epoch_raise()
    alive = list(Namespace.objects.filter(shard__in=heads, dropped_at__isnull=True))
    with_data = {namespace.shard_id for namespace in alive}
    if len(with_data) > 1:
        raise Conflict(f"{len(with_data)} of the copies that are to be shards hold data; at most one may")
    shards = {head.pk: _register(head) for head in heads}
    if with_data:
        [holder] = with_data
        table = SlotTable.even({shards[holder].pk: 1.0})
        Shard.objects.filter(pk__in=[shard.pk for pk, shard in shards.items() if pk != holder]).update(fill_due=True)
    else:
        table = SlotTable.even({shard.pk: shard.weight for shard in shards.values()})
    row.sharding_enabled, row.strategy, row.slots = True, strategy, table.to_bytes()
    row.save(update_fields=["sharding_enabled", "strategy", "slots"])
    for head in heads:
        gate_write(head, epoch=epoch, writable=table.owned_by(shards[head.pk].pk))
        _copies_add(head)
    namespaces_import(change, [_spec_of(namespace) for namespace in alive])
    change.write_pushes()
    return {"cluster": row.cluster, "strategy": strategy, "shards": [shard.label for shard in shards.values()]}


def _create(change: Change, *, label: str, url: str, weight: float) -> Shard:
    """Make a shard without slots inside a change of the registry, and its copy when it is to be on this node."""
    if Shard.objects.exclude(state=ShardState.REMOVED).count() >= settings.MLVDB_MAX_SHARDS:
        raise Conflict("the cluster has MLVDB_MAX_SHARDS shards")
    epoch = change.epoch_raise()
    if url:
        return _numbered(Shard.objects.create(label=label, uid=uuid.uuid4().hex, url=url, weight=weight))
    if ShardHead.objects.filter(label=label).exists():
        raise ShardExists(f"a copy on this node is labelled {label} already", field="shard_id")
    head = ShardHead.objects.create(label=label)
    gate_write(head, epoch=epoch, writable=NO_SLOTS)
    _copies_add(head)
    return _register(head, weight=weight)


def _register(head: ShardHead, *, weight: float = 1.0) -> Shard:
    """Make the row of a shard that is a copy of this node."""
    return _numbered(Shard.objects.create(label=head.label, uid=head.uid, weight=weight, state=ShardState.ACTIVE))


def _numbered(shard: Shard) -> Shard:
    if shard.pk > LARGEST_NUMBER:
        raise Conflict(f"this registry has numbered {LARGEST_NUMBER} shards, as many as a slot table can tell apart")
    return shard


def _copies_add(head: ShardHead) -> None:
    """Have the replicas that keep all shards of this node keep a new one too."""
    for replica in Replica.objects.filter(shard=""):
        ReplicaCopy.objects.get_or_create(replica=replica, shard=head.uid)


def _known(label: str, url: str) -> Shard | None:
    """Return the shard of that label when it is the same in all; raise ShardExists when it, or the URL, is not."""
    wanted = Q(label=label) | (Q(url=url) if url else Q(pk__in=()))
    for shard in Shard.objects.filter(wanted).exclude(state=ShardState.REMOVED):
        if shard.label != label:
            raise ShardExists(f"the URL {url} is the shard {shard.label}'s", field="shard_url")
        if shard.url != url:
            where = f"at {shard.url}" if shard.url else "on this node"
            raise ShardExists(
                f"the shard {label} is {where}: remove it first to add another",
                field="shard_url",
                detail={"url": shard.url},
            )
        if shard.state == ShardState.DRAINING:
            raise ShardExists(
                f"the shard {label} is being drained: cancel the move that drains it to keep it", field="shard_id"
            )
        return shard
    return None


def _look_at(url: str, cluster: str, label: str) -> tuple[str, str, str]:
    """Return node id, version and error of a node that is to be a shard; raise the reason why it cannot be one."""
    try:
        status = ask_status(url, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S, field="shard_url")
    except PeerError as error:
        # Not up yet, or not to be talked to yet: the sweep goes on asking.
        return "", "", words_of(error)
    check_shard_candidate(coordinator_now(cluster), url, status, label=label)
    return str(status["node"]), str(status.get("version") or "")[:32], ""


def _spec_of(row: Namespace) -> NamespaceSpec:
    return NamespaceSpec(row.uid, row.name, row.dimension, row.metric, row.recall_target, row.picture)  # type: ignore[arg-type]
