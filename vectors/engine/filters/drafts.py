"""Columns on their way into a file: built in one reading of the metadata for as many paths as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from vectors.engine.filters.blocks import Block
from vectors.engine.filters.cells import Cells, TypedBlocks
from vectors.engine.filters.paths import Path
from vectors.engine.filters.sections import SectionWriter
from vectors.engine.filters.text_runs import TextRuns

_CHUNK_ROWS = 1000
_CHUNK_BYTES = 1024 * 1024
_CELL_BYTES = 16
"""What a value takes while it is built, strings beside their text, about."""


class Draft(TypedBlocks):
    """The values at one path as they are written down."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self.texts = TextRuns()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + self.texts.nbytes

    def extend(self, documents: Sequence[dict[str, Any]]) -> None:
        """Append the rows of decoded metadata objects."""
        cells = Cells(self._path, documents, first=self.rows)
        self.texts.extend_texts(cells.texts.rows, cells.texts.values)
        self.extend_cells(cells)

    def save(self, writer: SectionWriter) -> dict[str, Any]:
        """Add the arrays to a file and return what its directory says of them; to be called once, at the end."""
        present = self.present.view
        alike = present.all() or not present.any()
        entry: dict[str, Any] = {"present": bool(present.all()) if alike else writer.add(np.packbits(present))}
        for name, block in (
            ("floats", self.floats),
            ("integers", self.integers),
            ("naturals", self.naturals),
            ("booleans", self.booleans),
        ):
            if len(block.values):
                entry[name] = self._save(writer, block, block.values.view)
        if len(self.texts.values):
            buffer, offsets = self.texts.merge()
            entry["texts"] = self._save(writer, self.texts, _narrow(self.texts.values.view, len(offsets) - 1))
            entry["texts"] |= {"buffer": writer.add(buffer), "offsets": writer.add(_narrow(offsets, len(buffer)))}
        return entry

    def _save(self, writer: SectionWriter, block: Block, values: np.ndarray) -> dict[str, Any]:
        rows, elements = block.rows.view, block.elements.view
        everywhere = not block.repeats and len(rows) == self.rows
        return {
            "rows": None if everywhere else writer.add(rows),
            "values": writer.add(values),
            "elements": writer.add(elements) if elements.any() else None,
            "repeats": block.repeats,
        }


def decoded(metadata: Sequence[bytes]) -> Iterator[list[dict[str, Any]]]:
    """Yield the metadata objects in order, decoded: some hundred of them, or fewer when they are long."""
    for start in range(0, len(metadata), _CHUNK_ROWS):
        items = metadata[start : start + _CHUNK_ROWS]
        step = max(1, len(items) * _CHUNK_BYTES // max(1, sum(map(len, items))))
        for low in range(0, len(items), step):
            yield [orjson.loads(item) for item in items[low : low + step]]


def drafts_of(
    paths: Mapping[str, int], metadata: Sequence[bytes], *, build_bytes: int
) -> Iterator[tuple[str, Draft | None]]:
    """Yield the columns of `paths` ({path: its rows}), None for those that alone take more than `build_bytes`.

    The metadata is read again for each group of paths that fits.
    """
    alone: list[str] = []
    groups = _groups(paths, build_bytes // 2)
    while groups or alone:
        group = groups.pop(0) if groups else [alone.pop(0)]
        drafts = {path: Draft(path) for path in group}
        for documents in decoded(metadata):
            for draft in drafts.values():
                draft.extend(documents)
            sizes = {path: draft.nbytes for path, draft in drafts.items()}
            while drafts and sum(sizes[path] for path in drafts) > build_bytes:
                largest = max(drafts, key=sizes.__getitem__)
                del drafts[largest]
                if len(group) > 1:
                    alone.append(largest)
                else:
                    yield largest, None
        while drafts:
            # Each goes as soon as it is written.
            yield drafts.popitem()


def _groups(paths: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for path, rows in paths.items():
        if not groups or rows * _CELL_BYTES > room:
            groups.append([])
            room = limit_bytes
        groups[-1].append(path)
        room -= rows * _CELL_BYTES
    return groups


def _narrow(values: np.ndarray, largest: int) -> np.ndarray:
    """Return whole numbers up to `largest` in the smallest of uint8, uint16, uint32 and uint64 that holds them."""
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if largest <= np.iinfo(kind).max)
    return values.astype(kind)
