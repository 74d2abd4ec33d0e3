"""Columns as a segment has them: read from the file that was written for its rows, ids by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vectors.engine.filters import ColumnBudget, Columns
from vectors.engine.filters.sorted_ids import SortedIds
from vectors.engine.filters.stored import BUILD_BYTES, MAX_PATHS, StoredColumns, write_columns
from vectors.engine.ids import hashes_of
from vectors.engine.key_rows import KeyRows
from vectors.engine.packed import PackedBytes, pack


def file_of(metadata: Sequence[bytes], *, max_paths: int = MAX_PATHS, build_bytes: int = BUILD_BYTES) -> bytes:
    """Return the bytes of a file of columns."""
    return b"".join(write_columns(metadata, max_paths=max_paths, build_bytes=build_bytes))


def stored(data: bytes) -> StoredColumns:
    """Return the columns in the bytes of a file."""
    return StoredColumns(np.frombuffer(data, dtype=np.uint8))


def written(path: Path, metadata: Sequence[bytes]) -> StoredColumns:
    """Write a file of columns and open it."""
    with path.open("wb") as file:
        file.writelines(write_columns(metadata))
    return StoredColumns.open(path)


def sorted_ids(keys: Sequence[bytes]) -> SortedIds:
    """Return the ids of rows whose keys are in order."""
    packed, hashes = PackedBytes(*pack(keys)), hashes_of(keys)
    order = np.argsort(hashes, kind="stable")
    rows = KeyRows(packed, hashes[order], order.astype(np.uint32))
    return SortedIds(packed, lambda asked: rows.find(asked, hashes_of(asked)))


def columns_of_segment(
    metadata: Sequence[bytes],
    keys: Sequence[bytes],
    *,
    budget: ColumnBudget | None = None,
    columns: bytes | None = None,
) -> Columns:
    """Return the columns of rows in key order; `columns` are the bytes of their file."""
    return Columns(
        lambda start, stop: metadata[start:stop],
        lambda start, stop: keys[start:stop],
        budget=budget,
        stored=stored(file_of(metadata) if columns is None else columns),
        sorted_ids=sorted_ids(keys),
    )
