"""Following a shard to the node that is its primary, and having a copy take the place of a node that is dead.

The copies of a shard on another node elect their primary themselves; the coordinator finds out who it is and says so in
its registry. Each look, under a lease of the shard:
1. all that are known to have a copy are asked what they are. The primary of the highest term is the shard's node; where
   that is another than the registry says, the registry follows in one transaction, and the node is told whose it is;
2. where there is none, the shard's node is dead and the shard may fail over by itself: the registry says first that
   nothing which that node answers counts any more (writes check that before they are acknowledged);
3. the copy that has most of those that may is told to stand for election. Its votes are asked for as in any promotion,
   so it has every write that a quorum has; who refuses it names the one that has more, which is told next, or has to
   send it the rest where it may not take the place itself;
4. the winner is followed as in 1. Where nobody wins, the reason is kept and the next look tries again.
A crash anywhere leaves what the next look, by each health round, goes on from: elections are found by 1, a mark by 2.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.utils import timezone

from cluster.health.probe import NodeStatus, ShardStatus, statuses_ask
from cluster.models import MoveStep, NamespaceErrand, Shard, ShardCopy, ShardedNamespace, Topology
from cluster.replication.election import NotElected
from cluster.services.candidates import words_of
from cluster.services.changes import TASK, Unchanged, registry_change
from cluster.services.shard_replicas import copies_note, copies_read, full_urls
from cluster.services.sharding_assignments import assignments_push
from cluster.states import FailoverState, Membership, PeerHealth, ShardState
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerRejected
from cluster.transport.messages import shard_path
from mlvdb_site.celery import publish
from vectors.errors import MLVectorDBError
from vectors.store.leases import Lease, take_lease

logger = logging.getLogger(__name__)

MOVES_TASK = "cluster.tasks.moves_run"

_PROMOTE_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class _Said:
    """What one of the nodes that may have a copy of the shard said of it."""

    url: str
    name: str
    status: NodeStatus
    shard: ShardStatus

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes: a primary that has promised a newer term takes none."""
        return self.shard.role == "primary" and self.shard.promised_term == self.shard.term

    @property
    def has_whole_copy(self) -> bool:
        """Whether nothing is known against what it has."""
        return self.shard.role == "replica" and not self.shard.damage and not self.shard.quarantined


def shard_look(shard_id: int) -> None:
    """Find out which node is the primary of a shard, and see to it that one is; nothing to do is success."""
    shard = _shard_now(shard_id)
    if shard is None:
        return
    lease = take_lease(f"failover:{shard.uid}", f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}")
    if lease is None:
        return
    with lease:
        shard = _shard_now(shard_id)
        if shard is not None:
            try:
                _look(shard, lease)
            except MLVectorDBError as error:
                logger.warning("failover_look_failed shard=%s error=%s", shard.label, error.message)


def _shard_now(shard_id: int) -> Shard | None:
    shard = Shard.objects.filter(pk=shard_id).exclude(url="").first()
    if shard is None or not ShardState(shard.state).may_own:
        return None
    return shard if Topology.objects.filter(is_owner=True, sharding_enabled=True).exists() else None


def _look(shard: Shard, lease: Lease) -> None:
    copies = list(ShardCopy.objects.filter(shard=shard))
    said = _ask_all(shard, copies)
    primary = max((one for one in said if one.is_primary), key=lambda one: one.shard.term, default=None)
    if primary is not None and primary.url == shard.url:
        _end(shard, lease)
    elif primary is not None:
        _follow(shard, primary, lease)
    elif copies and shard.auto_failover and shard.health == PeerHealth.DEAD:
        _fail_over(shard, _candidates(copies, said), lease)


def _ask_all(shard: Shard, copies: Sequence[ShardCopy]) -> list[_Said]:
    """Ask the shard's node and all known copies what they are."""
    return _ask(shard, {shard.url: ""} | {copy.url: copy.name for copy in copies})


def _ask(shard: Shard, names: Mapping[str, str]) -> list[_Said]:
    """Ask nodes, names by URL, what they are; those that are of this shard's cluster have a say."""
    urls = list(names)
    said = []
    for url, status in zip(urls, statuses_ask(urls), strict=True):
        held = None if status is None else status.shards.get(shard.uid)
        if status is None or held is None:
            continue
        if shard.copies_cluster and status.cluster_of(shard.uid) != shard.copies_cluster:
            # Once a copy, and made the primary of a cluster of its own since.
            continue
        said.append(_Said(url, names[url], status, held))
    return said


