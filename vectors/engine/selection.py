"""Which rows of a part a search means: living ones that match its filter, in the forms that searches need."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from vectors.engine.filters import Filter, mask
from vectors.engine.parts import FrozenPart, PartView

GATHERED_BYTES = 4 * 1024 * 1024
"""Up to how many bytes of vectors the rows of one filter are kept side by side, once it has come twice: scanning them
so is five times cheaper than fetching them from all over the part."""

_ALL = "all"


class Selection:
    """The rows of a view that are meant; `mask` (rows,) bool, None for all of them. Immutable to those who use it.

    It may be kept on the part's own shelf, so it holds neither part nor matrix: a part that is let go is freed at once.
    """

    def __init__(self, view: PartView, mask: np.ndarray | None) -> None:
        self.mask = mask
        self.total = view.rows
        self.count = view.rows if mask is None else int(np.count_nonzero(mask))
        self._row_bytes = 4 * int(view.part.matrix.shape[1])
        self._is_kept = isinstance(view.part, FrozenPart)
        self._uses = 0
        self._gathered: np.ndarray | None = None
        self._by_cell: tuple[object, np.ndarray] | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows by number: (count,) int64."""
        return np.arange(self.total) if self.mask is None else np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> np.ndarray | None:
        """One bit a row, the lowest row in the lowest bit: uint8; None for all rows."""
        return None if self.mask is None else np.packbits(self.mask, bitorder="little")

    @property
    def is_gathered(self) -> bool:
        """Whether the next call of `gathered` has the rows at hand."""
        return self._gathered is not None

    def gathered(self, matrix: np.ndarray) -> np.ndarray | None:
        """Return the vectors of `rows` side by side, (count, d) float32: from the second call on, if they are few.

        `matrix` (rows, d) float32 is the part's.
        """
        if self._gathered is None and self._is_kept and self.count * self._row_bytes <= GATHERED_BYTES:
            self._uses += 1
            if self._uses > 1:
                self._gathered = matrix[self.rows]
        return self._gathered

    def by_cell(self, cells_of_rows: np.ndarray, cells: int) -> np.ndarray:
        """Return how many of the rows lie in each of some cells: (cells,) int64, not to be written."""
        known = self._by_cell
        if known is None or known[0] is not cells_of_rows:
            mine = cells_of_rows if self.mask is None else cells_of_rows[self.mask]
            known = self._by_cell = (cells_of_rows, np.bincount(mine, minlength=cells))
        return known[1]

    @property
    def nbytes(self) -> int:
        """Bytes it takes at most, whatever it is asked."""
        gathered = self.count * self._row_bytes
        return self.total + self.total // 8 + 8 * self.count + (gathered if gathered <= GATHERED_BYTES else 0)


def select(view: PartView, filter: Filter | None) -> Selection:
    """Return the rows of a view that live and match; of frozen parts the answer is kept for the next search."""
    part = view.part
    if not isinstance(part, FrozenPart) or (filter is None and view.living is None):
        return Selection(view, _mask(view, filter))
    key = _ALL if filter is None else filter
    known: tuple[np.ndarray | None, Selection] | None = part.selections.get(key)
    if known is not None and known[0] is view.living:
        return known[1]
    selection = Selection(view, _mask(view, filter))
    part.selections.put(key, (view.living, selection), selection.nbytes)
    return selection


def _mask(view: PartView, filter: Filter | None) -> np.ndarray | None:
    if filter is None:
        return view.living
    chosen = mask(filter, view.part.columns, view.rows)
    if view.living is None:
        return chosen
    both: np.ndarray = chosen & view.living
    return both
