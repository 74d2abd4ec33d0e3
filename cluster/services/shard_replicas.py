"""The replicas of shards on other nodes, as their coordinator adds, removes and knows them.

A shard's node keeps the registry of its own copies. The coordinator asks it to change that
(`/cluster/node/shards/<uid>/replicas`), and keeps a row of each copy, as the node last told of it: for people, and for
knowing whom to ask when the node is gone. What the node refuses is refused here with the same code, and a node that
cannot be reached changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from cluster.models import Replica, Shard, ShardCopy, Topology
from cluster.node_urls import check_own_url, node_url, own_url
from cluster.replication.knocks import failover_knock
from cluster.services import candidates, handover, removal
from cluster.services.candidates import OwnUrl
from cluster.services.changes import Unchanged, registry_change
from cluster.services.promotion import Promotion
from cluster.services.registry import (
    RESERVED_NAMES,
    ReplicaExists,
    ReplicaNotFound,
    ReplicationNotEnabled,
)
from cluster.states import CopyState, Membership, PeerHealth, ShardState
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerGarbled, PeerRejected, refusals
from cluster.transport.messages import shard_path
from mlvdb_site.markers import topology_changed
from vectors import errors
from vectors.errors import Conflict, MLVectorDBError, NotReady
from vectors.names import checked_name

logger = logging.getLogger(__name__)

_AT_ONCE = 16
_HAND_OVER_WITHIN_S = 50.0


class ToldCopy(NamedTuple):
    """One copy of a shard as the shard's node tells of it."""

    name: str
    url: str
    node: str
    state: CopyState
    membership: Membership
    health: PeerHealth
    term: int
    seq: int
    last_error: str

    @classmethod
    def of(cls, part: Any) -> ToldCopy:
        """Read its part of a status; raise ValueError for anything else."""
        try:
            name, url, node, error = (part[key] for key in ("name", "url", "node", "last_error"))
            if not all(type(text) is str for text in (name, url, node, error)):
                raise TypeError("no text")
            term, seq = part["term"], part["seq"]
            if not all(type(number) is int and 0 <= number < 2**63 for number in (term, seq)):
                raise TypeError("no position")
            return cls(
                name[:128],
                url[:255],
                node[:32],
                CopyState(part["state"]),
                Membership(part["membership"]),
                PeerHealth(part["health"]),
                term,
                seq,
                error[:500],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a copy of a shard: {error!r}") from None


def copy_add(shard: Shard, *, name: str, url: str, actor: str) -> tuple[ShardCopy, bool]:
    """Have a node keep a copy of a shard that is on another node; return it and whether it is new.

    A replica of all shards of this node may be given under its own name and URL. Raise ReplicaExists for an id or URL
    that is taken here, whatever the shard's node refuses with, NotReady while another node becomes its primary, and the
    errors of `cluster.transport` when that node cannot be asked; then nothing has changed.
    """
    name = checked_name(name, field="replica_id", reserved=RESERVED_NAMES)
    url = node_url(url, field="replica_url")
    if url == check_own_url():
        raise OwnUrl(f"{url} is this node itself", field="replica_url")
    _check_free(shard, name, url)
    answer = _ask(shard, "PUT", {"name": name, "url": url, "actor": actor})
    is_new = not ShardCopy.objects.filter(shard=shard, name=name).exists()
    copies_note(shard, _copies(shard, answer))
    copy = _copy(shard, name)
    if is_new:
        _event(shard, copy, actor, "shard_replica_added", after={"url": url, "shard": shard.label})
        logger.info("shard_replica_added shard=%s replica=%s url=%s", shard.label, name, url)
    return copy, is_new


def copy_remove(shard: Shard, *, name: str, force: bool, actor: str) -> None:
    """Remove a copy of a shard that is on another node; it is kept there, detached and read-only.

    Raise what `copy_add` raises; MembersBehind, MembershipChanging and NotConfirmed not with `force`.
    """
    known = ShardCopy.objects.filter(shard=shard, name=name).first()
    before = {"url": "" if known is None else known.url, "shard": shard.label}
    try:
        answer = _ask(
            shard,
            "DELETE",
            {"name": name, "force": force, "actor": actor},
            timeout_s=2 * settings.MLVDB_PEER_TIMEOUT_S + 1.0,
        )
    except ReplicaNotFound:
        # Removed there before: this node has not been told yet.
        if known is None:
            raise
        ShardCopy.objects.filter(pk=known.pk).delete()
    else:
        copies_note(shard, _copies(shard, answer))
    _event(shard, known, actor, "shard_replica_removed", before=before, after={"forced": True} if force else None)
    logger.info("shard_replica_removed shard=%s replica=%s forced=%s", shard.label, name, force)


def copy_sync(shard: Shard, *, name: str, namespace: str | None, actor: str) -> dict[str, Any]:
    """Start a catch-up of a copy, or the full sync that it needs; return the move that its shard's node began."""
    answer = _ask(shard, "POST", {"operation": "sync", "name": name, "namespace": namespace, "actor": actor})
    return {"move": answer.get("move"), "kind": str(answer.get("kind") or "sync")}


def copy_check(shard: Shard, *, name: str) -> bool:
    """Have a shard's node probe one of its replicas now; return whether that answered as it should."""
    return _ask(shard, "POST", {"operation": "check", "name": name}).get("is_healthy") is True


def copy_promote(shard: Shard, *, name: str, force: bool, actor: str) -> Promotion:
    """Have a shard's node hand over to one of its replicas; the registry has yet to follow.

    Raise what `cluster.services.handover.replica_promote` raises, and the errors of `cluster.transport`.
    """
    answer = _ask(
        shard,
        "POST",
        {"operation": "promote", "name": name, "force": force, "actor": actor},
        timeout_s=_HAND_OVER_WITHIN_S,
    )
    try:
        term, seq, epoch = (int(answer[part]) for part in ("term", "seq", "epoch"))
    except (KeyError, TypeError, ValueError) as error:
        raise PeerGarbled(f"answered no promotion: {error!r}", url=shard.url) from None
    return Promotion(shard.label, term, seq, epoch, str(answer.get("warning") or ""))


def copies_check() -> dict[str, bool]:
    """Have all replicas of single shards on other nodes probed now, at once: {name: whether it answered as it should}.

    A shard's node that cannot be asked says that of none.
    """
    copies = copies_of_one_shard()
    if not copies:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(copies)), thread_name_prefix="copies") as pool:
        found = pool.map(_checked, copies, [Topology.objects.get().cluster] * len(copies))
        return dict(zip((copy.name for copy in copies), found, strict=True))


