"""The picture of registry or placements: plain values, whole at one epoch, that nobody changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.sharding.view import AssignmentView, ShardingView
from cluster.states import CopyState, Membership, PeerHealth


@dataclass(frozen=True, slots=True)
class CopyView:
    """A copy of a shard on a node other than the primary.

    `replica_id` is the key of its Replica row, at the registry's owner only. `term` and `seq` are the position it last
    answered, as far as this node knows; 0 where it knows nothing. `health` is unknown but at the owner.
    """

    name: str
    url: str
    node: str
    state: CopyState
    membership: Membership
    health: PeerHealth = PeerHealth.UNKNOWN
    term: int = 0
    seq: int = 0
    paused: bool = False
    is_self: bool = False
    replica_id: int | None = None


@dataclass(frozen=True, slots=True)
class PlacementView:
    """What this node has been told of one shard by the owner of its registry.

    `primary_seq` and `heard` are as of the picture; `placement_heard` reads them anew.
    """

    name: str
    role: str
    epoch: int
    term: int
    primary_url: str
    primary_node: str
    owner_url: str
    owner_node: str
    state: CopyState
    membership: Membership
    primary_seq: int
    heard: int
    cluster: str = ""
    assignment: AssignmentView | None = None
    """Whose shard it is, where the primary is another coordinator's."""

    @property
    def is_detached(self) -> bool:
        """Whether the copy was removed from its cluster: it is kept, read-only, and filled no more."""
        return self.role == "detached"

    @property
    def is_quarantined(self) -> bool:
        """Whether its contents were found to differ."""
        return self.state is CopyState.QUARANTINED


@dataclass(frozen=True, slots=True)
class ShardView:
    """One shard that this node holds a copy of. `copies` are all but the primary's, this node's own included.

    `shard_id` is the key of this node's own copy, None when it has none (yet). `primary_url` is None where this node's
    own copy is the primary, and where nobody has told.
    """

    uid: str
    label: str
    shard_id: int | None
    is_local_primary: bool
    primary_url: str | None = None
    primary_node: str = ""
    copies: tuple[CopyView, ...] = ()
    placement: PlacementView | None = None

    @property
    def own(self) -> CopyView | None:
        """This node's own copy among `copies`; None at the primary."""
        return next((copy for copy in self.copies if copy.is_self), None)


@dataclass(frozen=True, slots=True)
class TopologyView:
    """The picture. `shards` by uid holds every shard copy of this node, also on a node that is in no cluster."""

    cluster: str = ""
    epoch: int = 0
    is_owner: bool = False
    replication_enabled: bool = False
    is_single: bool = True
    """Whether there is no other copy of anything here and nobody to obey: this node answers as one on its own."""
    shards: Mapping[str, ShardView] = field(default_factory=dict)
    sharding: ShardingView | None = None
    """The shards of this coordinator; None where sharding is not enabled."""
    placed_sharding: ShardingView | None = None
    """At a replica of a coordinator, the shards as it was told of them; None where there are no others."""
    assignment: AssignmentView | None = None
    """What a coordinator has told this node; None where it is nobody's shard."""

    @property
    def routes(self) -> ShardingView | None:
        """The shards over which this node's answers are to be gathered; None where one shard has everything."""
        return self.sharding or self.placed_sharding

    @property
    def placement(self) -> PlacementView | None:
        """What this node has been told, of any shard that it still keeps; None where it obeys nobody."""
        told = [shard.placement for shard in self.shards.values() if shard.placement is not None]
        # Whoever keeps copies of shards that are clusters of their own obeys nobody in that.
        own = [placement for placement in told if placement.cluster in ("", self.cluster)]
        return min(own, key=lambda placement: placement.is_detached, default=None)

    def cluster_of(self, shard: ShardView) -> str:
        """Return the cluster whose registry names the copies of a shard: this node's own, or what it was told."""
        return self.cluster if shard.placement is None else shard.placement.cluster or self.cluster

    def assignment_of(self, shard: ShardView) -> AssignmentView | None:
        """Return what a coordinator has told of a shard: this node, or the primary that this node follows."""
        if shard.placement is not None:
            return None if shard.placement.is_detached else shard.placement.assignment
        return self.assignment if self.assignment is not None and self.assignment.uid == shard.uid else None

    def epoch_of(self, shard: ShardView) -> int:
        """Return the epoch of `cluster_of` as this node knows it."""
        return self.epoch if shard.placement is None else shard.placement.epoch