def _candidates(copies: Sequence[ShardCopy], said: Sequence[_Said]) -> list[_Said]:
    """Return the copies that may take the dead node's place by themselves, the one with most first.

    A replica of all shards of this node stays that: it is this node's place that it may take.
    """
    full = full_urls()
    able = {
        copy.name for copy in copies if copy.in_sync and copy.membership == Membership.MEMBER and copy.url not in full
    }
    standing = [one for one in said if one.name in able and one.has_whole_copy]
    return sorted(standing, key=lambda one: one.shard.position, reverse=True)


# -- failing over ------------------------------------------------------------------------------------------------


def _fail_over(shard: Shard, candidates: list[_Said], lease: Lease) -> None:
    if not candidates:
        reason = (
            "none of its replicas that are members, in sync and whole can be reached (those of all shards do not take"
            " its node's place)"
        )
        if FailoverState(shard.failover).is_under_way:
            # Begun by a look that was cut short: nobody is to wait for what does not go on.
            _stick(shard, reason, lease)
        else:
            # No mark: should the node come back, it goes on at once.
            _note(shard, reason)
        return
    if not FailoverState(shard.failover).is_under_way:
        _begin(shard, lease)
    reason = ""
    helped: set[str] = set()
    while candidates:
        candidate = candidates.pop(0)
        lease.check()
        try:
            _promote(shard, candidate)
        except PeerRejected as refusal:
            reason = f"{candidate.name}: {refusal.peer_code}: {refusal.peer_message}"
            named = refusal.peer_detail.get("name") if refusal.peer_code == "more_caught_up" else None
            candidates.sort(key=lambda one: one.name != named)
            if named is None and refusal.peer_code != NotElected.code:
                # Its own trouble need not be the next one's.
                continue
            if named is None:
                break
            if candidates and candidates[0].name == named:
                continue
            if candidate.url in helped or not _lent(shard, candidate, str(refusal.peer_detail.get("url"))):
                break
            helped.add(candidate.url)
            candidates.insert(0, candidate)
            continue
        except PeerError as error:
            # What it did of it shows in what it says next.
            reason = f"{candidate.name}: {words_of(error)}"
            continue
        # The others need not be asked again, some of whom may be silent.
        winner = _ask(shard, {candidate.url: candidate.name})
        if winner and winner[0].is_primary:
            _follow(shard, winner[0], lease)
            return
        reason = f"{candidate.name} was elected and does not say so"
        break
    _stick(shard, reason, lease)


def _begin(shard: Shard, lease: Lease) -> None:
    """Have nothing count that the shard's node answers from here on."""
    # Nobody is told now: replicas of this node may be silent, and there is no time to lose.
    with registry_change(actor=TASK, action="failover_begun", subject=shard.label, tells=False) as change:
        lease.check()
        epoch = change.epoch_raise()
        marked = Shard.objects.filter(pk=shard.pk, url=shard.url, node_epoch=shard.node_epoch)
        if not marked.update(failover=FailoverState.RUNNING, failover_error="", node_epoch=epoch):
            raise Unchanged
        change.before, change.after = {"url": shard.url, "node": shard.node}, {"failover": "running"}
        change.alarm = True
    shard.refresh_from_db()
    logger.warning("failover_begun shard=%s url=%s", shard.label, shard.url)


def _promote(shard: Shard, candidate: _Said) -> None:
    cluster = Topology.objects.values_list("cluster", flat=True).get()
    peer_client().json(
        candidate.url,
        "POST",
        shard_path(shard.uid, "promote"),
        json={"cluster": cluster, "actor": f"failover of {shard.label}"[:100]},
        timeout_s=_PROMOTE_WITHIN_S,
        even_if_silent=True,
    )


def _lent(shard: Shard, candidate: _Said, lender: str) -> bool:
    """Have a copy that may not take the place itself send the candidate what that lacks; return whether it did."""
    cluster = Topology.objects.values_list("cluster", flat=True).get()
    now = _ask(shard, {candidate.url: candidate.name})
    if not now:
        return False
    epoch = now[0].status.epoch_of(shard.uid)
    try:
        peer_client().json(
            lender,
            "POST",
            shard_path(shard.uid, "lend"),
            json={"cluster": cluster, "url": candidate.url, "epoch": epoch},
            timeout_s=_PROMOTE_WITHIN_S,
            even_if_silent=True,
        )
    except PeerError as error:
        logger.warning("tail_not_lent shard=%s lender=%s error=%s", shard.label, lender, words_of(error))
        return False
    return True


