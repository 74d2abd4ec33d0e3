"""A member's part in an election: it gives its vote, or says why not, and tells a candidate of a newer placement."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from cluster.models import Placement
from cluster.replication.election import PrimaryAlive
from cluster.replication.votes import Ballot
from cluster.services.accession import registry_document
from cluster.services.taking import StaleEpoch
from cluster.topology import ShardView, TopologyView, topology
from vectors.errors import Conflict, NotFound
from vectors.store import log, terms


class NoVote(Conflict):
    """Raised when the word of this copy does not count: it is damaged, quarantined, detached, or of another cluster."""

    code = "no_vote"


def vote_give(ballot: Ballot) -> dict[str, Any]:
    """Promise the ballot's term to its candidate, durably, and return the position that this copy has from then on.

    The same ballot again gets the same answer. Raise StaleEpoch, NoVote, PrimaryAlive (a primary that takes writes
    gives its vote only by force, or when it has agreed to a handover before), and StaleTerm for a term that is over or
    another candidate's.
    """
    picture = topology()
    shard = _own_shard(picture, ballot)
    assert shard.shard_id is not None
    _check_epoch(picture, ballot)
    head = log.read_head(shard.shard_id)
    if head is None or head.damage is not None or (shard.placement is not None and shard.placement.is_quarantined):
        raise NoVote("this copy is damaged or quarantined: what it holds proves nothing")
    if head.takes_writes and not ballot.force:
        raise PrimaryAlive(f"node {settings.MLVDB_NODE_ID[:8]} is the primary of term {head.term} and takes writes")
    promised = terms.term_promise(shard.shard_id, ballot.term, candidate=ballot.candidate)
    # A placement that was taken between the look above and the promise must not be outvoted by those who missed it.
    _check_epoch(topology(), ballot)
    return {
        "node": settings.MLVDB_NODE_ID,
        "epoch": picture.epoch_of(shard),
        "term": promised.term,
        "seq": promised.last_seq,
        "promised_term": promised.promised_term,
    }


def placement_tell(uid: str) -> dict[str, Any]:
    """Return the newest placement of a shard that this node knows, as it was told or, at the owner, tells.

    Raise NotFound where it knows none.
    """
    placement = Placement.objects.filter(shard=uid).first()
    if placement is not None:
        return dict(placement.document)
    if topology().is_owner and uid in topology().shards:
        return registry_document(uid).to_document()
    raise NotFound(f"this node knows no placement of the shard {uid}")


def _own_shard(picture: TopologyView, ballot: Ballot) -> ShardView:
    shard = picture.shards.get(ballot.shard)
    known = picture.cluster if shard is None else picture.cluster_of(shard)
    if known != ballot.cluster:
        raise NoVote(f"this node belongs to another cluster ({known[:8] or 'none'})")
    if shard is None or shard.shard_id is None:
        raise NoVote("this node has no copy of the shard")
    if shard.placement is not None and shard.placement.is_detached:
        raise NoVote("this copy was removed from the cluster")
    return shard


def _check_epoch(picture: TopologyView, ballot: Ballot) -> None:
    shard = picture.shards.get(ballot.shard)
    own = picture.epoch if shard is None else picture.epoch_of(shard)
    if ballot.epoch < own:
        raise StaleEpoch(
            f"epoch {ballot.epoch} is older than this node's {own}",
            detail={"epoch": own, "placement": placement_tell(ballot.shard)},
        )