def _checked(copy: ShardCopy, cluster: str) -> bool:
    try:
        answer = _ask(copy.shard, "POST", {"operation": "check", "name": copy.name}, cluster=cluster)
        return answer.get("is_healthy") is True
    except MLVectorDBError:
        return False
    finally:
        # Hooks of the transport may have opened one.
        connection.close()


def remote_shard(shard: str) -> Shard | None:
    """Return a shard on another node by label or uid; None where there is no such shard there."""
    if not shard:
        return None
    found = Shard.objects.filter(Q(label=shard) | Q(uid=shard)).exclude(url="").exclude(state=ShardState.REMOVED)
    return found.first()


def copy_of(name: str) -> ShardCopy | None:
    """Return a replica of one shard on another node by its name; None when there is none of that name."""
    if Replica.objects.filter(name=name).exists():
        # One of all shards of this node stands for its copies everywhere.
        return None
    return ShardCopy.objects.filter(name=name).select_related("shard").exclude(shard__state=ShardState.REMOVED).first()


def copies_of_one_shard() -> list[ShardCopy]:
    """Return the copies of shards on other nodes, but for those that replicas of all shards keep, and this node."""
    return list(
        ShardCopy.objects.exclude(url__in=full_urls())
        .exclude(shard__state=ShardState.REMOVED)
        .select_related("shard")
        .order_by("name")
    )


def full_urls() -> set[str]:
    """Return where replicas of all shards are, and this node, which was one if it has a copy of another's shard.

    Their names may be others at the nodes of shards: who becomes the coordinator names the former one anew.
    """
    return {own_url(), *Replica.objects.values_list("url", flat=True)}


def copies_read(documents: Any) -> list[ToldCopy]:
    """Read the copies that a node tells of in its status; raise ValueError."""
    if not isinstance(documents, list):
        raise ValueError("copies are a list")
    return [ToldCopy.of(part) for part in documents]


def copies_note(shard: Shard, told: Sequence[ToldCopy], *, head_seq: int | None = None) -> None:
    """Keep what a shard's node has told of its copies; those that it does not tell of are gone.

    With `head_seq`, the end of its log at that moment, copies that were too far behind and are not any more count as in
    sync again.
    """
    rows = {row.name: row for row in ShardCopy.objects.filter(shard=shard)}
    gone = set(rows) - {copy.name for copy in told}
    changed = False
    with transaction.atomic():
        if gone:
            ShardCopy.objects.filter(shard=shard, name__in=gone).delete()
            changed = True
        for copy in told:
            row = rows.get(copy.name)
            fields: dict[str, Any] = {
                name: str(value) if isinstance(value, str) else value
                for name, value in (
                    ("url", copy.url),
                    ("node", copy.node),
                    ("state", copy.state),
                    ("membership", copy.membership),
                    ("health", copy.health),
                    ("term", copy.term),
                    ("seq", copy.seq),
                    ("last_error", copy.last_error),
                )
            }
            lag = None if head_seq is None else head_seq - copy.seq
            if row is not None and not row.in_sync and lag is not None and lag <= settings.MLVDB_FAILOVER_MAX_LAG:
                fields["in_sync"] = True
            if row is not None and all(getattr(row, name) == value for name, value in fields.items()):
                continue
            told_anew = row is None or any(
                getattr(row, name) != value for name, value in fields.items() if name not in ("term", "seq")
            )
            changed |= told_anew
            # Another copy that had its URL is told of below, at another one, or gone.
            ShardCopy.objects.filter(shard=shard, url=copy.url).exclude(name=copy.name).delete()
            ShardCopy.objects.update_or_create(
                shard=shard, name=copy.name, defaults={**fields, "checked_at": timezone.now()}
            )
        if changed:
            topology_changed()


