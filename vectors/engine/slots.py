"""Sets of slots: which part of the id space is meant. A slot is `vectors.engine.ids.slot_of` an id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vectors.engine.ids import SLOT_COUNT

PACKED_BYTES = SLOT_COUNT // 8


@dataclass(frozen=True)
class SlotSet:
    """Some of the slots, immutable and hashable; `packed` has one bit a slot, the lowest slot in the highest bit."""

    packed: bytes

    def __post_init__(self) -> None:
        """Raise ValueError for anything but one bit a slot."""
        if len(self.packed) != PACKED_BYTES:
            raise ValueError(f"a set of slots has {PACKED_BYTES} bytes, got {len(self.packed)}")

    @classmethod
    def of(cls, slots: Iterable[int] | np.ndarray) -> SlotSet:
        """Return the set of some slots, given as numbers."""
        chosen = np.zeros(SLOT_COUNT, dtype=bool)
        chosen[np.asarray(slots if isinstance(slots, np.ndarray) else list(slots), dtype=np.int64)] = True
        return cls.of_mask(chosen)

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> SlotSet:
        """Return the set whose slots are true in `mask`: (16384,) bool."""
        return cls(np.packbits(mask).tobytes())

    @cached_property
    def mask(self) -> np.ndarray:
        """Whether each slot is in the set: (16384,) bool, not to be written."""
        mask = np.unpackbits(np.frombuffer(self.packed, dtype=np.uint8)).astype(bool)
        mask.flags.writeable = False
        return mask

    @cached_property
    def numbers(self) -> np.ndarray:
        """The slots in order: (n,) uint16."""
        return np.flatnonzero(self.mask).astype(np.uint16)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Return for each of `slots` (n,) whether it is in the set: (n,) bool."""
        inside: np.ndarray = self.mask[slots]
        return inside

    def __len__(self) -> int:
        return int(np.count_nonzero(self.mask))

    def __bool__(self) -> bool:
        return any(self.packed)

    def __contains__(self, slot: int) -> bool:
        return bool(self.mask[slot])

    def __or__(self, other: SlotSet) -> SlotSet:
        return SlotSet.of_mask(self.mask | other.mask)

    def __and__(self, other: SlotSet) -> SlotSet:
        return SlotSet.of_mask(self.mask & other.mask)

    def __sub__(self, other: SlotSet) -> SlotSet:
        return SlotSet.of_mask(self.mask & ~other.mask)


ALL_SLOTS = SlotSet(b"\xff" * PACKED_BYTES)
NO_SLOTS = SlotSet(bytes(PACKED_BYTES))
