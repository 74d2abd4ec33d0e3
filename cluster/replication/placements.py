"""The placement document: what the owner of a registry tells a node of one shard. Pure.

    {"format": 1, "cluster", "epoch", "shard": {"uid", "label", "term"}, "role": "replica" | "detached",
     "name", "node": <of the receiver; the node's id is empty while it is not known>,
     "owner": {"node", "url"}, "primary": {"node", "url"},
     "copies": [{"name", "node", "url", "membership", "state"}, …],
     "sharding": the shards of the owner, where it has some (`cluster.sharding.placed`),
     "assignment": what a coordinator has told the owner, where the shard is one of its (`cluster.sharding.assignment`)}

The primary is among the copies, as PRIMARY; a detached receiver is not. A copy knows its siblings from here, so that
one of them can be promoted when the owner is gone; and whose shard it is then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.replication.quorum import PRIMARY
from cluster.sharding.assignment import AssignmentDocument
from cluster.sharding.placed import PlacedShards
from cluster.states import CopyState, Membership
from vectors.names import NAME_PATTERN

FORMAT = 1
_UID = re.compile(r"[0-9a-f]{32}").fullmatch
_NAME = re.compile(NAME_PATTERN).fullmatch

REPLICA = "replica"
DETACHED = "detached"


class NodeAddress(NamedTuple):
    """A node's id and its URL, either empty where it is not known."""

    node: str
    url: str


@dataclass(frozen=True, slots=True)
class PlacedCopy:
    """One copy of the shard. The primary's has the state FOLLOWING here, and "primary" in the document."""

    name: str
    node: str
    url: str
    membership: Membership
    state: CopyState

    def to_document(self) -> dict[str, str]:
        """Return its part of the document."""
        return {
            "name": self.name,
            "node": self.node,
            "url": self.url,
            "membership": self.membership.value,
            "state": PRIMARY if self.name == PRIMARY else self.state.value,
        }

    @classmethod
    def of(cls, part: Any) -> PlacedCopy:
        """Read its part of the document."""
        name = _text(part["name"])
        state = CopyState.FOLLOWING if name == PRIMARY else CopyState(part["state"])
        return cls(name, _text(part["node"]), _text(part["url"]), Membership(part["membership"]), state)


@dataclass(frozen=True, slots=True)
class PlacementDocument:
    """A placement, read."""

    cluster: str
    epoch: int
    shard: str
    label: str
    term: int
    role: str
    name: str
    node: str
    owner: NodeAddress
    primary: NodeAddress
    copies: tuple[PlacedCopy, ...]
    sharding: PlacedShards | None = None
    assignment: AssignmentDocument | None = None

    @property
    def own(self) -> PlacedCopy | None:
        """The receiver's copy; None for one that is detached."""
        return next((copy for copy in self.copies if copy.name == self.name), None)

    @property
    def is_detached(self) -> bool:
        """Whether the receiver's copy was removed from the cluster."""
        return self.role == DETACHED

    def to_document(self) -> dict[str, Any]:
        """Return what is sent and stored."""
        sharding = {} if self.sharding is None else {"sharding": self.sharding.to_document()}
        assignment = {} if self.assignment is None else {"assignment": self.assignment.to_document()}
        return {
            "format": FORMAT,
            "cluster": self.cluster,
            "epoch": self.epoch,
            "shard": {"uid": self.shard, "label": self.label, "term": self.term},
            "role": self.role,
            "name": self.name,
            "node": self.node,
            "owner": self.owner._asdict(),
            "primary": self.primary._asdict(),
            "copies": [copy.to_document() for copy in self.copies],
            **sharding,
            **assignment,
        }

    @classmethod
    def of(cls, document: Any) -> PlacementDocument:
        """Read one; raise ValueError for anything else, and for a format of another version."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r} of placements is not known here, {FORMAT} is")
            shard = document["shard"]
            if document["role"] not in (REPLICA, DETACHED):
                raise ValueError(f"no role: {document['role']!r}")
            if type(document["copies"]) is not list:
                raise TypeError("copies are no list")
            sharding, assignment = document.get("sharding"), document.get("assignment")
            return cls(
                cluster=_uid(document["cluster"]),
                epoch=_whole(document["epoch"]),
                shard=_uid(shard["uid"]),
                label=_name(shard["label"]),
                term=_whole(shard["term"]),
                role=document["role"],
                name=_name(document["name"]),
                node=_text(document["node"]),
                owner=_address(document["owner"]),
                primary=_address(document["primary"]),
                copies=tuple(PlacedCopy.of(part) for part in document["copies"]),
                sharding=None if sharding is None else PlacedShards.of(sharding),
                assignment=None if assignment is None else AssignmentDocument.of(assignment),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a placement lacks a part, or has a wrong one: {error!r}") from None


def summary(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what of a placement is worth keeping in the history."""
    if document is None:
        return None
    return {
        "cluster": document["cluster"],
        "epoch": document["epoch"],
        "term": document["shard"]["term"],
        "role": document["role"],
        "name": document["name"],
        "primary": document["primary"]["url"],
        "copies": {copy["name"]: f"{copy['state']}, {copy['membership']}" for copy in document["copies"]},
    }


def _address(part: Any) -> NodeAddress:
    return NodeAddress(_text(part["node"]), _text(part["url"]))


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > 255:
        raise TypeError(f"not a short text: {value!r}"[:200])
    return value


def _uid(value: Any) -> str:
    """Return a uid; it becomes part of paths."""
    if type(value) is not str or not _UID(value):
        raise TypeError(f"not a uid: {value!r}"[:200])
    return value


def _name(value: Any) -> str:
    if type(value) is not str or not _NAME(value):
        raise TypeError(f"not a name: {value!r}"[:200])
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError(f"not a whole number: {value!r}"[:200])
    return value