def copies_lagging(shard_uid: str, names: Sequence[str]) -> None:
    """Note, before a write is acknowledged, that copies of its shard are too far behind to take its primary's place."""
    lagging = ShardCopy.objects.filter(shard__uid=shard_uid, name__in=names, in_sync=True)
    if not lagging.exists():
        return
    with transaction.atomic():
        if lagging.update(in_sync=False):
            topology_changed()
    logger.warning("copies_lag shard=%s copies=%s", shard_uid[:8], ",".join(names))


def _check_free(shard: Shard, name: str, url: str) -> None:
    """Raise ReplicaExists when an id or a URL belongs to something else in this registry."""
    full = Replica.objects.filter(name=name, url=url, shard="").exists()
    for replica in Replica.objects.filter(Q(name=name) | Q(url=url)):
        if full and replica.name == name:
            continue
        if replica.name == name:
            raise ReplicaExists(f"the replica {name} is one of this node's own at {replica.url}", field="replica_id")
        raise ReplicaExists(f"the URL {url} is the replica {replica.name}'s", field="replica_url")
    for copy in ShardCopy.objects.filter(Q(name=name) | Q(url=url)).select_related("shard"):
        if copy.name == name and copy.url == url and (full or copy.shard_id == shard.pk):
            continue
        if copy.name == name:
            raise ReplicaExists(
                f"the replica {name} is one of shard {copy.shard.label} at {copy.url}: remove it first",
                field="replica_id",
                detail={"url": copy.url, "shard": copy.shard.label},
            )
        raise ReplicaExists(f"the URL {url} is the replica {copy.name}'s", field="replica_url")
    taken = Shard.objects.filter(url=url).exclude(state=ShardState.REMOVED).first()
    if taken is not None:
        raise ReplicaExists(f"the URL {url} is the shard {taken.label}'s", field="replica_url")


def _ask(
    shard: Shard, method: str, body: Mapping[str, Any], *, timeout_s: float | None = None, cluster: str = ""
) -> dict[str, Any]:
    """Ask a shard's node; raise what it refuses with, as if it had been refused here."""
    cluster = cluster or Topology.objects.get().cluster
    try:
        return peer_client().json(
            shard.url,
            method,
            shard_path(shard.uid, "replicas"),
            json={"cluster": cluster, **body},
            timeout_s=timeout_s or settings.MLVDB_PEER_TIMEOUT_S,
            even_if_silent=True,
        )
    except PeerRejected as rejected:
        if rejected.peer_code == errors.NotPrimary.code:
            failover_knock(shard.pk)
            raise NotReady(
                f"another node is becoming the primary of shard {shard.label}: try again in a moment", retry_after_s=1
            ) from rejected
        raise rejected.as_own(_REFUSALS) or rejected from rejected


def _copies(shard: Shard, answer: Mapping[str, Any]) -> list[ToldCopy]:
    try:
        return copies_read(answer.get("copies"))
    except ValueError as error:
        raise PeerGarbled(f"answered no copies: {error}", url=shard.url) from None


def _copy(shard: Shard, name: str) -> ShardCopy:
    copy = ShardCopy.objects.filter(shard=shard, name=name).first()
    if copy is None:
        raise Conflict(f"the replica {name} was removed again in the meantime", field="replica_id")
    return copy


def _event(
    shard: Shard, copy: ShardCopy | None, actor: str, action: str, *, before: Any = None, after: Any = None
) -> None:
    name = shard.label if copy is None else copy.name
    with registry_change(actor=actor, action=action, subject=name) as change:
        if not Shard.objects.filter(pk=shard.pk).exists():
            raise Unchanged
        change.before, change.after = before, after


_REFUSALS = refusals(
    errors.Conflict,
    errors.InvalidInput,
    errors.NotFound,
    candidates.AlreadyReplica,
    candidates.Cycle,
    candidates.Incompatible,
    candidates.NodeHoldsRows,
    candidates.NotANode,
    candidates.OtherNode,
    candidates.OwnUrl,
    candidates.WrongCluster,
    removal.MembersBehind,
    removal.MembershipChanging,
    removal.NotConfirmed,
    handover.HandoverFailed,
    handover.NoPrimary,
    handover.NotPromotable,
    ReplicaExists,
    ReplicaNotFound,
    ReplicationNotEnabled,
)
"""What the node that keeps a shard's copies refuses as this one would for its own."""
