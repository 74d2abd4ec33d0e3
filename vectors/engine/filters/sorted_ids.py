"""Lookups on the ids of a segment, whose keys are in order: by bisection, with nothing built and nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vectors.engine.filters.texts import text_hits
from vectors.engine.filters.tree import TEXT_LOOKUPS, IdCondition
from vectors.engine.ids import INTEGER_TAG, STRING_TAG
from vectors.engine.packed import PackedBytes

_STRETCH = 4096

FindRows = Callable[[Sequence[bytes]], np.ndarray]
"""Returns the row of each key, -1 where there is none: (n,) int64."""


class SortedIds:
    """The ids of rows by their `keys`, ascending, each once; `find` knows the row of a key."""

    def __init__(self, keys: PackedBytes, find: FindRows) -> None:
        self._keys = keys
        self._find = find

    def mask(self, condition: IdCondition, start: int, stop: int) -> np.ndarray:
        """Return which of the rows [start, stop) are hit: (stop - start,) bool, the caller's own."""
        lookup, keys = condition.lookup, condition.keys
        if lookup == "isnull":
            return np.full(stop - start, not condition.null)
        if lookup in TEXT_LOOKUPS:
            return self._text_hits(lookup, condition.text, start, stop)
        if lookup == "ne":
            return ~self._equal(keys, start, stop)
        if lookup in ("exact", "in"):
            return self._equal(keys, start, stop)
        found = np.zeros(stop - start, dtype=bool)
        low, high = self._interval(lookup, keys)
        found[max(low - start, 0) : max(high - start, 0)] = True
        return found

    def _equal(self, keys: Sequence[bytes], start: int, stop: int) -> np.ndarray:
        found = np.zeros(stop - start, dtype=bool)
        rows = self._find(keys)
        found[rows[(rows >= start) & (rows < stop)] - start] = True
        return found

    def _interval(self, lookup: str, keys: Sequence[bytes]) -> tuple[int, int]:
        """Return where the rows of an order lookup are, all of the kind of its operand: from, to."""
        first, kind = keys[0], keys[0][:1]
        if lookup in ("lt", "lte"):
            return self._keys.position(kind, after=False), self._keys.position(first, after=lookup == "lte")
        if lookup == "range":
            return self._keys.position(first, after=False), self._keys.position(keys[1], after=True)
        end = bytes([kind[0] + 1])
        return self._keys.position(first, after=lookup == "gt"), self._keys.position(end, after=False)

    def _text_hits(self, lookup: str, text: str, start: int, stop: int) -> np.ndarray:
        """Integers have no text; UUIDs have their lower-case one."""
        found = np.zeros(stop - start, dtype=bool)
        strings = self._keys.position(STRING_TAG, after=False)
        if lookup == "startswith":
            # Strings with a prefix stand side by side, so only UUIDs are looked at as text.
            prefix = STRING_TAG + text.encode()
            low, high = self._keys.position(prefix, after=False), self._keys.position(prefix + b"\xff", after=False)
            found[max(low - start, 0) : max(high - start, 0)] = True
            stop = min(stop, strings)
        first = max(start, self._keys.position(bytes([INTEGER_TAG[0] + 1]), after=False))
        for low in range(first, stop, _STRETCH):
            texts = [_text_of(key) for key in self._keys[low : min(low + _STRETCH, stop)]]
            found[low - start : low - start + len(texts)] = text_hits(lookup, (text,), texts, count=len(texts))
        return found


def _text_of(key: bytes) -> str:
    if key[:1] == STRING_TAG:
        return key[1:].decode()
    digits = key[1:].hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
