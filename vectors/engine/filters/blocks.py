"""Typed values of a column, row after row, and the lookups on them.

A block holds (row, value) pairs of one type, rows ascending; a row whose key is an array has several pairs. Blocks only
grow, and what was appended before a reader looked stays where it is, so readers need no lock: a reader asks about rows
[start, stop) that it knows to be complete.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

import numpy as np

Number = int | float

_FEW_VALUES = 16


class GrowingArray:
    """An append-only array; a view taken earlier stays valid when the array moves to a larger buffer."""

    def __init__(self, dtype: type) -> None:
        self._buffer: np.ndarray = np.empty(0, dtype=dtype)
        self._size = 0
        self._lent = False

    @classmethod
    def over(cls, values: np.ndarray) -> GrowingArray:
        """Return one that holds the values of an array of somebody else, of a mapped file say: (n,), not copied."""
        array = cls(values.dtype.type)
        array._buffer, array._size, array._lent = values, len(values), True
        return array

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer, none when it is somebody else's."""
        return 0 if self._lent else self._buffer.nbytes

    @property
    def view(self) -> np.ndarray:
        """The values so far: (n,)."""
        # The buffer is read before the size: a larger one may appear between the two, and the old one is only short.
        return self._buffer[: self._size]

    def extend(self, values: Sequence[object] | np.ndarray) -> None:
        """Append `values`."""
        size = self._size + len(values)
        if size > len(self._buffer):
            buffer = np.empty(max(size, len(self._buffer) * 3 // 2), dtype=self._buffer.dtype)
            buffer[: self._size] = self._buffer[: self._size]
            self._buffer, self._lent = buffer, False
        self._buffer[self._size : size] = values
        self._size = size


class Block:
    """(row, value) pairs: `rows` int32 ascending, `values` of `dtype`, and which values are `elements` of an array."""

    def __init__(self, dtype: type) -> None:
        self.rows = GrowingArray(np.int32)
        self.values = GrowingArray(dtype)
        self.elements = GrowingArray(np.bool_)
        self._repeats = False
        self._everywhere = False

    def lend(
        self, rows: np.ndarray | None, values: np.ndarray, elements: np.ndarray | None, *, repeats: bool = False
    ) -> None:
        """Hold pairs of arrays that are complete and somebody else's: (m,) each.

        Without `rows` every row from 0 on has one value, without `elements` no value is an element of an array.
        `repeats`: a row has several pairs.
        """
        if rows is None:
            self._everywhere = True
        else:
            self.rows = GrowingArray.over(rows)
        self.values = GrowingArray.over(values)
        none = np.broadcast_to(np.False_, len(values))
        self.elements = GrowingArray.over(none if elements is None else elements)
        self._repeats = repeats

    @property
    def repeats(self) -> bool:
        """Whether a row has several pairs."""
        return self._repeats

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.rows.nbytes + self.values.nbytes + self.elements.nbytes

    def extend(
        self,
        rows: Sequence[int] | np.ndarray,
        values: Sequence[object] | np.ndarray,
        elements: Sequence[bool] | None = None,
    ) -> None:
        """Append all pairs of some further rows, rows ascending. A block is given `elements` always or never."""
        if not len(rows):
            return
        fresh = np.asarray(rows, dtype=np.int32)
        if bool((fresh[1:] == fresh[:-1]).any()):
            self._repeats = True
        self.values.extend(values)
        if elements is not None:
            self.elements.extend(elements)
        self.rows.extend(fresh)

    def span(self, start: int, stop: int) -> slice:
        """Return where the pairs of rows [start, stop) are."""
        if self._everywhere:
            return slice(start, stop)
        # A Python int would make searchsorted copy all rows as int64.
        rows = self.rows.view
        return slice(int(rows.searchsorted(np.int32(start))), int(rows.searchsorted(np.int32(stop))))

    def spread(self, hits: np.ndarray, span: slice, start: int, stop: int) -> np.ndarray:
        """Return which rows of [start, stop) have a pair in `span` that is hit: (stop - start,) bool."""
        if not self._repeats and span.stop - span.start == stop - start:
            return hits  # one pair in every row
        mask = np.zeros(stop - start, dtype=bool)
        if len(hits):
            rows = self.rows.view[span].take(hits.nonzero()[0])
            mask[rows - np.int32(start) if start else rows] = True
        return mask


class NumberBlock(Block):
    """Numbers of one dtype: float64, int64 or uint64. Every comparison is exact, whatever type its operand has."""

    def __init__(self, dtype: type) -> None:
        super().__init__(dtype)
        self._whole = dtype is not np.float64

    def compare(self, lookup: str, operands: Sequence[Number], span: slice) -> np.ndarray:
        """Return which values in `span` are hit by exact, ne, in, lt, lte, gt, gte or range: (m,) bool."""
        values = self.values.view[span]
        if not len(values):
            return np.zeros(0, dtype=bool)
        if lookup in ("exact", "ne", "in"):
            found = self._equal(values, operands)
            return ~found if lookup == "ne" else found
        first = operands[0]
        # `ceil` and `floor` are the nearest values of the dtype on either side. For x of the dtype, x < a is
        # x < ceil(a) and x > a is x > floor(a), with no rounding of a towards some x.
        if lookup == "lt":
            return np.asarray(values < self._ceil(first))
        if lookup == "lte":
            return np.asarray(values <= self._floor(first))
        if lookup == "gt":
            return np.asarray(values > self._floor(first))
        if lookup == "gte":
            return np.asarray(values >= self._ceil(first))
        return np.asarray((values >= self._ceil(first)) & (values <= self._floor(operands[1])))

    def _equal(self, values: np.ndarray, operands: Sequence[Number]) -> np.ndarray:
        wanted = [floor for floor, operand in ((self._floor(x), x) for x in operands) if floor == operand]
        if self._whole:
            bounds = np.iinfo(values.dtype)
            wanted = [number for number in wanted if bounds.min <= number <= bounds.max]
        if len(wanted) <= _FEW_VALUES:
            found = np.zeros(len(values), dtype=bool)
            for number in wanted:
                found |= values == number
            return found
        ordered = np.unique(np.array(wanted, dtype=values.dtype))
        places = ordered.searchsorted(values)
        places[places == len(ordered)] = 0
        return np.asarray(ordered[places] == values)

    def _floor(self, number: Number) -> Number:
        if self._whole:
            return math.floor(number)
        near = _nearest(number)
        return near if near <= number else math.nextafter(near, -math.inf)

    def _ceil(self, number: Number) -> Number:
        if self._whole:
            return math.ceil(number)
        near = _nearest(number)
        return near if near >= number else math.nextafter(near, math.inf)


class BooleanBlock(Block):
    """Booleans; they have no order."""

    def __init__(self) -> None:
        super().__init__(np.bool_)

    def compare(self, lookup: str, operands: Sequence[bool], span: slice) -> np.ndarray:
        """Return which values in `span` are hit by exact, ne or in: (m,) bool."""
        values = self.values.view[span]
        found = np.zeros(len(values), dtype=bool)
        for operand in operands:
            found |= values if operand else ~values
        return ~found if lookup == "ne" else found


class UuidBlock:
    """UUIDs as two uint64 halves, so that their order is that of their bytes."""

    def __init__(self) -> None:
        self.high = Block(np.uint64)
        self.low = GrowingArray(np.uint64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.high.nbytes + self.low.nbytes

    def extend(self, rows: Sequence[int], uuids: Iterable[bytes]) -> None:
        """Append UUIDs of 16 bytes."""
        halves = np.frombuffer(b"".join(uuids), dtype=">u8").reshape(-1, 2).astype(np.uint64)
        self.low.extend(halves[:, 1])
        self.high.extend(rows, halves[:, 0])

    def compare(self, lookup: str, operands: Sequence[bytes], span: slice) -> np.ndarray:
        """Return which UUIDs in `span` are hit by exact, in, lt, lte, gt, gte or range: (m,) bool."""
        high, low = self.high.values.view[span], self.low.view[span]
        halves = [(int.from_bytes(operand[:8], "big"), int.from_bytes(operand[8:], "big")) for operand in operands]
        if lookup in ("exact", "in"):
            return self._equal(high, low, halves)
        (high_0, low_0), (high_1, low_1) = halves[0], halves[-1]
        above = (high > high_0) | ((high == high_0) & (low > low_0))
        below = (high < high_1) | ((high == high_1) & (low < low_1))
        if lookup == "lt":
            return np.asarray(below)
        if lookup == "gt":
            return np.asarray(above)
        if lookup == "lte":
            return np.asarray(~above)
        if lookup == "gte":
            return np.asarray(~below)
        return np.asarray((above | ((high == high_0) & (low == low_0))) & (below | ((high == high_1) & (low == low_1))))

    def texts(self, span: slice) -> list[str]:
        """Return the 36-character texts of the UUIDs in `span`."""
        halves = np.stack((self.high.values.view[span], self.low.view[span]), axis=1)
        digits = halves.astype(">u8").tobytes().hex()
        return [
            f"{digits[i : i + 8]}-{digits[i + 8 : i + 12]}-{digits[i + 12 : i + 16]}"
            f"-{digits[i + 16 : i + 20]}-{digits[i + 20 : i + 32]}"
            for i in range(0, len(digits), 32)
        ]

    @staticmethod
    def _equal(high: np.ndarray, low: np.ndarray, halves: Sequence[tuple[int, int]]) -> np.ndarray:
        found = np.zeros(len(low), dtype=bool)
        if len(halves) <= _FEW_VALUES:
            for wanted_high, wanted_low in halves:
                found |= (low == wanted_low) & (high == wanted_high)
            return found
        pairs = set(halves)
        candidates = np.isin(low, np.array([wanted_low for _, wanted_low in pairs], dtype=np.uint64)).nonzero()[0]
        for place, pair in zip(
            candidates, zip(high[candidates].tolist(), low[candidates].tolist(), strict=True), strict=True
        ):
            found[place] = pair in pairs
        return found


def _nearest(number: Number) -> float:
    """Return the float64 nearest to a number; beyond the largest, the largest."""
    try:
        return float(number)
    except OverflowError:
        return sys.float_info.max if number > 0 else -sys.float_info.max
