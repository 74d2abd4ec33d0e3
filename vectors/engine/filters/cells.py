"""What stands at one path in some documents, by type, and the blocks that take it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vectors.engine.filters.blocks import Block, BooleanBlock, GrowingArray, NumberBlock
from vectors.engine.filters.paths import FORKED, Path

_EXACT_IN_FLOAT = 2**53
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_NOT_SCALAR = frozenset({dict, list, type(None)})


class Pairs:
    """Values of one type: `rows` ascending, and which values are `elements` of an array."""

    __slots__ = ("elements", "rows", "values")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: list[Any] = []
        self.elements: list[bool] = []


class Cells:
    """The values at a path in the documents of the rows from `first` on, and which of these rows have anything there.

    Integers beyond 2**53, which float64 cannot hold, stand apart as `integers` (int64) or `naturals` (uint64).
    """

    __slots__ = ("booleans", "floats", "integers", "naturals", "present", "texts")

    def __init__(self, path: Path, documents: Sequence[dict[str, Any]], *, first: int) -> None:
        self.present = [True] * len(documents)
        self.texts, self.booleans = Pairs(), Pairs()
        self.floats, self.integers, self.naturals = Pairs(), Pairs(), Pairs()
        values = path.straight(documents)
        if not self._take_alike(values, first):
            self._take(path, documents, values, first)

    def _take_alike(self, values: list[Any], first: int) -> bool:
        """Take one value of each row, all of one type, as most keys have it; return False when they are not so."""
        kinds = set(map(type, values))
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is str:
            pairs = self.texts
        elif kind is bool:
            pairs = self.booleans
        elif kind is float or (kind is int and min(values) >= -_EXACT_IN_FLOAT and max(values) <= _EXACT_IN_FLOAT):
            pairs = self.floats
        else:
            return False
        pairs.rows = list(range(first, first + len(values)))
        pairs.values = values
        pairs.elements = [False] * len(values)
        return True

    def _take(self, path: Path, documents: Sequence[dict[str, Any]], values: list[Any], first: int) -> None:
        for place, value in enumerate(values):
            kind = type(value)
            if value is None:
                self.present[place] = False
                continue
            if kind is list and _NOT_SCALAR.isdisjoint(map(type, value)):
                scalars = [(member, True) for member in value]
            elif kind is list or value is FORKED:
                scalars, self.present[place] = path.reach(documents[place])
            elif kind is dict:
                continue
            else:
                scalars = [(value, False)]
            for scalar, element in scalars:
                kind = type(scalar)
                if kind is str:
                    pairs = self.texts
                elif kind is float:
                    pairs = self.floats
                elif kind is bool:
                    pairs = self.booleans
                elif -_EXACT_IN_FLOAT <= scalar <= _EXACT_IN_FLOAT:
                    pairs = self.floats
                elif _INT64_MIN <= scalar <= _INT64_MAX:
                    pairs = self.integers
                else:
                    pairs = self.naturals
                pairs.rows.append(first + place)
                pairs.values.append(scalar)
                pairs.elements.append(element)


class TypedBlocks:
    """What every column has beside its strings: numbers, booleans, and which rows have anything at the path."""

    def __init__(self) -> None:
        self.present = GrowingArray(np.bool_)
        self.floats = NumberBlock(np.float64)
        self.integers = NumberBlock(np.int64)
        self.naturals = NumberBlock(np.uint64)
        self.booleans = BooleanBlock()

    @property
    def rows(self) -> int:
        """Rows it covers."""
        return len(self.present)

    @property
    def numbers(self) -> tuple[NumberBlock, NumberBlock, NumberBlock]:
        """The blocks that hold numbers."""
        return self.floats, self.integers, self.naturals

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.present.nbytes + self.booleans.nbytes + sum(block.nbytes for block in self.numbers)

    def here(self, start: int, stop: int) -> np.ndarray:
        """Return which of the rows [start, stop) have anything at the path: (stop - start,) bool, not to be written."""
        return self.present.view[start:stop]

    def extend_cells(self, cells: Cells) -> None:
        """Append the numbers and booleans of some further rows."""
        blocks: tuple[tuple[Block, Pairs], ...] = (
            (self.floats, cells.floats),
            (self.integers, cells.integers),
            (self.naturals, cells.naturals),
            (self.booleans, cells.booleans),
        )
        for block, pairs in blocks:
            block.extend(pairs.rows, pairs.values, pairs.elements)
        self.present.extend(cells.present)
