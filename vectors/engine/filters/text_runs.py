"""Strings of a column on their way into a file: any number of distinct ones, sorted, in bounded memory.

A run takes strings until it has many distinct ones; then these are sorted and packed, and its values become places in
that order. At the end the runs are merged, and the values become places in the order of all strings. What is in memory
is the text of the runs, packed, never an object for each string of the column.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import repeat

import numpy as np

from vectors.engine.filters.blocks import Block
from vectors.engine.filters.packed_texts import END
from vectors.engine.packed import PackedBytes, pack

RUN_STRINGS = 65_536
_STRING_BYTES = 200
"""What a distinct string of the open run takes beside its text, about."""


class TextRuns(Block):
    """(row, string) pairs; `values` int32 places in the run of each value until `merge` makes them places among all."""

    def __init__(self, *, run_strings: int = RUN_STRINGS) -> None:
        super().__init__(np.int32)
        self._run_strings = run_strings
        self._codes: dict[str, int] = {}
        self._open_bytes = 0
        self._runs: list[PackedBytes] = []
        self._starts = [0]

    @property
    def nbytes(self) -> int:
        """Bytes held, those of the open run estimated."""
        return super().nbytes + self._open_bytes + sum(run.nbytes for run in self._runs)

    def extend_texts(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Append all strings of some further rows, rows ascending."""
        codes = self._codes
        for text in dict.fromkeys(texts):
            if text not in codes:
                codes[text] = len(codes)
                self._open_bytes += _STRING_BYTES + len(text)
        self.extend(rows, list(map(codes.__getitem__, texts)))
        if len(codes) >= self._run_strings:
            self._close()

    def merge(self) -> tuple[bytearray, np.ndarray]:
        """Make the values places among all distinct strings, ascending; to be called once, at the end.

        Return the strings as UTF-8, each followed by `END`, and where each begins: (n + 1,) uint64.
        """
        if self._codes:
            self._close()
        buffer = bytearray()
        ends = [0]
        places: list[list[int]] = [[] for _ in self._runs]
        last: bytes | None = None
        for text, run in heapq.merge(*(zip(run, repeat(number)) for number, run in enumerate(self._runs))):
            if text != last:
                buffer += text
                buffer += END
                ends.append(len(buffer))
                last = text
            places[run].append(len(ends) - 2)
        values = self.values.view
        for number, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            values[start:stop] = np.array(places[number], dtype=np.int32)[values[start:stop]]
        self._runs.clear()
        return buffer, np.array(ends, dtype=np.uint64)

    def _close(self) -> None:
        ordered = sorted(self._codes)
        places = np.empty(len(ordered), dtype=np.int32)
        places[[self._codes[text] for text in ordered]] = np.arange(len(ordered), dtype=np.int32)
        values = self.values.view[self._starts[-1] :]
        values[:] = places[values]
        self._runs.append(PackedBytes(*pack([text.encode() for text in ordered])))
        self._starts.append(len(self.values))
        self._codes.clear()
        self._open_bytes = 0
