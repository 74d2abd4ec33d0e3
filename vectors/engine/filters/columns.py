"""Columns of metadata: built when a filter first asks for a path, extended as rows are appended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from vectors.engine.filters.blocks import NumberBlock, UuidBlock
from vectors.engine.filters.budget import ColumnBudget
from vectors.engine.filters.cells import Cells, TypedBlocks
from vectors.engine.filters.paths import Path
from vectors.engine.filters.sorted_ids import SortedIds
from vectors.engine.filters.stored import StoredColumns, StoredPathColumn
from vectors.engine.filters.texts import TextBlock
from vectors.engine.filters.tree import ID, Filter
from vectors.engine.ids import INTEGER_TAG, STRING_TAG, UUID_TAG

_CHUNK_ROWS = 250

RowsOf = Callable[[int, int], Sequence[bytes]]
"""Returns what belongs to the rows [start, stop)."""


class PathColumn(TypedBlocks):
    """The values at one metadata path, by type, and where there is any.

    Integers beyond 2**53, which float64 cannot hold, are kept aside as int64 or uint64, so every number is exact.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self.texts = TextBlock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + self.texts.nbytes

    def extend(self, documents: Sequence[dict[str, Any]]) -> None:
        """Append the rows of decoded metadata objects."""
        cells = Cells(self._path, documents, first=self.rows)
        self.texts.extend_texts(cells.texts.rows, cells.texts.values)
        self.extend_cells(cells)


class IdColumn:
    """The ids of the rows, by kind."""

    def __init__(self) -> None:
        self.rows = 0
        self.integers = NumberBlock(np.int64)
        self.uuids = UuidBlock()
        self.texts = TextBlock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.integers.nbytes + self.uuids.nbytes + self.texts.nbytes

    def extend(self, keys: Sequence[bytes]) -> None:
        """Append the keys of rows."""
        rows: dict[bytes, list[int]] = {INTEGER_TAG: [], UUID_TAG: [], STRING_TAG: []}
        tails: dict[bytes, list[bytes]] = {INTEGER_TAG: [], UUID_TAG: [], STRING_TAG: []}
        for row, key in enumerate(keys, self.rows):
            tag = key[:1]
            rows[tag].append(row)
            tails[tag].append(key[1:])
        # The tail of an integer's key is the integer + 2**63, big-endian: flipping the top bit takes the offset away.
        offset = np.frombuffer(b"".join(tails[INTEGER_TAG]), dtype=">u8").astype(np.uint64)
        self.integers.extend(rows[INTEGER_TAG], (offset ^ np.uint64(1 << 63)).view(np.int64))
        self.uuids.extend(rows[UUID_TAG], tails[UUID_TAG])
        self.texts.extend_texts(rows[STRING_TAG], [tail.decode() for tail in tails[STRING_TAG]])
        self.rows += len(keys)


class Prepared(NamedTuple):
    """The columns a filter needs, complete up to the rows that were asked for."""

    paths: Mapping[str, PathColumn | StoredPathColumn]
    ids: IdColumn | SortedIds | None


class Columns:
    """The columns and masks of one append-only run of rows whose rows never change.

    `metadata_of(start, stop)` and `keys_of(start, stop)` return the metadata (compact JSON objects) and keys of a range
    of rows. `stored` are columns that need not be built, set by whoever opens the rows; `sorted_ids` are the ids where
    keys are in order. What is built is kept in `budget` (without one, as long as this object lives). Readers may come
    from several threads, each with its own number of rows; one at a time builds.
    """

    def __init__(
        self,
        metadata_of: RowsOf,
        keys_of: RowsOf,
        *,
        budget: ColumnBudget | None = None,
        stored: StoredColumns | None = None,
        sorted_ids: SortedIds | None = None,
    ) -> None:
        self._metadata_of = metadata_of
        self._keys_of = keys_of
        self.stored = stored
        self._sorted_ids = sorted_ids
        self._shelf = (budget or ColumnBudget(None)).shelf(self)
        self._building = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes kept for this run of rows, masks included."""
        return self._shelf.nbytes

    def known_mask(self, filter: Filter) -> np.ndarray | None:
        """Return the longest mask kept for a filter: (m,) bool, read-only; it holds for any first n <= m rows."""
        mask: np.ndarray | None = self._shelf.get(filter)
        return mask

    def keep_mask(self, filter: Filter, mask: np.ndarray) -> None:
        """Keep a mask: (m,) bool, read-only."""
        self._shelf.put(filter, mask, mask.nbytes + filter.size_bytes)

    def prepare(self, filter: Filter, *, stop: int) -> Prepared:
        """Return the columns of a filter, complete for the rows [0, stop)."""
        stored = self._stored_columns(filter.paths)
        ids = self._sorted_ids if filter.uses_id else None
        wanted = [path for path in filter.paths if path not in stored]
        wants_ids = filter.uses_id and ids is None
        if not wanted and not wants_ids:
            return Prepared(stored, ids)
        known = {path: self._shelf.get(path) for path in wanted}
        known_ids = self._shelf.get(ID) if wants_ids else ids
        columns = [*known.values(), known_ids] if wants_ids else known.values()
        if all(column is not None and column.rows >= stop for column in columns):
            return Prepared({**stored, **known}, known_ids)
        with self._building:
            built = self._build_paths(wanted, stop)
            return Prepared({**stored, **built}, self._build_ids(stop) if wants_ids else ids)

    def _stored_columns(self, paths: Sequence[str]) -> dict[str, PathColumn | StoredPathColumn]:
        if self.stored is None:
            return {}
        found = {path: self.stored.column(path) for path in paths}
        return {path: column for path, column in found.items() if column is not None}

    def _build_paths(self, paths: Sequence[str], stop: int) -> dict[str, PathColumn]:
        columns = {path: self._shelf.get(path) or PathColumn(path) for path in paths}
        behind: dict[int, dict[str, PathColumn]] = {}
        for path, column in columns.items():
            if column.rows < stop:
                behind.setdefault(column.rows, {})[path] = column
        for first, group in behind.items():
            try:
                for start in range(first, stop, _CHUNK_ROWS):
                    documents = [
                        orjson.loads(item) for item in self._metadata_of(start, min(start + _CHUNK_ROWS, stop))
                    ]
                    for column in group.values():
                        column.extend(documents)
            except BaseException:
                # One that stopped halfway through a chunk would count its rows twice.
                for path in group:
                    self._shelf.discard(path)
                raise
            for path, column in group.items():
                self._shelf.put(path, column, column.nbytes)
        return columns

    def _build_ids(self, stop: int) -> IdColumn:
        column: IdColumn = self._shelf.get(ID) or IdColumn()
        if column.rows < stop:
            try:
                for start in range(column.rows, stop, _CHUNK_ROWS):
                    column.extend(self._keys_of(start, min(start + _CHUNK_ROWS, stop)))
            except BaseException:
                self._shelf.discard(ID)
                raise
            self._shelf.put(ID, column, column.nbytes)
        return column
