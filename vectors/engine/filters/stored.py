"""Columns of a segment in a file of their own: made once with the segment, mapped by every process that filters.

The file has the paths that occur in most rows, up to a number of them and as far as they can be made in bounded
memory. It names those it leaves out, so a path that it does not know occurs in no row; those left out are built from
metadata when a filter asks for them, as are all columns of a segment without such a file. Ids need no column, since
the keys of a segment are in order (`sorted_ids`).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vectors.engine.filters.blocks import Block
from vectors.engine.filters.cells import TypedBlocks
from vectors.engine.filters.drafts import decoded, drafts_of
from vectors.engine.filters.packed_texts import PackedTextBlock, PackedTexts
from vectors.engine.filters.sections import Section, SectionReader, SectionWriter
from vectors.engine.filters.survey import Survey

MAX_PATHS = 64
BUILD_BYTES = 128 * 1024 * 1024
_PATHS_NAMED = 1024
# A mapping holds a file descriptor and one of the system's few map entries: small files are read instead.
_MAP_FROM_BYTES = 128 * 1024
_WHOLE = ("|u1", "<u2", "<u4", "<u8")


def write_columns(
    metadata: Sequence[bytes], *, max_paths: int = MAX_PATHS, build_bytes: int = BUILD_BYTES
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file for rows with that metadata (compact JSON objects), in order.

    At most `max_paths` paths get a column. The columns being built hold about `build_bytes`, and while one of them is
    finished up to twice as much; the metadata is read twice, and more often only when that is not enough at once.
    """
    survey = Survey()
    for documents in decoded(metadata):
        survey.add(documents)
    paths = survey.paths
    chosen, omitted = dict(islice(paths.items(), max_paths)), list(paths)[max_paths:]
    writer = SectionWriter()
    columns: dict[str, Any] = {}
    for path, draft in drafts_of(chosen, metadata, build_bytes=build_bytes):
        if draft is None:
            omitted.append(path)
        else:
            columns[path] = draft.save(writer)
            yield from writer.take()
    complete = survey.complete and len(omitted) <= _PATHS_NAMED
    writer.finish(
        {
            "rows": len(metadata),
            "paths": columns,
            "complete": complete,
            "omitted": omitted if complete else [],
        }
    )
    yield from writer.take()


class StoredPathColumn(TypedBlocks):
    """The values at one path, by type, over arrays of the file; nothing of it is the process's own memory."""

    def __init__(self, reader: SectionReader, entry: Mapping[str, Any], rows: int) -> None:
        super().__init__()
        self._rows = rows
        present = entry["present"]
        self._present = present if isinstance(present, bool) else reader.array(present, "|u1", length=(rows + 7) // 8)
        for name, block, dtype in (
            ("floats", self.floats, "<f8"),
            ("integers", self.integers, "<i8"),
            ("naturals", self.naturals, "<u8"),
            ("booleans", self.booleans, "|b1"),
        ):
            if name in entry:
                _lend(block, reader, entry[name], rows, dtype)
        texts = entry.get("texts")
        if texts is None:
            self.texts = PackedTextBlock(PackedTexts(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.uint8)))
        else:
            buffer, offsets = reader.array(texts["buffer"], "|u1"), reader.array(texts["offsets"], *_WHOLE)
            self.texts = PackedTextBlock(PackedTexts(buffer, offsets))
            _lend(self.texts, reader, texts, rows, *_WHOLE[:3])

    @property
    def rows(self) -> int:
        """Rows it covers."""
        return self._rows

    def here(self, start: int, stop: int) -> np.ndarray:
        """Return which of the rows [start, stop) have anything at the path: (stop - start,) bool, not to be written."""
        if isinstance(self._present, bool):
            return np.broadcast_to(np.bool_(self._present), stop - start)
        return np.unpackbits(self._present, count=self._rows)[start:stop].view(np.bool_)


class StoredColumns:
    """The columns of `rows` rows in a file. Any number of threads may read; the file may be removed meanwhile."""

    def __init__(self, buffer: np.ndarray) -> None:
        self.nbytes = len(buffer)
        """Bytes of the file."""
        try:
            self._reader = SectionReader(buffer)
            directory = self._reader.directory
            self.rows: int = directory["rows"]
            self._columns = {
                path: StoredPathColumn(self._reader, entry, self.rows) for path, entry in directory["paths"].items()
            }
            self._complete: bool = directory["complete"]
            self._omitted = frozenset(directory["omitted"])
            self._nothing = StoredPathColumn(self._reader, {"present": False}, self.rows)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the directory of columns cannot be read: {error!r}") from error

    @classmethod
    def open(cls, path: Path) -> StoredColumns:
        """Map a file that `write_columns` made. Raise ValueError for any other, OSError when it cannot be read."""
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < _MAP_FROM_BYTES:
                return cls(np.frombuffer(file.read(), dtype=np.uint8))
            return cls(np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8))

    @property
    def paths(self) -> Sequence[str]:
        """The paths that have a column."""
        return list(self._columns)

    def column(self, path: str) -> StoredPathColumn | None:
        """Return the column of a path, an empty one when no row has it; None when only metadata can tell."""
        column = self._columns.get(path)
        if column is None and self._complete and path not in self._omitted:
            return self._nothing
        return column


def _lend(block: Block, reader: SectionReader, entry: Mapping[str, Any], rows: int, *dtypes: str) -> None:
    places: Section | None = entry["rows"]
    elements: Section | None = entry["elements"]
    values = reader.array(entry["values"], *dtypes, length=rows if places is None else None)
    block.lend(
        None if places is None else reader.array(places, "<i4", length=len(values)),
        values,
        None if elements is None else reader.array(elements, "|b1", length=len(values)),
        repeats=entry["repeats"],
    )
