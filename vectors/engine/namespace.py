"""The rows of one namespace in one shard copy: frozen parts, the tail, and where each id is.

At most one row of an id is alive, in whichever part. The caller holds the shard engine's lock around every method that
is not said to be free of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from operator import itemgetter
from typing import cast

import numpy as np
import orjson

from vectors.engine import ids
from vectors.engine.distances import Metric, squared_norms
from vectors.engine.filters import ColumnBudget
from vectors.engine.operations import NamespacePut, Patch, Upsert
from vectors.engine.parts import FrozenPart, Part, PartView, TailPart
from vectors.engine.slots import SlotSet

_KEY = itemgetter(0)
_SMALLEST_TAIL_PART = 64
# Rows to look for while the engine is locked; beyond it a new engine is built beside this one.
_MOST_DYING = 20_000
_LARGEST_TAIL_PART_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """What a namespace is: set by its `NamespacePut` entries."""

    uid: str
    name: str
    dimension: int
    metric: Metric
    recall_target: float
    picture: str = ""

    @classmethod
    def of(cls, uid: str, put: NamespacePut) -> NamespaceSpec:
        """Read it off an operation."""
        return cls(uid, put.name, put.dimension, cast(Metric, put.metric), put.recall_target, put.picture)


@dataclass(frozen=True, eq=False)
class NamespaceView:
    """One state of a namespace, immutable: a search, scroll or count runs on it without any lock."""

    spec: NamespaceSpec
    parts: Sequence[PartView]

    @cached_property
    def count(self) -> int:
        """Rows alive."""
        return sum(view.alive for view in self.parts)

    @cached_property
    def frozen(self) -> list[PartView]:
        """The views of frozen parts."""
        return [view for view in self.parts if isinstance(view.part, FrozenPart)]

    @cached_property
    def sorted_tail(self) -> list[tuple[bytes, PartView, int]]:
        """Living rows of the tail in key order: (key, part, row)."""
        rows: list[tuple[bytes, PartView, int]] = []
        for view in self.parts:
            if isinstance(view.part, TailPart):
                keys = view.part.keys
                chosen = range(view.rows) if view.living is None else np.flatnonzero(view.living).tolist()
                rows.extend(zip([keys[row] for row in chosen], repeat(view), chosen))
        rows.sort(key=_KEY)
        return rows

    def only(self, slots: SlotSet) -> NamespaceView:
        """Return the same state with the rows of other slots left out. The last one asked for is kept."""
        kept = self._kept.get("only")
        if kept is None or kept[0] != slots:
            parts = (view.only(slots) for view in self.parts)
            kept = self._kept["only"] = (slots, NamespaceView(self.spec, tuple(view for view in parts if view.alive)))
        return kept[1]

    @cached_property
    def _kept(self) -> dict[str, tuple[SlotSet, NamespaceView]]:
        return {}


class NamespaceEngine:
    """The mutable state behind the views."""

    def __init__(
        self, spec: NamespaceSpec, *, frozen: Sequence[FrozenPart] = (), budget: ColumnBudget | None = None
    ) -> None:
        self.spec = spec
        self.frozen = list(frozen)
        self.tail: list[TailPart] = []
        # Key → number of its row in the tail as a whole; one small integer a row, for there may be millions.
        self._tail_rows: dict[bytes, int] = {}
        self._tail_starts: list[int] = []
        self._budget = budget
        self._view: NamespaceView | None = None

    def view(self) -> NamespaceView:
        """Return the present state; the same object until something changes."""
        if self._view is None:
            parts: list[Part] = [*self.frozen, *self.tail]
            self._view = NamespaceView(self.spec, tuple(part.view() for part in parts if part.rows))
        return self._view

    def exchange(self, frozen: Sequence[FrozenPart]) -> bool:
        """Stand on other segments of the same rows, merged ones say; return False, and change nothing, if they are not.

        `frozen` are the parts that stay, the very ones, and others as they were opened, without what the tail has done
        to their rows: that is done here. A row is the same where key and seq are.
        """
        gone = [part for part in self.frozen if part not in frozen]
        added = [part for part in frozen if part not in self.frozen]
        dying = [part for part in gone if part.dead != part.dead_when_opened]
        if sum(part.dead for part in dying) > _MOST_DYING:
            return False
        for part in dying:
            dead = np.flatnonzero(~part.living)
            keys, hashes, seqs = part.keys.take(dead), part.hashes[dead], part.seqs[dead]
            for other in added:
                rows = other.find(keys, hashes)
                there = rows >= 0
                same = rows[there][other.seqs[rows[there]] == seqs[there]]
                other.kill(np.unique(same))
        if sum(part.alive for part in added) != sum(part.alive for part in gone):
            return False
        self.frozen = list(frozen)
        self._view = None
        return True

    def change(self, spec: NamespaceSpec) -> None:
        """Take over changed attributes; dimension and metric stay what they were."""
        self.spec = NamespaceSpec(
            spec.uid, spec.name, self.spec.dimension, self.spec.metric, spec.recall_target, spec.picture
        )
        self._view = None

    def find(self, key: bytes) -> tuple[Part, int] | None:
        """Return the part and row of a living key."""
        number = self._tail_rows.get(key)
        if number is not None:
            return self._tail_place(number)
        if not self.frozen:
            return None
        hashes = ids.hashes_of([key])
        for part in self.frozen:
            row = int(part.find([key], hashes)[0])
            if row >= 0:
                return part, row
        return None

    def find_many(self, keys: Sequence[bytes], *, slots: SlotSet | None = None) -> list[tuple[Part, int] | None]:
        """Return part and row of each key, None where it is not alive, or not in `slots`."""
        places: list[tuple[Part, int] | None] = [
            None if number is None else self._tail_place(number) for number in map(self._tail_rows.get, keys)
        ]
        if self.frozen:
            asked = [number for number, place in enumerate(places) if place is None]
            if asked:
                keys_asked = [keys[number] for number in asked]
                hashes = ids.hashes_of(keys_asked)
                for part in self.frozen:
                    rows = part.find(keys_asked, hashes)
                    for position in np.flatnonzero(rows >= 0).tolist():
                        places[asked[position]] = (part, int(rows[position]))
        if slots is not None:
            return [None if place is None or place[0].slots[place[1]] not in slots else place for place in places]
        return places

    def upsert(self, operation: Upsert, *, seq: int) -> int:
        """Write rows; return how many."""
        keys = operation.keys
        self._kill(keys)
        self._append(keys, operation.values, operation.metadata, seq=seq)
        self._view = None
        return len(keys)

    def delete(self, keys: Sequence[bytes], *, resolved_at: int | None) -> int:
        """Delete living rows, only those last changed at or before `resolved_at` where it is given; return how many."""
        deleted = self._kill(keys, unchanged_since=resolved_at)
        if deleted:
            self._view = None
        return deleted

    def clear(self, slots: SlotSet) -> int:
        """Delete all living rows of some slots; return how many."""
        killed = 0
        for part in (*self.frozen, *self.tail):
            rows = np.flatnonzero(slots.has(part.slots[: part.rows]) & part.living)
            part.kill(rows)
            killed += len(rows)
            if isinstance(part, TailPart):
                for row in rows.tolist():
                    del self._tail_rows[part.keys[row]]
        if killed:
            self._view = None
        return killed

    def patch(self, operation: Patch, *, seq: int) -> int:
        """Merge metadata: each row is written anew with its values and the merged object; return how many were."""
        places = self.find_many(operation.keys)
        keys: list[bytes] = []
        metadata: list[bytes] = []
        values = np.empty((len(places), self.spec.dimension), dtype=np.float32)
        for key, patch, place in zip(operation.keys, operation.patches, places, strict=True):
            if place is None:
                continue
            part, row = place
            values[len(keys)] = part.matrix[row]
            keys.append(key)
            metadata.append(merged(part.metadata[row], patch))
        if keys:
            self._kill(keys)
            self._append(keys, values[: len(keys)], metadata, seq=seq)
            self._view = None
        return len(keys)

    def _kill(self, keys: Sequence[bytes], *, unchanged_since: int | None = None) -> int:
        known = self._tail_rows
        in_tail = [number for number in map(known.get, keys) if number is not None]
        doomed: dict[Part, np.ndarray] = {}
        if in_tail:
            numbers = np.unique(np.asarray(in_tail, dtype=np.int64))
            owners = np.searchsorted(self._tail_starts, numbers, side="right") - 1
            for owner in np.unique(owners).tolist():
                doomed[self.tail[owner]] = numbers[owners == owner] - self._tail_starts[owner]
        if self.frozen and len(in_tail) < len(keys):
            others = [key for key in keys if key not in known]
            hashes = ids.hashes_of(others)
            for frozen in self.frozen:
                found = frozen.find(others, hashes)
                doomed[frozen] = np.unique(found[found >= 0])
        killed = 0
        for part, rows in doomed.items():
            if unchanged_since is not None:
                rows = rows[part.seqs[rows] <= unchanged_since]
            part.kill(rows)
            killed += len(rows)
            if isinstance(part, TailPart):
                for row in rows.tolist():
                    del known[part.keys[row]]
        return killed

    def _append(self, keys: Sequence[bytes], values: np.ndarray, metadata: Sequence[bytes], *, seq: int) -> None:
        norms, slots = squared_norms(values), ids.slots_of(keys)
        start = 0
        while start < len(keys):
            part = self._roomy_part(len(keys) - start)
            stop = min(len(keys), start + part.room)
            row = part.append(
                keys[start:stop],
                values[start:stop],
                metadata[start:stop],
                squared_norms=norms[start:stop],
                slots=slots[start:stop],
                seq=seq,
            )
            first = self._tail_starts[-1] + row
            self._tail_rows.update(zip(keys[start:stop], range(first, first + stop - start), strict=True))
            start = stop

    def _tail_place(self, number: int) -> tuple[TailPart, int]:
        owner = bisect_right(self._tail_starts, number) - 1
        return self.tail[owner], number - self._tail_starts[owner]

    def _roomy_part(self, rows: int) -> TailPart:
        if self.tail and self.tail[-1].room:
            return self.tail[-1]
        # Capacities double, so that a tail has few parts and wastes less than its own size; pages that no row has
        # touched cost nothing.
        total = sum(part.rows for part in self.tail)
        largest = max(_SMALLEST_TAIL_PART, _LARGEST_TAIL_PART_BYTES // (4 * self.spec.dimension))
        part = TailPart(
            capacity=min(largest, max(_SMALLEST_TAIL_PART, rows, total)),
            dimension=self.spec.dimension,
            budget=self._budget,
        )
        self.tail.append(part)
        self._tail_starts.append(total)
        return part

    @property
    def tail_alive(self) -> int:
        """Living rows of the tail."""
        return sum(part.alive for part in self.tail)

    @property
    def tail_bytes(self) -> int:
        """Bytes of the tail in this process."""
        return sum(part.nbytes for part in self.tail)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the mapped segments."""
        return sum(part.nbytes for part in self.frozen)


def merged(metadata: bytes, patch: bytes) -> bytes:
    """Return compact JSON of an object with a patch's keys put over its own."""
    return orjson.dumps(orjson.loads(metadata) | orjson.loads(patch))
