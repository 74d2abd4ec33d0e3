"""States of replicas' copies, of shards, of peers and of moves: predicates, and the tables of legal transitions. Pure.

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


class ShardState(StrEnum):
    """What a shard is in the registry of its coordinator.

    NEW: registered; its node has not taken its assignment yet, and it owns no slots. ACTIVE: owns slots, or may be
    given some. DRAINING: gives its slots away and is removed when it has none. REFUSED: its node will not take the
    assignment; waits for a person or a changed node. REMOVED: no shard any more; its node has yet to be told.
    """

    NEW = "new"
    ACTIVE = "active"
    DRAINING = "draining"
    REFUSED = "refused"
    REMOVED = "removed"

    @property
    def is_shard(self) -> bool:
        """Whether it is one of the cluster's shards, for people and for requests."""
        return self is not ShardState.REMOVED

    @property
    def may_own(self) -> bool:
        """Whether it may own slots, so that requests are routed to it."""
        return self in (ShardState.ACTIVE, ShardState.DRAINING)

    @property
    def is_target(self) -> bool:
        """Whether plans give it slots."""
        return self is ShardState.ACTIVE


SHARD_TRANSITIONS: Mapping[ShardState, frozenset[ShardState]] = {
    ShardState.NEW: frozenset({ShardState.ACTIVE, ShardState.REFUSED, ShardState.REMOVED}),
    ShardState.ACTIVE: frozenset({ShardState.DRAINING, ShardState.REMOVED}),
    ShardState.DRAINING: frozenset({ShardState.ACTIVE, ShardState.REMOVED}),
    ShardState.REFUSED: frozenset({ShardState.NEW, ShardState.ACTIVE, ShardState.REMOVED}),
    ShardState.REMOVED: frozenset(),
}


class FailoverState(StrEnum):
    """Whether another copy of a shard is to take the place of its node.

    RUNNING: one is looked for and promoted; requests wait for it. STUCK: none could be, and that is tried again;
    requests are refused. In both nothing that the shard's node answers to a write counts.
    """

    NONE = ""
    RUNNING = "running"
    STUCK = "stuck"

    @property
    def is_under_way(self) -> bool:
        """Whether what the shard's node answers to a write does not count."""
        return self is not FailoverState.NONE

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait for its end."""
        return self is FailoverState.RUNNING


class MovePhase(StrEnum):
    """How far a move is.

    A full sync: PLANNED → COPYING (segments) → FOLLOWING (the tail) → DONE. A step of a move of slots: PLANNED →
    COPYING (rows) → FOLLOWING (the source's log) → CLOSING (no writes to its slots) → SWITCHING (the target opens them,
    the slots change owner) → CLEANING (what the source still has goes) → DONE. REOPENING: a close that failed is taken
    back, and the step follows again. UNDOING: a cancelled step's rows go from the target.
    """

    PLANNED = "planned"
    COPYING = "copying"
    FOLLOWING = "following"
    CLOSING = "closing"
    REOPENING = "reopening"
    SWITCHING = "switching"
    CLEANING = "cleaning"
    UNDOING = "undoing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)

    @property
    def may_be_cancelled(self) -> bool:
        """Whether its slots are sure to be with their source still, so that what was done can be undone."""
        return self in (MovePhase.PLANNED, MovePhase.COPYING, MovePhase.FOLLOWING)


OPEN_PHASES = tuple(phase for phase in MovePhase if not phase.is_over)

CLOSED_PHASES = (MovePhase.CLOSING, MovePhase.SWITCHING)
"""Phases of a step in which its source refuses clients' writes to its slots."""

INCOMING_PHASES = (
    MovePhase.COPYING,
    MovePhase.FOLLOWING,
    MovePhase.CLOSING,
    MovePhase.REOPENING,
    MovePhase.SWITCHING,
    MovePhase.UNDOING,
)
"""Phases of a step in which its target has rows that it does not own."""

SETTLED_PHASES = (MovePhase.CLEANING, MovePhase.UNDOING)
"""Phases of a step in which the owner of its slots will not change any more."""

STEP_TRANSITIONS: Mapping[MovePhase, frozenset[MovePhase]] = {
    MovePhase.PLANNED: frozenset({MovePhase.COPYING, MovePhase.CANCELLED, MovePhase.FAILED}),
    MovePhase.COPYING: frozenset({MovePhase.FOLLOWING, MovePhase.UNDOING}),
    MovePhase.FOLLOWING: frozenset({MovePhase.COPYING, MovePhase.CLOSING, MovePhase.UNDOING}),
    MovePhase.CLOSING: frozenset({MovePhase.SWITCHING, MovePhase.REOPENING}),
    MovePhase.REOPENING: frozenset({MovePhase.FOLLOWING, MovePhase.COPYING}),
    MovePhase.SWITCHING: frozenset({MovePhase.CLEANING, MovePhase.REOPENING}),
    MovePhase.CLEANING: frozenset({MovePhase.DONE}),
    MovePhase.UNDOING: frozenset({MovePhase.CANCELLED, MovePhase.FAILED}),
    MovePhase.DONE: frozenset(),
    MovePhase.FAILED: frozenset(),
    MovePhase.CANCELLED: frozenset(),
}

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
    return old == new or new in table.get(old, frozenset())


def choices(states: type[StrEnum]) -> list[tuple[str, str]]:
    """Return (value, words) of every state, for a model field."""
    return [(state.value, getattr(state, "label", state.value)) for state in states]
