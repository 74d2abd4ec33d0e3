"""Reads at `quorum` and `all`: what enough members have, and which of them have it.

Every member that is asked answers its position, the (term, seq) of its newest entry. A write of level W is on W
members, so among R members with W + R > N there is one that has it; and the highest of their positions stands for a log
that has it too: in one term all logs are prefixes of one, and a primary of a higher term was elected by members of
which one had the write, and began its term behind it. So whoever is at the highest position, or beyond it, answers with
every write of that level that was acknowledged before the read began.

This does not rest on who the primary is: a deposed one that asks is told, by its position being passed, that it is not
any more. It does rest on who the members are. A change of members is settled only when a quorum of the old ones knows
its epoch, so an older set of members meets that epoch in some answer, and starts again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from cluster.query_processor.copies import Here
from cluster.query_processor.means import Means
from cluster.query_processor.remote import CopyPosition, remote_position
from cluster.replication import quorum
from cluster.routing.choice import Copy
from cluster.routing.hedging import Attempt, Gathering
from cluster.states import Membership
from cluster.topology import ShardView, TopologyView
from cluster.transport.errors import PeerError
from vectors.errors import MLVectorDBError, NotEnoughCopies
from vectors.store import terms
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)


class MembersChanged(Exception):
    """Raised when a member knows a newer epoch than this node, whose set of members may be an older one."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """The position that is to be read from, and the names of the copies that have it."""

    position: Position
    holders: frozenset[str]


def agree(
    view: TopologyView,
    shard: ShardView,
    copies: Sequence[Copy],
    level: str,
    *,
    here: Here | None,
    deadline: float,
    means: Means,
) -> Agreed:
    """Ask members where they are until as many as `level` needs have answered.

    Raise NotEnoughCopies as soon as that cannot come true any more, and at the deadline; MembersChanged; and
    StorageError and the like.
    """
    members = {copy.name: copy.membership for copy in copies if copy.membership is not Membership.NONE}
    positions: dict[str, Position] = {}
    head: Head | None = None
    if here is not None and here.copy.counts:
        head = here.head()
        positions[here.copy.name] = head.position
    why = {copy.name: copy.state.label for copy in copies if copy.name in members and not copy.counts}
    asked = [copy for copy in copies if copy.counts and not copy.is_here and copy.url]
    why |= {copy.name: "it has no URL" for copy in copies if copy.counts and not copy.is_here and not copy.url}
    lost = set(members) - positions.keys() - {copy.name for copy in asked}
    promised_term = 0
    if not quorum.is_reached(level, positions.keys(), members):
        gathering = Gathering(
            [_attempt(copy, view.cluster_of(shard), shard.uid) for copy in asked],
            deadline=deadline,
            threads=means.threads,
        )
        while not quorum.is_reached(level, positions.keys(), members):
            # Those that answer soon are counted also when it is clear that they are not enough.
            is_hopeless = not quorum.is_reachable(level, lost, members)
            outcome = gathering.next(within_s=settings.MLVDB_HEDGE_AFTER_S if is_hopeless else None)
            if outcome is None:
                raise _not_enough(shard, level, members, positions, why)
            if outcome.answer is None:
                lost.add(outcome.name)
                why[outcome.name] = _reason(outcome.error)
                continue
            if outcome.answer.epoch > view.epoch_of(shard):
                raise MembersChanged(
                    f"{outcome.name} knows epoch {outcome.answer.epoch}, this node {view.epoch_of(shard)}"
                )
            positions[outcome.name] = outcome.answer.position
            promised_term = max(promised_term, outcome.answer.promised_term)
    if here is not None and head is not None and head.takes_writes and promised_term > head.term:
        # Another node was voted for: this one acknowledges nothing more, whether it has heard who won or not.
        logger.warning("primary_deposed shard=%s term=%d promised_term=%d", shard.label, head.term, promised_term)
        terms.term_heard(here.shard_id, promised_term)
    highest = max(positions.values())
    return Agreed(highest, frozenset(name for name, position in positions.items() if position == highest))


def _attempt(copy: Copy, cluster: str, shard_uid: str) -> Attempt[CopyPosition]:
    return Attempt(
        copy.name, copy.url, lambda timeout_s: remote_position(copy.url, cluster, shard_uid, timeout_s=timeout_s)
    )


def _reason(error: Exception | None) -> str:
    if isinstance(error, MLVectorDBError):
        return f"{error.code}: {error.message}"
    if error is not None and not isinstance(error, PeerError):
        logger.info("position_not_asked error=%r", error)
    return str(error)


def _not_enough(
    shard: ShardView,
    level: str,
    members: quorum.Members,
    positions: dict[str, Position],
    why: dict[str, str],
) -> NotEnoughCopies:
    needed = quorum.required(level, members) if members else 1
    return NotEnoughCopies(
        f"{len(positions)} of {needed} copies of shard {shard.label} have answered",
        detail={
            "acknowledged": len(positions),
            "required": needed,
            "shard": shard.label,
            "copies": {name: text[:300] for name, text in why.items()},
        },
        retry_after_s=max(1.0, settings.MLVDB_PROBE_TIMEOUT_S),
    )
