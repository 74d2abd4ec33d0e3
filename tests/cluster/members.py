"""This process's node as a replica, and the other members as answers: what elections need of a cluster."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings

from cluster.health.probe import NodeStatus, ShardStatus
from cluster.models import Placement, Topology
from cluster.replication.placements import NodeAddress, PlacedCopy, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.services.taking import placement_take
from cluster.states import CopyState, Membership
from cluster.transport.errors import PeerError, PeerRefused, PeerRejected
from vectors.engine import ids
from vectors.engine.operations import Delete, Kind, encode
from vectors.models import ShardHead
from vectors.store import log, receive, terms
from vectors.store.log import Entry, Position

CLUSTER = "c" * 32
SHARD = "5" * 32
NAMESPACE = "7" * 32
PRIMARY_NODE = "a" * 32
NAME = "replica_1"

Answer = dict[str, Any] | PeerError


def url_of(name: str) -> str:
    """Where a member is; nobody listens there."""
    return f"http://{name.replace('_', '-')}.test:8000"


def node_of(name: str) -> str:
    """The id of a member's node."""
    return {PRIMARY: PRIMARY_NODE, NAME: settings.MLVDB_NODE_ID}.get(name, name[-1] * 32)


def placement_document(*siblings: str, epoch: int = 3, term: int = 1, **changes: Any) -> PlacementDocument:
    """What this node, `replica_1`, was told: a primary, itself, and siblings, all members."""
    copies = tuple(
        PlacedCopy(name, node_of(name), url_of(name), Membership.MEMBER, CopyState.FOLLOWING)
        for name in (PRIMARY, NAME, *siblings)
    )
    address = NodeAddress(PRIMARY_NODE, url_of(PRIMARY))
    told = PlacementDocument(
        CLUSTER, epoch, SHARD, "shard_0", term, "replica", NAME, node_of(NAME), address, address, copies
    )
    return replace(told, **changes)


def with_own(told: PlacementDocument, **changes: Any) -> PlacementDocument:
    """Change what a placement says of this node's own copy."""
    copies = tuple(replace(copy, **changes) if copy.name == told.name else copy for copy in told.copies)
    return replace(told, copies=copies)


@dataclass
class Members:
    """The other members: a status (None: silent) and a vote (an error: refused) for each URL, and what was asked.

    A member that is not named refuses connections.
    """

    statuses: dict[str, NodeStatus | None] = field(default_factory=dict)
    votes: dict[str, Answer | Callable[[dict[str, Any]], Answer]] = field(default_factory=dict)
    placements: dict[str, dict[str, Any]] = field(default_factory=dict)
    ballots: list[dict[str, Any]] = field(default_factory=list)
    asked_to_hand_over: list[str] = field(default_factory=list)
    published: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def alive(self, name: str, *, term: int = 1, seq: int = 0, role: str = "replica", **shard: Any) -> None:
        """Have a member answer probes and, being no primary that takes writes, give its vote."""
        fields = {"promised_term": term, "damage": False, "quarantined": False, **shard}
        epoch = fields.pop("epoch", 3)
        status = ShardStatus(role=role, term=term, seq=seq, **fields)
        self.statuses[url_of(name)] = NodeStatus(node_of(name), "0.1.0", 1, CLUSTER, epoch, False, {SHARD: status})
        self.votes[url_of(name)] = {"node": node_of(name), "term": term, "seq": seq}

    def answers(self, url: str, node: str, *, epoch: int, cluster: str, **shards: ShardStatus) -> None:
        """Have whatever is at a URL answer probes."""
        self.statuses[url] = NodeStatus(node, "0.1.0", 1, cluster, epoch, False, shards)

    def hand_over(self) -> dict[str, Any]:
        """What the primary does when it is asked to: it refuses, unless a test says otherwise."""
        raise PeerRefused("cannot be reached", url=url_of(PRIMARY))

    def refuses(self, name: str, code: str, **detail: Any) -> None:
        """Have a member refuse its vote."""
        self.votes[url_of(name)] = PeerRejected(
            url=url_of(name), peer_status=409, peer_code=code, peer_message=code, peer_detail=detail
        )

    # -- in the place of the transport --------------------------------------------------------------------------

    def status_ask(self, url: str, *, timeout_s: float) -> NodeStatus | None:
        """Answer a question for a status."""
        return self.statuses.get(url)

    def json(self, url: str, method: str, path: str, *, json: Any = None, **_options: Any) -> dict[str, Any]:
        """Answer a ballot, or a question for a placement."""
        if path.endswith("/placement"):
            return self.placements[url]
        if path.endswith("/hand-over"):
            self.asked_to_hand_over.append(url)
            return self.hand_over()
        self.ballots.append({"url": url, **json})
        answer = self.votes.get(url, PeerRefused("cannot be reached", url=url))
        if callable(answer):
            answer = answer(json)
        if isinstance(answer, PeerError):
            raise answer
        return answer


def become_replica(told: PlacementDocument, *, entries: int = 0) -> ShardHead:
    """Make this node the replica of a placement, with a log of `entries` entries of the primary's."""
    placement_take(told.to_document())
    head = ShardHead.objects.get(uid=SHARD)
    receive_entries(head.pk, entries)
    return ShardHead.objects.get(uid=SHARD)


def receive_entries(shard_id: int, count: int) -> Position:
    """Receive some more entries of the primary of term 1."""
    found = log.read_head(shard_id)
    assert found is not None
    payload = encode(Delete([ids.key_of(1)]))
    entries = []
    for seq in range(found.last_seq + 1, found.last_seq + 1 + count):
        stamp = log.checksum(seq, 1, int(Kind.DELETE), NAMESPACE, zlib.crc32(payload))
        entries.append(Entry(seq, 1, NAMESPACE, int(Kind.DELETE), payload, stamp))
    return receive.receive(shard_id, term=1, before=found.position, entries=entries)


def own_head() -> log.Head:
    """The head of this node's copy."""
    found = log.read_head(ShardHead.objects.get(uid=SHARD).pk)
    assert found is not None
    return found


def is_replica() -> bool:
    """Whether this node obeys another."""
    topology = Topology.objects.get()
    return not topology.is_owner and Placement.objects.filter(shard=SHARD).exists() and not own_head().is_primary


def promise(term: int, candidate: str) -> None:
    """Have this copy promise a term to another candidate."""
    terms.term_promise(own_head().shard_id, term, candidate=candidate)
