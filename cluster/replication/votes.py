"""The rules of an election: who may stand, which votes are enough, which term is asked for. Pure.

A candidate asks the members of a shard for their vote in a new term. Whoever gives it stores the term durably and from
then on refuses everything of an older one, so its position stands still for the candidate; it has one vote per term.
N - W + 1 votes meet every write quorum W, so the highest (term, seq) among them has every entry that ever had a quorum,
and only the copy that has it may win.

With an even N half of the members are enough to win, and two halves need not meet: both could win the same term, and
two different entries would then have one (term, seq). So a half counts only without the vote of the present primary:
two such halves of the other N - 1 members do meet. A half with it, and whoever wins by force, must win in a term that
is drawn from a wide range, so that no other candidate asks for the same one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum

from cluster.replication import quorum
from cluster.replication.placements import DETACHED, REPLICA, PlacementDocument
from cluster.replication.quorum import PRIMARY, Members
from cluster.states import Membership

Position = tuple[int, int]
"""What copies are compared by: term and seq of the newest entry."""

DRAWN_FROM = 2**30
"""How far beyond the known terms a drawn one may lie. Terms are 63 bits, tokens and JSON hold 53."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a candidate asks a member for; `candidate` is its node's id, `epoch` that of the placement it knows.

    `force` says that a person wants it although the primary is alive: without it a primary keeps its vote.
    """

    cluster: str
    shard: str
    epoch: int
    term: int
    candidate: str
    force: bool = False


class Result(Enum):
    """What votes come to."""

    ELECTED = "elected"
    DRAW_A_TERM = "enough for a drawn term only"
    BEHIND = "another copy has more"
    TOO_FEW = "too few votes"


@dataclass(frozen=True, slots=True)
class Count:
    """The count of the votes, and what a person must know of it.

    `ahead` names the voter whose copy has the most, where that is more than the candidate's. `is_certain` says that no
    entry with a quorum can be missing from the candidate's log.
    """

    result: Result
    votes: int
    needed: int
    ahead: tuple[str, Position] | None = None
    is_certain: bool = True


def members_of(document: PlacementDocument) -> Members:
    """Return the members of the shard, the primary included."""
    return {copy.name: copy.membership for copy in document.copies}


def may_stand(document: PlacementDocument) -> bool:
    """Whether the receiver's copy may win without force: only a full member, since the winner counts as one.

    The winner's own change of membership would otherwise end without the consent of the members before it.
    """
    own = document.own
    return own is not None and own.membership is Membership.MEMBER


def count(document: PlacementDocument, votes: Mapping[str, Position], *, is_drawn: bool, force: bool) -> Count:
    """Count the votes of an election; `votes` has the position of each voter by its name, the candidate's own included.

    `is_drawn` says that the term was drawn. By force an election is won with any votes.
    """
    members = members_of(document)
    voters = {name for name in votes if name in members}
    needed = quorum.votes_needed(members)
    own = votes[document.name]
    best = max(votes, key=lambda name: (votes[name], name == document.name))
    ahead = (best, votes[best]) if votes[best] > own else None
    enough = quorum.is_elected(voters, members) and may_stand(document)
    is_certain = enough and ahead is None

    def counted(result: Result) -> Count:
        return Count(result, len(voters), needed, ahead, is_certain)

    if ahead is not None and not force:
        return counted(Result.BEHIND)
    if not enough and not force:
        return counted(Result.TOO_FEW)
    if is_drawn or (is_certain and is_exclusive(voters, members)):
        return counted(Result.ELECTED)
    return counted(Result.DRAW_A_TERM)


def is_exclusive(voters: Set[str], members: Members) -> bool:
    """Whether no other candidate can have as good votes in the same term: any two such sets of voters meet."""
    return all(
        len(voters & some) >= quorum.quorum_of(len(some))
        or len((voters & some) - {PRIMARY}) >= quorum.votes_of(len(some))
        for some in quorum.member_sets(members)
    )


def next_term(known: Iterable[int], *, drawn: bool) -> int:
    """Return the term to ask for, above all that are known."""
    return max(known) + 1 + (1 + secrets.randbelow(DRAWN_FROM) if drawn else 0)


def document_for(document: PlacementDocument, *, node: str, name: str) -> PlacementDocument:
    """Return what another node was told of the shard as `node` would have been told, under its own name there.

    `name` is what it was called before: the node may stand in the document by name only, from before it was reached.
    """
    for copy in document.copies:
        if copy.node == node or (not copy.node and copy.name == name):
            return replace(document, name=copy.name, node=node, role=REPLICA)
    return replace(document, name=name, node=node, role=DETACHED)
