"""Runs of rows: the frozen ones of segments, and the growing ones of the tail.

A row is never changed in place. A newer version of an id is a new row and the older one is marked dead, so a search
can go on over the rows it saw while writers append.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vectors.engine import ids
from vectors.engine.filters import ColumnBudget, Columns
from vectors.engine.filters.sorted_ids import SortedIds
from vectors.engine.key_rows import KeyRows
from vectors.engine.packed import PackedBytes
from vectors.engine.slots import SlotSet

if TYPE_CHECKING:
    from vectors.engine.index import SegmentIndex

_TAIL_ROW_BYTES = 164
"""What a row of a tail takes beside values, id and metadata, about: arrays, objects, and its place in a map."""


class Part:
    """What both kinds share: vectors, squared norms, slots, last seqs, keys, metadata and the map of living rows.

    `matrix` (capacity, d) float32, `squared_norms` (capacity,) float64, `slots` (capacity,) uint16, `seqs` (capacity,)
    int64; the first `rows` of each are in use. Writers hold the engine's lock.
    """

    matrix: np.ndarray
    squared_norms: np.ndarray
    slots: np.ndarray
    seqs: np.ndarray
    keys: Sequence[bytes]
    metadata: Sequence[bytes]
    rows: int

    def __init__(
        self,
        *,
        capacity: int,
        rows: int,
        keys: Sequence[bytes],
        metadata: Sequence[bytes],
        budget: ColumnBudget | None,
        sorted_ids: SortedIds | None = None,
    ) -> None:
        self.rows = rows
        self.keys, self.metadata = keys, metadata
        self._living = np.ones(capacity, dtype=bool)
        self._living_is_shared = False
        self.dead = 0
        # Of what a part keeps nothing refers to it, so that a dropped part, and the files that it maps, are let go at
        # once: a cycle would wait for the collector.
        self.columns = Columns(
            lambda start, stop: metadata[start:stop],
            lambda start, stop: keys[start:stop],
            budget=budget,
            sorted_ids=sorted_ids,
        )
        self._norms_lock = threading.Lock()
        self._inverse_norms: np.ndarray | None = None
        self._norm_range: tuple[int, float, float] = (0, np.inf, 0.0)

    @property
    def alive(self) -> int:
        """Rows that are not dead."""
        return self.rows - self.dead

    @property
    def living(self) -> np.ndarray:
        """(rows,) bool: which rows are not dead."""
        return self._living[: self.rows]

    def is_alive(self, row: int) -> bool:
        """Whether a row is not dead."""
        return bool(self._living[row])

    def kill(self, rows: Sequence[int] | np.ndarray) -> None:
        """Mark living rows dead. Views that were handed out keep the map they have."""
        if len(rows) == 0:
            return
        if self._living_is_shared:
            self._living = self._living.copy()
            self._living_is_shared = False
        self._living[rows] = False
        self.dead += len(rows)

    def view(self) -> PartView:
        """Return the rows as they are now; they stay so for as long as the view is held."""
        if not self.dead:
            return PartView(self, self.rows, None)
        self._living_is_shared = True
        return PartView(self, self.rows, self._living[: self.rows])

    def within(self, slots: SlotSet, rows: int) -> np.ndarray:
        """Return which of the first `rows` rows, dead or alive, lie in `slots`: (rows,) bool, not to be written."""
        return slots.has(self.slots[:rows])

    def keys_of(self, rows: np.ndarray) -> list[bytes]:
        """Return the keys of some rows (n,), in that order."""
        keys = self.keys
        return keys.take(rows) if isinstance(keys, PackedBytes) else [keys[row] for row in rows.tolist()]

    def text_bytes(self, rows: int) -> np.ndarray:
        """Return the bytes of key and metadata of each of the first `rows` rows: (rows,) int64, not to be written."""
        raise NotImplementedError

    def inverse_norms(self, rows: int) -> np.ndarray:
        """Return 1 / |x| of the first `rows` rows, 0 for a zero vector: (rows,) float32, kept."""
        known = self._inverse_norms
        if known is None or len(known) < rows:
            with self._norms_lock:
                known = self._inverse_norms
                start = 0 if known is None else len(known)
                if start < rows:
                    with np.errstate(divide="ignore", over="ignore"):
                        fresh = 1.0 / np.sqrt(self.squared_norms[start:rows])
                    fresh[np.isinf(fresh)] = 0.0
                    more = np.clip(fresh, 0.0, np.finfo(np.float32).max).astype(np.float32)
                    known = more if known is None else np.concatenate((known, more))
                    self._inverse_norms = known
        assert known is not None
        return known[:rows]

    def norm_range(self, rows: int) -> tuple[float, float]:
        """Return (smallest non-zero, largest) norm of at least the first `rows` rows; (inf, 0) when all are zero."""
        counted, low, high = self._norm_range
        if counted < rows:
            fresh = self.squared_norms[counted:rows]
            nonzero = fresh[fresh > 0]
            if len(nonzero):
                low = min(low, float(np.sqrt(nonzero.min())))
                high = max(high, float(np.sqrt(nonzero.max())))
            self._norm_range = (rows, low, high)
        return low, high

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, mapped ones included."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class PartView:
    """The first `rows` rows of a part; `living` (rows,) bool, or None when all are alive."""

    part: Part
    rows: int
    living: np.ndarray | None

    @property
    def alive(self) -> int:
        """Rows that are not dead."""
        return self.rows if self.living is None else int(np.count_nonzero(self.living))

    def only(self, slots: SlotSet) -> PartView:
        """Return the same rows with those of other slots taken for dead."""
        return self.part.only(self, slots) if isinstance(self.part, FrozenPart) else _only(self, slots)


def _only(view: PartView, slots: SlotSet) -> PartView:
    inside = view.part.within(slots, view.rows)
    living = inside if view.living is None else inside & view.living
    return PartView(view.part, view.rows, None if living.all() else living)


class FrozenPart(Part):
    """The rows of one segment, in key order, over arrays that are mapped from its files.

    `sorted_hashes` (n,) uint64 and `hash_rows` (n,) uint32 find a key: the hashes in order, and the row of each.
    `index` proposes rows for searches, None where the segment has none. `selections` keeps what filters select.
    """

    keys: PackedBytes
    metadata: PackedBytes

    def __init__(
        self,
        *,
        uid: str,
        matrix: np.ndarray,
        squared_norms: np.ndarray,
        slots: np.ndarray,
        seqs: np.ndarray,
        keys: PackedBytes,
        metadata: PackedBytes,
        sorted_hashes: np.ndarray,
        hash_rows: np.ndarray,
        deleted: np.ndarray | None = None,
        budget: ColumnBudget | None = None,
    ) -> None:
        rows_of = self._key_rows = KeyRows(keys, sorted_hashes, hash_rows)
        super().__init__(
            capacity=len(matrix),
            rows=len(matrix),
            keys=keys,
            metadata=metadata,
            budget=budget,
            sorted_ids=SortedIds(keys, lambda asked: rows_of.find(asked, ids.hashes_of(asked))),
        )
        self.uid = uid
        self.matrix, self.squared_norms, self.slots, self.seqs = matrix, squared_norms, slots, seqs
        self._sorted_hashes, self._hash_rows = sorted_hashes, hash_rows
        self.index: SegmentIndex | None = None
        # As long as the columns, which all parts over the same files share.
        self.selections = (budget or ColumnBudget(None)).shelf(self.columns)
        self._within: tuple[SlotSet, np.ndarray] | None = None
        self._shown: np.ndarray | None = None
        self._only: tuple[SlotSet, np.ndarray | None, np.ndarray | None] | None = None
        if deleted is not None:
            self.kill(np.flatnonzero(deleted))
        self.dead_when_opened = self.dead

    def kill(self, rows: Sequence[int] | np.ndarray) -> None:
        """Mark living rows dead. Views that were handed out keep the map they have."""
        if len(rows):
            self._shown = None
        super().kill(rows)

    def view(self) -> PartView:
        """Return the rows as they are now: with the same map until one dies, so that what is known of it is kept."""
        view = super().view() if self._shown is None else PartView(self, self.rows, self._shown)
        self._shown = view.living
        return view

    def only(self, view: PartView, slots: SlotSet) -> PartView:
        """Return a view of it with the rows of other slots taken for dead. The last map is kept."""
        kept = self._only
        if kept is None or kept[0] != slots or kept[1] is not view.living:
            kept = self._only = (slots, view.living, _only(view, slots).living)
        return PartView(self, view.rows, kept[2])

    def within(self, slots: SlotSet, rows: int) -> np.ndarray:
        """Return which rows lie in `slots`. The last answer is kept: rows stay where they are, dead or alive."""
        kept = self._within
        if kept is None or kept[0] != slots:
            kept = self._within = (slots, super().within(slots, self.rows))
        return kept[1][:rows]

    def find(self, keys: Sequence[bytes], hashes: np.ndarray) -> np.ndarray:
        """Return the living row of each key, -1 where there is none: (n,) int64. `hashes` are those of `keys`."""
        found = self._key_rows.find(keys, hashes)
        if self.rows:
            found[~self._living[found]] = -1
        return found

    def again(self, *, deleted: np.ndarray | None, index: SegmentIndex | None) -> FrozenPart:
        """Return a part over the same files for another engine: what was learnt of the rows is shared, which of them
        live is not. `deleted` (n,) bool."""
        part = copy.copy(self)
        part._living, part._living_is_shared, part.dead = np.ones(self.rows, dtype=bool), False, 0
        part._shown = part._only = None
        part.index = index
        if deleted is not None:
            part.kill(np.flatnonzero(deleted))
        part.dead_when_opened = part.dead
        return part

    @property
    def hashes(self) -> np.ndarray:
        """The hashes of the keys, row by row: (n,) uint64."""
        found = np.empty(self.rows, dtype=np.uint64)
        found[self._hash_rows] = self._sorted_hashes
        return found

    def text_bytes(self, rows: int) -> np.ndarray:
        """Return the bytes of key and metadata of each of the first `rows` rows: (rows,) int64."""
        sizes: np.ndarray = self.keys.lengths[:rows] + self.metadata.lengths[:rows]
        return sizes

    @property
    def nbytes(self) -> int:
        """Bytes of the segment's arrays, its columns for filters and its index included."""
        arrays = (self.matrix, self.squared_norms, self.slots, self.seqs, self._sorted_hashes, self._hash_rows)
        beside = 0 if self.columns.stored is None else self.columns.stored.nbytes
        index = self.index
        beside += 0 if index is None else index.nbytes
        return sum(array.nbytes for array in arrays) + self.keys.nbytes + self.metadata.nbytes + beside


