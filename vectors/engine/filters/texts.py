"""Strings of a column, each distinct one held once, and the lookups on them.

A lookup is decided once per distinct string and spread to the rows by their codes. Where there are many distinct
strings, order and prefix lookups go by bisection over a sorted copy, made when first needed.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat

import numpy as np

from vectors.engine.filters.blocks import Block

_SORT_FROM = 1000
_ENTRY_BYTES = 170  # the string's own header, its place in the list, in the sorted copy and in the dictionary
_TESTS: dict[str, Callable[[str, str], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "contains": operator.contains,
    "startswith": str.startswith,
    "endswith": str.endswith,
}
_BISECTED = frozenset({"lt", "lte", "gt", "gte", "range", "startswith"})


class TextBlock(Block):
    """Strings, dictionary-encoded: `values` int32 codes into the distinct strings in order of appearance."""

    def __init__(self) -> None:
        super().__init__(np.int32)
        self._distinct: list[str] = []
        self._codes: dict[str, int] = {}
        self._distinct_bytes = 0
        self._sorted: tuple[list[str], np.ndarray] = ([], np.empty(0, dtype=np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes held, the distinct strings estimated."""
        return super().nbytes + self._distinct_bytes

    def extend_texts(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Append all strings of some further rows, rows ascending."""
        codes = self._codes
        try:
            encoded = [codes[text] for text in texts]
        except KeyError:
            encoded = []
            for text in texts:
                code = codes.get(text)
                if code is None:
                    # The list grows first: a reader that finds the code finds the string.
                    code = len(self._distinct)
                    self._distinct.append(text)
                    codes[text] = code
                    self._distinct_bytes += _ENTRY_BYTES + len(text)
                encoded.append(code)
        self.extend(rows, encoded)

    def compare(self, lookup: str, operands: Sequence[str], span: slice) -> np.ndarray:
        """Return which values in `span` are hit by any lookup but isnull: (m,) bool."""
        codes = self.values.view[span]
        if lookup in ("exact", "ne"):
            same = np.asarray(codes == self._codes.get(operands[0], -1))
            return ~same if lookup == "ne" else same
        if lookup == "in":
            wanted = [code for code in (self._codes.get(text) for text in operands) if code is not None]
            table = np.zeros(len(self._distinct), dtype=bool)
            table[[code for code in wanted if code < len(table)]] = True
            return np.asarray(table[codes])
        if len(codes) * 4 < len(self._distinct):
            # A few rows after a long cached mask: only their own strings are looked at.
            used, places = np.unique(codes, return_inverse=True)
            texts = map(self._distinct.__getitem__, used.tolist())
            return np.asarray(text_hits(lookup, operands, texts, count=len(used))[places])
        return np.asarray(self._table(lookup, operands)[codes])

    def _table(self, lookup: str, operands: Sequence[str]) -> np.ndarray:
        """Return the answer for every distinct string: (distinct,) bool."""
        count = len(self._distinct)
        if lookup not in _BISECTED or count < _SORT_FROM:
            return text_hits(lookup, operands, islice(self._distinct, count), count=count)
        texts, order = self._in_order(count)
        low, high = _bisect(texts, lookup, operands)
        table = np.zeros(max(count, len(order)), dtype=bool)
        table[order[low:high]] = True
        if len(order) < count:
            newer = islice(self._distinct, len(order), count)
            table[len(order) : count] = text_hits(lookup, operands, newer, count=count - len(order))
        return table

    def _in_order(self, count: int) -> tuple[list[str], np.ndarray]:
        """Return sorted strings and their codes: at least four fifths of the first `count`, at most all there are."""
        known = self._sorted
        if len(known[0]) * 5 < count * 4:
            distinct = self._distinct[:count]
            order = sorted(range(count), key=distinct.__getitem__)
            known = self._sorted = ([distinct[code] for code in order], np.array(order, dtype=np.int32))
        return known


def text_hits(lookup: str, operands: Sequence[str], texts: Iterable[str], *, count: int) -> np.ndarray:
    """Return which of `count` strings are hit by an order or text lookup: (count,) bool.

    The operand of icontains is casefolded.
    """
    first = operands[0]
    hits: Iterator[bool]
    # The loops run inside `map`, several times faster than one call of Python a string.
    if lookup == "range":
        hits = (first <= text <= operands[1] for text in texts)
    elif lookup == "icontains":
        hits = map(operator.contains, map(str.casefold, texts), repeat(first))
    else:
        hits = map(_TESTS[lookup], texts, repeat(first))
    return np.fromiter(hits, dtype=bool, count=count)


def _bisect(texts: list[str], lookup: str, operands: Sequence[str]) -> tuple[int, int]:
    """Return the place of the hits in sorted strings: from, to."""
    first = operands[0]
    if lookup == "lt":
        return 0, bisect_left(texts, first)
    if lookup == "lte":
        return 0, bisect_right(texts, first)
    if lookup == "gt":
        return bisect_right(texts, first), len(texts)
    if lookup == "gte":
        return bisect_left(texts, first), len(texts)
    if lookup == "range":
        return bisect_left(texts, first), bisect_right(texts, operands[1])
    return bisect_left(texts, first), bisect_right(texts, first, key=lambda text: text[: len(first)])
