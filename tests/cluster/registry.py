"""A registry for a test: this process's node as the owner of a cluster, with replicas that are rows only."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.models import Replica, ReplicaCopy, Topology
from cluster.services.registry import replication_enable
from cluster.states import CopyState, Membership, PeerHealth
from cluster.topology import topology_forget
from mlvdb_site.markers import topology_changed
from vectors.models import ShardHead


@dataclass
class Registry:
    """This node as the owner; `sent` are the names and arguments of the tasks that were published."""

    head: ShardHead
    sent: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        return int(Topology.objects.get().epoch)

    def replica(
        self,
        name: str,
        *,
        health: PeerHealth = PeerHealth.ALIVE,
        state: CopyState = CopyState.FOLLOWING,
        membership: Membership = Membership.MEMBER,
        failures: int = 0,
        successes: int = 2,
        **fields: object,
    ) -> Replica:
        """Register a replica at a URL where nobody listens."""
        number = Replica.objects.count() + 1
        replica = Replica.objects.create(
            name=name,
            url=f"http://127.0.0.1:{number}",
            node=f"{number:032x}",
            version="0.1.0",
            health=health,
            failures=failures,
            successes=successes,
            **fields,
        )
        ReplicaCopy.objects.create(
            replica=replica, shard=self.head.uid, state=state, membership=membership, term=1, seq=self.head.last_seq
        )
        topology_changed()
        return replica


def owner_of(head: ShardHead) -> Registry:
    """Make this node the owner of a registry."""
    topology_forget()
    assert replication_enable(actor="test")
    return Registry(head)
