"""Which rows of a part a search means: living ones that match its filter, in the forms that searches need."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar, cast

import numpy as np

from vectors.engine.filters import Filter, mask
from vectors.engine.parts import FrozenPart, PartView

GATHERED_BYTES = 4 * 1024 * 1024
"""Up to how many bytes of vectors the rows of one filter are kept side by side, once it has come twice: scanning them
so is five times cheaper than fetching them from all over the part."""

CODED_BYTES = 8 * 1024 * 1024
"""Up to how many bytes the codes of the rows of one filter are kept side by side, once it has come twice."""

_ALL = "all"

Known = TypeVar("Known")


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
        self._remembered: tuple[object, object] | None = None
        self._coded: tuple[object, object] | None = None

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

    def remembered(self, key: object, make: Callable[[], Known]) -> Known:
        """Return what `make` makes of the rows, and keep it for the next one who asks with the very same `key`."""
        known = self._remembered
        if known is None or known[0] is not key:
            known = self._remembered = (key, make())
        return cast(Known, known[1])

    def coded(self, key: object, make: Callable[[np.ndarray], Known]) -> Known | None:
        """Return what `make` makes of `rows`, a copy of their codes, for the very same `key`: from the second call on.

        It is for rows with up to CODED_BYTES of codes.
        """
        known = self._coded
        if known is None or known[0] is not key:
            if not self._is_kept:
                return None
            # Once is no reason for a copy.
            known = self._coded = (key, None)
            return None
        if known[1] is None:
            known = self._coded = (key, make(self.rows))
        return cast(Known, known[1])

    @property
    def nbytes(self) -> int:
        """Bytes it takes at most, whatever it is asked."""
        gathered = self.count * self._row_bytes
        # Codes take a sixteenth of what vectors take, and an eighth where there are few dimensions.
        coded = gathered // 8
        return (
            self.total
            + self.total // 8
            + 8 * self.count
            + (gathered if gathered <= GATHERED_BYTES else 0)
            + (coded if coded <= 2 * CODED_BYTES else 0)
        )


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
