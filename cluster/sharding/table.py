"""The slot table: which shard owns each slot. Pure; changed as a whole, in the transaction that raises the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vectors.engine.ids import SLOT_COUNT
from vectors.engine.slots import SlotSet


@dataclass(frozen=True, eq=False)
class SlotTable:
    """`owners` (16384,) uint16: the number of the shard that owns each slot. Every slot has exactly one owner."""

    owners: np.ndarray

    @classmethod
    def of_bytes(cls, data: bytes) -> SlotTable:
        """Read what `to_bytes` returned; raise ValueError for another length."""
        if len(data) != 2 * SLOT_COUNT:
            raise ValueError(f"a slot table has {SLOT_COUNT} owners of two bytes, got {len(data)} bytes")
        return cls(np.frombuffer(bytes(data), dtype="<u2"))

    @classmethod
    def even(cls, weights: Mapping[int, float]) -> SlotTable:
        """Return a table that gives each shard (by number) a range of slots in proportion to its weight."""
        numbers = sorted(weights)
        total = sum(weights.values())
        shares = np.cumsum([weights[number] / total * SLOT_COUNT for number in numbers])
        ends = np.rint(shares).astype(np.int64)
        ends[-1] = SLOT_COUNT
        return cls(np.asarray(numbers, dtype="<u2")[np.searchsorted(ends, np.arange(SLOT_COUNT), side="right")])

    def to_bytes(self) -> bytes:
        """Return its stored form."""
        return self.owners.astype("<u2").tobytes()

    def owned_by(self, number: int) -> SlotSet:
        """Return the slots of one shard."""
        return SlotSet.of_mask(self.owners == number)

    def moved(self, slots: SlotSet, *, source: int, target: int) -> SlotTable:
        """Return the table with `slots` at `target`; raise ValueError for a slot that is not `source`'s."""
        if (self.owners[slots.mask] != source).any():
            raise ValueError("a slot to be moved is not its source's")
        owners = self.owners.copy()
        owners[slots.mask] = target
        return SlotTable(owners)
