"""Which copies of a shard a read goes to, in which order. Pure.

The plan names copies that answer the read as it was asked for, and stand-ins: copies that may answer in place of those
when none of them does, where the client accepts such an answer (`partial`), which then says that it is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.states import CopyState, Membership


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a shard as the router sees it; `url` is empty for the copy on this node.

    `is_routable` says that its node is up as far as is known and that sendings to it are not paused.
    """

    name: str
    url: str = ""
    is_here: bool = False
    is_primary: bool = False
    state: CopyState = CopyState.FOLLOWING
    membership: Membership = Membership.MEMBER
    is_routable: bool = True

    @property
    def is_readable(self) -> bool:
        """Whether it has a whole state of the shard: that of its primary, now or before."""
        return self.is_primary or self.state.is_readable

    @property
    def counts(self) -> bool:
        """Whether it is a member, and what it holds a prefix of the log, so that its position counts in a level."""
        return self.membership is not Membership.NONE and (self.is_primary or self.state.votes)


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask: `copies` in order, then `stand_ins` in order where a stand-in's answer is accepted."""

    copies: tuple[Copy, ...]
    stand_ins: tuple[Copy, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether the copy on this node is the one to ask."""
        return bool(self.copies) and self.copies[0].is_here


def plan_read(copies: Sequence[Copy], preference: str | None, *, turn: int = 0) -> Plan:
    """Return whom a read asks.

    Without a preference, and for `nearest`, that is the copy on this node, whatever its state: it is the one that was
    asked. `replica` is a readable copy that is not the primary, the one on this node first, else by turn; the primary
    where there is none. `primary` is the primary, and readable copies stand in for it.
    """
    here = next((copy for copy in copies if copy.is_here), None)
    if preference in (None, "nearest") and here is not None:
        return Plan((here,))
    primary = tuple(copy for copy in copies if copy.is_primary)
    replicas = _by_turn([copy for copy in copies if not copy.is_primary and copy.is_readable], turn)
    if preference == "replica":
        return Plan(tuple(copy for copy in replicas if copy.is_routable) + primary)
    return Plan(primary, replicas)


def plan_read_among(copies: Sequence[Copy], preference: str | None, eligible: frozenset[str], *, turn: int = 0) -> Plan:
    """Return whom a read asks that only the copies named in `eligible` can answer as it was asked for.

    Those that the preference names come first, then this node's copy, the primary, and the others.
    """
    wanted = plan_read(copies, preference, turn=turn)
    rest = sorted(copies, key=lambda copy: (not copy.is_here, not copy.is_primary, not copy.is_routable))
    ordered = dict.fromkeys([*wanted.copies, *rest])
    return Plan(tuple(copy for copy in ordered if copy.name in eligible))


def _by_turn(copies: Sequence[Copy], turn: int) -> tuple[Copy, ...]:
    """Return the copies rotated by turn, with the one on this node first and those not routable last."""
    if not copies:
        return ()
    start = turn % len(copies)
    rotated = [*copies[start:], *copies[:start]]
    return tuple(sorted(rotated, key=lambda copy: (not copy.is_here, not copy.is_routable)))