def _stick(shard: Shard, reason: str, lease: Lease) -> None:
    """Keep why nobody could take the node's place; requests are refused until somebody can."""
    if (shard.failover, shard.failover_error) == (FailoverState.STUCK, reason[:500]):
        return
    with registry_change(actor=TASK, action="failover_stuck", subject=shard.label) as change:
        lease.check()
        marked = Shard.objects.filter(pk=shard.pk, node_epoch=shard.node_epoch).exclude(failover=FailoverState.NONE)
        if not marked.update(failover=FailoverState.STUCK, failover_error=reason[:500]):
            raise Unchanged
        change.after = {"reason": reason[:500]}
        change.alarm = True
    logger.warning("failover_stuck shard=%s reason=%s", shard.label, reason)


def _note(shard: Shard, reason: str) -> None:
    if Shard.objects.filter(pk=shard.pk).exclude(failover_error=reason).update(failover_error=reason):
        logger.warning("failover_not_begun shard=%s reason=%s", shard.label, reason)


# -- following ---------------------------------------------------------------------------------------------------


def _end(shard: Shard, lease: Lease) -> None:
    """Go on with the node that there was: it is the primary, and nobody else has become one."""
    if not shard.failover and not shard.failover_error:
        return
    if not shard.failover:
        Shard.objects.filter(pk=shard.pk).update(failover_error="")
        return
    with registry_change(actor=TASK, action="failover_ended", subject=shard.label) as change:
        lease.check()
        marked = Shard.objects.filter(pk=shard.pk, url=shard.url).exclude(failover=FailoverState.NONE)
        if not marked.update(failover=FailoverState.NONE, failover_error="", node_epoch=change.epoch_raise()):
            raise Unchanged
        change.after = {"url": shard.url}
    logger.warning("failover_ended shard=%s url=%s", shard.label, shard.url)


def _follow(shard: Shard, primary: _Said, lease: Lease) -> None:
    """Have the registry say that the shard is at the node that is its primary now, and tell that node whose it is."""
    taken = Shard.objects.filter(url=primary.url).exclude(pk=shard.pk).exclude(state=ShardState.REMOVED).first()
    if taken is not None:
        reason = f"its primary is at {primary.url}, which is the shard {taken.label}'s"
        if FailoverState(shard.failover).is_under_way:
            _stick(shard, reason, lease)
        else:
            _note(shard, reason)
        return
    followed = False
    with registry_change(actor=TASK, action="shard_followed", subject=shard.label, tells=False) as change:
        lease.check()
        epoch = change.epoch_raise()
        moved = Shard.objects.filter(pk=shard.pk, url=shard.url, node_epoch=shard.node_epoch).update(
            url=primary.url,
            node=primary.status.node,
            version=primary.status.version[:32],
            node_epoch=epoch,
            failover=FailoverState.NONE,
            failover_error="",
            acknowledged_epoch=0,
            attempts=0,
            health=PeerHealth.ALIVE,
            health_since=timezone.now(),
            failures=0,
            successes=0,
            last_error="",
            # What the former node was told last of its slots, its successor may not have in its log.
            gate_due=True,
        )
        if not moved:
            raise Unchanged
        ShardCopy.objects.filter(shard=shard, url=primary.url).delete()
        _errands_again(shard)
        change.before = {"url": shard.url, "node": shard.node}
        change.after = {
            "url": primary.url,
            "node": primary.status.node,
            "term": primary.shard.term,
            "seq": primary.shard.seq,
        }
        change.alarm = True
        followed = True
    if not followed:
        return
    logger.warning("shard_followed shard=%s url=%s before=%s", shard.label, primary.url, shard.url)
    shard.refresh_from_db()
    try:
        copies_note(shard, copies_read(primary.shard.copies), head_seq=primary.shard.seq)
    except ValueError as error:
        logger.warning("copies_not_told shard=%s error=%s", shard.label, error)
    MoveStep.objects.filter(source=shard).update(attempts=0)
    MoveStep.objects.filter(target=shard).update(attempts=0)
    assignments_push(urls=[shard.url])
    publish(MOVES_TASK)


def _errands_again(shard: Shard) -> None:
    """Have the shard told of all namespaces again: what its former node took last, its successor may lack."""
    # Anew, not kept: the end of one that is on its way to the former node must not be taken for the end of these.
    NamespaceErrand.objects.filter(shard=shard).delete()
    NamespaceErrand.objects.bulk_create(
        NamespaceErrand(shard=shard, namespace=row) for row in ShardedNamespace.objects.all()
    )
