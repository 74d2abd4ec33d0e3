"""Becoming the coordinator in another node's place, and being it no more: the registry of shards changes hands.

A replica of all shards knows from its placements which shards there are, where, and who owns which slots. When it is
elected it writes them as its own registry, in the transaction of its accession, under the same uids and numbers and as
the next reign. What its placements may not say yet, it does not trust:

- *Slots*. A move may have given some to another shard since. So no shard is asked or written to before it has said
  itself which slots it may write (`cluster.services.succession_checks`); the gates at the shards win. The moves of
  before are not gone on with: what they have not given away is with its owner.
- *Namespaces*. Each is in the log of every shard of the coordinator's own, from before its first row on, and so in
  this node's copies of these: those that live there, or in another copy here, and ended in none. One that a copy here
  has not heard of is asked for at its shard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from django.core.management.color import no_style
from django.db import connection
from django.utils import timezone

from cluster.models import NamespaceErrand, Placement, Shard, ShardCopy, ShardedNamespace, Topology
from cluster.replication.placements import REPLICA, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.services.eligibility import Unfit
from cluster.sharding.placed import PlacedShard, PlacedShards
from cluster.states import ShardState
from vectors.models import Namespace, ShardHead
from vectors.namespace_uids import is_later

logger = logging.getLogger(__name__)


def check_has_all(told: PlacedShards | None) -> None:
    """Raise Unfit on a node that lacks a copy of one of the coordinator's own shards: it cannot take its place."""
    if told is None:
        return
    here = set(ShardHead.objects.values_list("uid", flat=True))
    missing = [shard.label for shard in _own(told) if shard.uid not in here]
    if missing:
        raise Unfit(
            f"this node has no copy of {', '.join(missing)}: only a replica of all shards can become the coordinator",
            detail={"reason": "partial", "missing": missing},
        )


def succession_begin(topology: Topology, told: PlacedShards | None) -> None:
    """Write the registry of the shards as it was told, inside the transaction of an accession.

    Nothing for a cluster without shards, and where it was done before: for the next of several shards.
    """
    if told is None or topology.sharding_enabled:
        return
    succession_end(topology)
    topology.sharding_enabled, topology.strategy, topology.slots = True, told.strategy, told.table.to_bytes()
    topology.reign = told.reign + 1
    topology.save()
    apart = {
        placement.shard: PlacementDocument.of(placement.document)
        for placement in Placement.objects.filter(role=REPLICA).exclude(cluster=topology.cluster)
    }
    rows = Shard.objects.bulk_create(_row(shard, apart.get(shard.uid)) for shard in told.shards)
    ShardCopy.objects.bulk_create(copy for row in rows if row.uid in apart for copy in _copies(row, apart[row.uid]))
    _numbers_go_on()
    _namespaces_find(told)
    logger.warning("coordinator_succeeded reign=%d shards=%d", topology.reign, len(told.shards))


def succession_end(topology: Topology) -> None:
    """Forget the registry of the shards, inside the transaction in which another node's placement is taken."""
    Shard.objects.all().delete()
    ShardedNamespace.objects.all().delete()
    topology.sharding_enabled, topology.strategy, topology.slots = False, "", None
    topology.save()


def namespace_end_everywhere(rows: Iterable[ShardedNamespace]) -> None:
    """Have all shards told that namespaces have ended, inside a transaction."""
    shards = [shard for shard in Shard.objects.all() if ShardState(shard.state).may_own]
    NamespaceErrand.objects.bulk_create(
        (NamespaceErrand(shard=shard, namespace=row) for row in rows for shard in shards), ignore_conflicts=True
    )


def _own(told: PlacedShards) -> list[PlacedShard]:
    return [shard for shard in told.shards if not shard.url and shard.state.may_own]


def _row(told: PlacedShard, apart: PlacementDocument | None) -> Shard:
    may_own = told.state.may_own
    return Shard(
        pk=told.number,
        label=told.label,
        uid=told.uid,
        url=told.url,
        node=told.node,
        state=told.state,
        weight=told.weight,
        auto_failover=told.auto_failover,
        copies_cluster="" if apart is None else apart.cluster,
        # Whatever moves have left, or had brought already, is masked until it has been cleaned.
        has_foreign=may_own,
        recheck_due=may_own,
    )


def _copies(shard: Shard, told: PlacementDocument) -> list[ShardCopy]:
    """Return the copies of a shard on another node, should that be gone too; who of them lags is not known here."""
    return [
        ShardCopy(
            shard=shard, name=copy.name, url=copy.url, node=copy.node, state=copy.state, membership=copy.membership
        )
        for copy in told.copies
        if copy.name != PRIMARY
    ]


def _numbers_go_on() -> None:
    """Have the next shard's number be a new one: rows with numbers of their own do not count on every database."""
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), [Shard]):
            cursor.execute(statement)


def _namespaces_find(told: PlacedShards) -> None:
    """Make the rows of all namespaces that this node's copies know; all shards are told of those that have ended.

    What the coordinator's own shards say of one counts: they hear a change before those on other nodes, and of those
    one may not have heard it when it was over with that coordinator. It is told anew.
    """
    own_uids = {shard.uid for shard in told.shards} | set(Placement.objects.values_list("shard", flat=True))
    rows = list(Namespace.objects.filter(shard__uid__in=own_uids).select_related("shard").order_by("pk"))
    first = {shard.uid for shard in _own(told)}
    rows.sort(key=lambda row: row.shard.uid not in first)
    ended = {row.uid for row in rows if row.dropped_at is not None} | set(told.ended)
    alive: dict[str, Namespace] = {}
    for row in rows:
        if row.uid in ended:
            continue
        other = alive.get(row.name)
        if other is None or (other.uid != row.uid and is_later(row.uid, other.uid)):
            alive[row.name] = row
    # Of two of a name the registry had ended the older one before it made the other.
    to_end = {row.uid for row in rows if row.dropped_at is None} - {row.uid for row in alive.values()}
    ShardedNamespace.objects.bulk_create(
        ShardedNamespace(
            uid=row.uid,
            name=row.name,
            dimension=row.dimension,
            metric=row.metric,
            recall_target=row.recall_target,
            picture=row.picture,
        )
        for row in alive.values()
    )
    namespace_end_everywhere(namespaces_ended(to_end | set(told.ended)))
    _changes_tell([row for row in rows if row.uid not in ended])


def _changes_tell(copies: Iterable[Namespace]) -> None:
    """Have every shard told of the namespaces of which its copy here says something else than the registry."""
    registry = {row.uid: row for row in ShardedNamespace.objects.filter(dropped_at=None)}
    shards = {shard.uid: shard for shard in Shard.objects.all() if ShardState(shard.state).may_own}
    NamespaceErrand.objects.bulk_create(
        NamespaceErrand(shard=shards[copy.shard.uid], namespace=row)
        for copy in copies
        if (row := registry.get(copy.uid)) is not None and copy.shard.uid in shards
        if (copy.recall_target, copy.picture) != (row.recall_target, row.picture)
    )


def namespaces_ended(uids: Iterable[str]) -> list[ShardedNamespace]:
    """Make rows of namespaces of which nothing is known but that they have ended, inside a transaction; return them."""
    now = timezone.now()
    known = set(ShardedNamespace.objects.values_list("uid", flat=True))
    return ShardedNamespace.objects.bulk_create(
        ShardedNamespace(uid=uid, name=uid, dimension=1, metric="cosine", recall_target=1, dropped_at=now)
        for uid in sorted(set(uids) - known)
    )
