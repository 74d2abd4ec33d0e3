"""Whether a copy may be promoted, found out before any term is touched: what it holds, and what other copies say."""

from __future__ import annotations

import logging

from cluster.health.probe import NodeStatus, ShardStatus, statuses_ask
from cluster.models import Placement
from cluster.replication import quorum
from cluster.replication.election import NotElected, PrimaryAlive, more_caught_up, placement_ask
from cluster.replication.placements import PlacedCopy, PlacementDocument
from cluster.replication.votes import may_stand, members_of
from cluster.states import CopyState, Membership
from cluster.transport.errors import PeerError
from vectors.errors import Conflict
from vectors.store import staging
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)


class Unfit(Conflict):
    """Raised when this copy may not become the primary, by force neither: what it holds is not the shard."""

    code = "copy_unfit"


def check_fit(document: PlacementDocument, head: Head) -> None:
    """Raise Unfit for a copy that must not become the primary whoever wants it."""
    own = document.own
    if head.damage is not None:
        raise Unfit("this copy is damaged: what it holds is not the whole shard", detail={"reason": "damaged"})
    if own is not None and own.state is CopyState.QUARANTINED:
        raise Unfit(
            "this copy is quarantined: its contents were found to differ from the primary's",
            detail={"reason": "quarantined"},
        )
    primary_seq = Placement.objects.filter(shard=document.shard).values_list("primary_seq", flat=True).first() or 0
    is_syncing = staging.is_under_way(document.shard, head.shard_id, head.position)
    if is_syncing or (head.last_seq == 0 and primary_seq > 0):
        raise Unfit(
            "this copy is in the middle of a full sync: what it holds is an old state or nothing",
            detail={"reason": "syncing"},
        )


def look(document: PlacementDocument, head: Head, *, force: bool) -> PlacementDocument | None:
    """Look before a term is touched: raise what forbids an election; return a newer placement that was found."""
    own = Position(head.term, head.last_seq)
    found: dict[str, ShardStatus] = {}
    for copy, status in _statuses(document):
        if (
            status is None
            or status.cluster_of(document.shard) != document.cluster
            or (copy.node and status.node != copy.node)
        ):
            continue
        if status.epoch_of(document.shard) > document.epoch:
            newer = _newer_from(copy, document)
            if newer is not None:
                return newer
        shard = status.shards.get(document.shard)
        if shard is not None and not shard.damage and not shard.quarantined:
            found[copy.name] = shard
    if force:
        return None
    for name, shard in found.items():
        if shard.role == "primary" and shard.promised_term == shard.term:
            url = next(copy.url for copy in document.copies if copy.name == name)
            raise PrimaryAlive(
                f"the primary at {url} is alive: promote from there, or take it away by force",
                detail={"primary_url": url, "term": shard.term, "seq": shard.seq},
            )
    members = members_of(document)
    ahead = {
        name: Position(*shard.position)
        for name, shard in found.items()
        if members[name] is not Membership.NONE and shard.position > own
    }
    if ahead:
        best = max(ahead, key=lambda name: ahead[name])
        raise more_caught_up(document, best, ahead[best])
    if not may_stand(document):
        raise NotElected("this copy is not a member (yet): it may have missed writes", detail={"refusals": {}})
    voters = {document.name, *found}
    if not quorum.is_elected(voters, members):
        away = sorted(set(members) - voters)
        raise NotElected(
            f"{len(voters & set(members))} of {quorum.votes_needed(members)} votes can be had: {', '.join(away)} "
            "cannot be reached or must not vote",
            detail={"votes": len(voters & set(members)), "needed": quorum.votes_needed(members), "away": away},
        )
    return None


def _statuses(document: PlacementDocument) -> list[tuple[PlacedCopy, NodeStatus | None]]:
    others = [copy for copy in document.copies if copy.name != document.name]
    return list(zip(others, statuses_ask([copy.url for copy in others]), strict=True))


def _newer_from(copy: PlacedCopy, document: PlacementDocument) -> PlacementDocument | None:
    try:
        newer = placement_ask(copy, document)
    except PeerError as error:
        logger.info("placement_not_told url=%s error=%s", copy.url, error.message)
        return None
    return newer if newer is not None and newer.epoch > document.epoch else None
