"""The assignment document: what a coordinator tells the node of one of its shards. Pure.

    {"format": 1, "cluster", "reign", "epoch", "shard": {"uid", "label"}, "coordinator": {"node", "url"},
     "node": <of the receiver; empty while it is not known>, "slots": <hex of a packed SlotSet>, "joins": bool,
     "released": bool}

`cluster` is the coordinator's: the shard's own copies are another cluster, whose registry its primary keeps. `joins`
says that the shard is new, and begins with an empty copy; a node that has none and is told of a shard that was there
before has lost it. With `released` the receiver is told that it is a shard of that cluster no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vectors.engine.slots import SlotSet
from vectors.names import NAME_PATTERN

FORMAT = 1
_UID = re.compile(r"[0-9a-f]{32}").fullmatch
_NAME = re.compile(NAME_PATTERN).fullmatch
_LONGEST_URL = 255


@dataclass(frozen=True, slots=True)
class AssignmentDocument:
    """An assignment, read."""

    cluster: str
    epoch: int
    shard: str
    label: str
    coordinator_node: str
    coordinator_url: str
    node: str
    slots: SlotSet
    released: bool = False
    joins: bool = False
    reign: int = 0
    """How often another node has become the coordinator: epochs are ordered within a reign."""

    def to_document(self) -> dict[str, Any]:
        """Return what is sent."""
        return {
            "format": FORMAT,
            "cluster": self.cluster,
            "reign": self.reign,
            "epoch": self.epoch,
            "shard": {"uid": self.shard, "label": self.label},
            "coordinator": {"node": self.coordinator_node, "url": self.coordinator_url},
            "node": self.node,
            "slots": self.slots.packed.hex(),
            "joins": self.joins,
            "released": self.released,
        }

    def to_fields(self) -> dict[str, Any]:
        """Return what a node keeps of it beside the shard's uid, by the names of the columns."""
        return {
            "label": self.label,
            "cluster": self.cluster,
            "reign": self.reign,
            "epoch": self.epoch,
            "coordinator_node": self.coordinator_node,
            "coordinator_url": self.coordinator_url,
            "slots": self.slots.packed,
        }

    @classmethod
    def of(cls, document: Any) -> AssignmentDocument:
        """Read one; raise ValueError for anything else, and for a format of another version."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r} of assignments is not known here, {FORMAT} is")
            shard, coordinator = document["shard"], document["coordinator"]
            epoch, reign = document["epoch"], document.get("reign", 0)
            joins, released = document["joins"], document["released"]
            for number in (epoch, reign):
                if type(number) is not int or not 0 <= number < 2**63:
                    raise TypeError(f"not an epoch: {number!r}"[:200])
            if type(joins) is not bool or type(released) is not bool:
                raise TypeError("joins or released is neither true nor false")
            return cls(
                cluster=_matching(_UID, document["cluster"], "uid"),
                epoch=epoch,
                shard=_matching(_UID, shard["uid"], "uid"),
                label=_matching(_NAME, shard["label"], "name"),
                coordinator_node=_matching(_UID, coordinator["node"], "uid"),
                coordinator_url=_text(coordinator["url"]),
                node=_text(document["node"]),
                slots=SlotSet(bytes.fromhex(document["slots"])),
                released=released,
                joins=joins,
                reign=reign,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"an assignment lacks a part, or has a wrong one: {error!r}") from None


def _matching(form: Any, value: Any, what: str) -> str:
    if type(value) is not str or not form(value):
        raise TypeError(f"not a {what}: {value!r}"[:200])
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _LONGEST_URL:
        raise TypeError(f"not a short text: {value!r}"[:200])
    return value
