"""The shards of a coordinator as its replicas are told of them, in each placement. Pure.

    {"strategy", "slots": <base64 of the zlib-compressed slot table>, "reign",
     "shards": [{"number", "label", "uid", "url", "node", "state", "has_foreign", "weight", "auto_failover"}, …],
     "ended": [<uid of a namespace whose end some shard has yet to hear of>, …]}

A replica answers whoever asks it from its copies of the shards; rows of one that it has no whole copy of it asks that
shard's node for, as the coordinator does. It has here what it needs to become the coordinator. The epoch is the
placement's.
"""

from __future__ import annotations

import binascii
import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cluster.sharding.table import SlotTable
from cluster.states import ShardState
from vectors.engine.ids import SLOT_COUNT

_TABLE_BYTES = 2 * SLOT_COUNT
_LONGEST = 255


@dataclass(frozen=True, slots=True)
class PlacedShard:
    """One shard, or a removed one whose node has yet to be told; `url` is empty for one of the coordinator's own."""

    number: int
    label: str
    uid: str
    url: str
    node: str
    state: ShardState
    has_foreign: bool
    weight: float = 1.0
    auto_failover: bool = True

    def to_document(self) -> dict[str, Any]:
        """Return its part of the document."""
        return {
            "number": self.number,
            "label": self.label,
            "uid": self.uid,
            "url": self.url,
            "node": self.node,
            "state": self.state.value,
            "has_foreign": self.has_foreign,
            "weight": self.weight,
            "auto_failover": self.auto_failover,
        }

    @classmethod
    def of(cls, part: Any) -> PlacedShard:
        """Read its part of the document; raise ValueError or TypeError."""
        number, has_foreign = part["number"], part["has_foreign"]
        if type(number) is not int or not 0 <= number < 1 << 16 or type(has_foreign) is not bool:
            raise TypeError("no shard")
        return cls(
            number,
            _text(part["label"]),
            _text(part["uid"]),
            _text(part["url"]),
            _text(part["node"]),
            ShardState(part["state"]),
            has_foreign,
            _weight(part.get("weight", 1.0)),
            part.get("auto_failover", True) is True,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlacedShards:
    """All shards, and who owns which slots. `reign` counts the coordinators that there have been before this one."""

    strategy: str
    table: SlotTable
    shards: tuple[PlacedShard, ...]
    reign: int = 0
    ended: tuple[str, ...] = ()

    @classmethod
    def made(cls, strategy: str, table: SlotTable, shards: Iterable[PlacedShard]) -> PlacedShards:
        """Put them together."""
        return cls(strategy, table, tuple(shards))

    def to_document(self) -> dict[str, Any]:
        """Return what is sent and stored."""
        return {
            "strategy": self.strategy,
            "slots": b64encode(zlib.compress(self.table.to_bytes())).decode(),
            "shards": [shard.to_document() for shard in self.shards],
            "reign": self.reign,
            "ended": list(self.ended),
        }

    @classmethod
    def of(cls, document: Any) -> PlacedShards:
        """Read them; raise ValueError for anything else."""
        try:
            unpacked = zlib.decompressobj().decompress(b64decode(document["slots"], validate=True), _TABLE_BYTES + 1)
            return cls(
                _text(document["strategy"]),
                SlotTable.of_bytes(unpacked),
                tuple(PlacedShard.of(part) for part in document["shards"]),
                _whole(document.get("reign", 0)),
                tuple(_text(uid) for uid in document.get("ended", ())),
            )
        except (KeyError, TypeError, binascii.Error, zlib.error) as error:
            raise ValueError(f"no shards as a placement tells of them: {error!r}") from None


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise TypeError(f"not a whole number: {value!r}"[:200])
    return value


def _weight(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise TypeError(f"not a weight: {value!r}"[:200])
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _LONGEST:
        raise TypeError(f"not a short text: {value!r}"[:200])
    return value
