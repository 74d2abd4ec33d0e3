"""States of replicas' copies, of peers and of moves: predicates, and the tables of legal transitions. Pure.

Nobody compares states elsewhere: code asks a state what it may do, and changes it by compare-and-set through `allowed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class CopyState(StrEnum):
    """What a replica's copy of one shard is, as the primary knows it.

    NEW: registered; its node has not taken the placement yet. SYNCING: a full sync of segments is needed or running;
    what it holds meanwhile is an old prefix of the log, or nothing. FOLLOWING: a prefix of the log that grows by
    slices. QUARANTINED: its contents differ at a position where they must not; neither read nor asked for votes until
    refilled. REFUSED: its node will not or may not take the placement; waits for a person or a changed node.
    """

    NEW = "new"
    SYNCING = "syncing"
    FOLLOWING = "following"
    QUARANTINED = "quarantined"
    REFUSED = "refused"

    @property
    def label(self) -> str:
        """Words for people."""
        return {"syncing": "full sync"}.get(self.value, self.value)

    @property
    def is_readable(self) -> bool:
        """Whether a read may be sent to it."""
        return self is CopyState.FOLLOWING

    @property
    def takes_slices(self) -> bool:
        """Whether a write may wait for it: its log grows by slices of the primary's."""
        return self is CopyState.FOLLOWING

    @property
    def votes(self) -> bool:
        """Whether what it holds is a prefix of the log, so that its word counts in a promotion."""
        return self in (CopyState.FOLLOWING, CopyState.SYNCING, CopyState.NEW)

    @property
    def needs_placement(self) -> bool:
        """Whether its node has yet to take the placement."""
        return self in (CopyState.NEW, CopyState.REFUSED)


COPY_TRANSITIONS: Mapping[CopyState, frozenset[CopyState]] = {
    CopyState.NEW: frozenset({CopyState.SYNCING, CopyState.FOLLOWING, CopyState.REFUSED, CopyState.QUARANTINED}),
    CopyState.SYNCING: frozenset({CopyState.FOLLOWING, CopyState.REFUSED, CopyState.QUARANTINED}),
    CopyState.FOLLOWING: frozenset({CopyState.SYNCING, CopyState.REFUSED, CopyState.QUARANTINED}),
    CopyState.QUARANTINED: frozenset({CopyState.FOLLOWING, CopyState.REFUSED}),
    CopyState.REFUSED: frozenset({CopyState.NEW, CopyState.SYNCING, CopyState.FOLLOWING, CopyState.QUARANTINED}),
}


class Membership(StrEnum):
    """Whether a copy counts in N. JOINING and LEAVING: both the old and the new set of members must be satisfied."""

    NONE = "none"
    JOINING = "joining"
    MEMBER = "member"
    LEAVING = "leaving"

    @property
    def counts_before(self) -> bool:
        """Whether it is in the set of members before the change that is under way."""
        return self in (Membership.MEMBER, Membership.LEAVING)

    @property
    def counts_after(self) -> bool:
        """Whether it is in the set of members after the change that is under way."""
        return self in (Membership.MEMBER, Membership.JOINING)


MEMBERSHIP_TRANSITIONS: Mapping[Membership, frozenset[Membership]] = {
    Membership.NONE: frozenset({Membership.JOINING}),
    Membership.JOINING: frozenset({Membership.MEMBER, Membership.LEAVING}),
    Membership.MEMBER: frozenset({Membership.LEAVING}),
    Membership.LEAVING: frozenset({Membership.MEMBER}),
}


class PeerHealth(StrEnum):
    """What the failure detector thinks of a node. UNKNOWN: never reached yet."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"

    @property
    def is_routable(self) -> bool:
        """Whether requests are sent to it."""
        return self is PeerHealth.ALIVE

    @property
    def is_unobjectionable(self) -> bool:
        """Whether nothing speaks against a request that could go elsewhere too."""
        return self in (PeerHealth.ALIVE, PeerHealth.UNKNOWN)

    @property
    def is_probably_up(self) -> bool:
        """Whether background work is still tried at each knock."""
        return self in (PeerHealth.ALIVE, PeerHealth.SUSPECT, PeerHealth.UNKNOWN)


HEALTH_TRANSITIONS: Mapping[PeerHealth, frozenset[PeerHealth]] = {
    PeerHealth.UNKNOWN: frozenset({PeerHealth.ALIVE, PeerHealth.SUSPECT, PeerHealth.DEAD}),
    PeerHealth.ALIVE: frozenset({PeerHealth.SUSPECT, PeerHealth.DEAD}),
    PeerHealth.SUSPECT: frozenset({PeerHealth.ALIVE, PeerHealth.DEAD}),
    PeerHealth.DEAD: frozenset({PeerHealth.ALIVE}),
}


class MovePhase(StrEnum):
    """How far a move is. A full sync: PLANNED → COPYING (segments) → FOLLOWING (the tail) → DONE."""

    PLANNED = "planned"
    COPYING = "copying"
    FOLLOWING = "following"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)


MOVE_TRANSITIONS: Mapping[MovePhase, frozenset[MovePhase]] = {
    MovePhase.PLANNED: frozenset(
        {MovePhase.COPYING, MovePhase.FOLLOWING, MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED}
    ),
    MovePhase.COPYING: frozenset({MovePhase.FOLLOWING, MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED}),
    MovePhase.FOLLOWING: frozenset({MovePhase.COPYING, MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED}),
    MovePhase.DONE: frozenset(),
    MovePhase.FAILED: frozenset(),
    MovePhase.CANCELLED: frozenset(),
}


def allowed(table: Mapping[Any, frozenset[Any]], old: StrEnum, new: StrEnum) -> bool:
    """Return whether a transition is in its table; staying is always allowed."""
    return old == new or new in table[old]


def choices(states: type[StrEnum]) -> list[tuple[str, str]]:
    """Return (value, words) of every state, for a model field."""
    return [(state.value, getattr(state, "label", state.value)) for state in states]
