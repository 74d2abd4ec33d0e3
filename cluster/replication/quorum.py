"""How many copies are enough: for a write, a read, a promotion. Pure.

N counts the members of a shard, its primary included; W = N // 2 + 1 of them are a quorum, and N - W + 1 of them meet
every quorum, so that many votes see each write that a quorum has. While a change of membership is under way there are
two sets of members, the one before and the one after, and whatever is asked must be true of both (joint consensus; D.
Ongaro, Consensus: Bridging Theory and Practice, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from cluster.states import Membership

PRIMARY = "primary"
"""The name under which the primary stands among the copies."""

Members = Mapping[str, Membership]
"""Name of each copy of a shard → its membership; the primary is there as PRIMARY, a member."""


def quorum_of(count: int) -> int:
    """Return how many of `count` members are a quorum."""
    return count // 2 + 1


def votes_of(count: int) -> int:
    """Return how many of `count` members have a vote in common with every quorum."""
    return count - quorum_of(count) + 1


def member_sets(members: Members) -> list[frozenset[str]]:
    """Return the set of members, or the two sets before and after the change that is under way."""
    before = frozenset(name for name, membership in members.items() if membership.counts_before)
    after = frozenset(name for name, membership in members.items() if membership.counts_after)
    return [after] if before == after else [before, after]


def required(level: str, members: Members) -> int:
    """Return how many copies a level (`one`, `quorum`, `all`) asks for, of the larger set."""
    return max(_count(level, len(some)) for some in member_sets(members))


def is_reached(level: str, acknowledged: Set[str], members: Members) -> bool:
    """Whether the copies named in `acknowledged` satisfy a level in every set of members."""
    return all(len(acknowledged & some) >= _count(level, len(some)) for some in member_sets(members))


def is_reachable(level: str, lost: Iterable[str], members: Members) -> bool:
    """Whether a level can still be satisfied when the copies named in `lost` will not answer."""
    return is_reached(level, frozenset(members) - frozenset(lost), members)


def is_elected(voters: Set[str], members: Members) -> bool:
    """Whether the copies named in `voters` meet every quorum of every set of members."""
    return all(len(voters & some) >= votes_of(len(some)) for some in member_sets(members))


def votes_needed(members: Members) -> int:
    """Return how many votes a promotion needs, of the larger set."""
    return max(votes_of(len(some)) for some in member_sets(members))


def _count(level: str, members: int) -> int:
    return {"one": 1, "quorum": quorum_of(members), "all": members}[level]