class TailPart(Part):
    """Rows after the newest segment, in the order they were written, up to a fixed capacity."""

    keys: list[bytes]
    metadata: list[bytes]

    def __init__(self, *, capacity: int, dimension: int, budget: ColumnBudget | None = None) -> None:
        super().__init__(capacity=capacity, rows=0, keys=[], metadata=[], budget=budget)
        self.capacity = capacity
        self.matrix = np.empty((capacity, dimension), dtype=np.float32)
        self.squared_norms = np.empty(capacity, dtype=np.float64)
        self.slots = np.empty(capacity, dtype=np.uint16)
        self.seqs = np.empty(capacity, dtype=np.int64)
        self._text_bytes = np.empty(capacity, dtype=np.int64)
        self._all_text_bytes = 0

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self.capacity - self.rows

    def append(
        self,
        keys: Sequence[bytes],
        values: np.ndarray,
        metadata: Sequence[bytes],
        *,
        squared_norms: np.ndarray,
        slots: np.ndarray,
        seq: int,
    ) -> int:
        """Append rows that fit and return the row of the first. They count once `rows` includes them."""
        start, stop = self.rows, self.rows + len(keys)
        self.matrix[start:stop] = values
        self.squared_norms[start:stop] = squared_norms
        self.slots[start:stop] = slots
        self.seqs[start:stop] = seq
        text_bytes = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
        text_bytes += np.fromiter(map(len, metadata), dtype=np.int64, count=len(keys))
        self._text_bytes[start:stop] = text_bytes
        self._all_text_bytes += int(text_bytes.sum())
        self.keys.extend(keys)
        self.metadata.extend(metadata)
        self.rows = stop
        return start

    def text_bytes(self, rows: int) -> np.ndarray:
        """Return the bytes of key and metadata of each of the first `rows` rows: (rows,) int64, not to be written."""
        return self._text_bytes[:rows]

    @property
    def nbytes(self) -> int:
        """Bytes in use: arrays of the rows written, and an estimate of the Python objects for ids and metadata."""
        return self.rows * (int(self.matrix.shape[1]) * 4 + _TAIL_ROW_BYTES) + self._all_text_bytes
