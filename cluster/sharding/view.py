"""Shards in the picture that each process keeps: at a coordinator all of them, at a shard's node its assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster.states import FailoverState, PeerHealth, ShardState
from vectors.engine.slots import SlotSet


@dataclass(frozen=True, slots=True)
class ShardMember:
    """One shard that owns slots, or may. `shard_id` is the key of this node's copy of it, None for a remote one.

    `has_foreign` is whether it may hold rows of slots it does not own, which every read must then mask. So must those
    of copies that may not have heard yet that these rows are gone (`has_copies`). `node_epoch` is
    the epoch since which `url` leads to its primary, or nothing of that one counts (`failover`). `lagging` are the
    names of copies that are known to be too far behind to take the primary's place.
    """

    number: int
    label: str
    uid: str
    slots: SlotSet
    state: ShardState
    weight: float = 1.0
    shard_id: int | None = None
    url: str = ""
    node: str = ""
    health: PeerHealth = PeerHealth.UNKNOWN
    has_foreign: bool = False
    has_copies: bool = False
    failover: FailoverState = FailoverState.NONE
    node_epoch: int = 0
    lagging: frozenset[str] = frozenset()

    @property
    def is_local(self) -> bool:
        """Whether its rows are in a copy of this node's."""
        return not self.url


@dataclass(frozen=True, slots=True, eq=False)
class ShardingView:
    """The shards of this coordinator. `owners` (16384,) uint16 has for each slot the index of its owner in `members`.

    `epoch` is the cluster's as of the picture: requests that are planned by this view carry it. `closed` are the slots
    that a move has closed for a moment: a write to them waits for a newer picture.
    """

    strategy: str
    epoch: int
    members: tuple[ShardMember, ...]
    owners: np.ndarray
    closed: SlotSet | None = None
    by_uid: Mapping[str, ShardMember] = field(default_factory=dict)
    by_label: Mapping[str, ShardMember] = field(default_factory=dict)

    def owner_of(self, slot: int) -> ShardMember:
        """Return the shard that owns a slot."""
        return self.members[int(self.owners[slot])]


@dataclass(frozen=True, slots=True)
class AssignmentView:
    """What this node has been told by the coordinator whose shard it is."""

    uid: str
    label: str
    cluster: str
    epoch: int
    coordinator_node: str
    coordinator_url: str
    slots: SlotSet
