"""What is loaded, batch by batch: arrays with ids and metadata beside them, or JSON Lines that hold everything."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from vectors.engine.ids import id_of, key_of
from vectors.errors import InvalidInput
from vectors.transfer.companions import (
    MetadataReader,
    RowId,
    ids_of_array,
    json_ids_of_array,
    metadata_array,
    metadata_file,
    read_ids,
)
from vectors.transfer.text_files import BadFile, is_json_lines, objects

VALUES_NAMES = ("values", "vectors", "embeddings")


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows: `values` (n, d) float32, C-contiguous and finite; `metadata` None when there is none."""

    start: int
    ids: Sequence[RowId]
    values: np.ndarray
    metadata: Sequence[dict[str, Any]] | None


class Source(Protocol):
    """Rows in a fixed order, which can be read more than once."""

    rows: int | None
    """How many there are; None when only reading all of them tells."""

    ids_are_row_numbers: bool
    """Whether the ids say nothing but the place in this file."""

    notes: list[str]
    """What a person should know, found while reading."""

    def batches(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the rows from `start` on, `size` at a time; raise BadFile for what cannot be loaded."""


def open_source(
    path: Path,
    *,
    ids: Path | None = None,
    metadata: Path | None = None,
    id_field: str | None = None,
    values_field: str | None = None,
    id_strings: bool = False,
    strict: bool = False,
) -> Source:
    """Return the source in a file by its name: `.npy`, `.npz`, `.jsonl`, `.jsonl.gz`. Raise BadFile.

    `strict` refuses a metadata file with more lines than there are rows.
    """
    if not path.is_file():
        raise BadFile(f"{path}: No such file or directory")
    if is_json_lines(path):
        if ids is not None or metadata is not None:
            raise BadFile("a .jsonl file holds ids and metadata itself: --ids and --metadata go with .npy and .npz")
        return JsonLinesSource(path, id_field=id_field, values_field=values_field or "values")
    if path.suffix not in (".npy", ".npz"):
        raise BadFile(f"{path.name}: files are .npy, .npz, .jsonl or .jsonl.gz")
    if path.suffix == ".npy":
        found = _Archive(_load_array(path), None, None)
    else:
        found = _load_archive(path, values_field)
    given_ids = found.ids if ids is None else read_ids(ids, id_field=id_field, as_strings=id_strings)
    # The field names the id in one of the two files; where both could have it, the ids' own file is asked.
    reader = found.metadata if metadata is None else metadata_file(metadata, id_field=None if ids else id_field)
    if id_field is not None and ids is None and metadata is None:
        raise BadFile("--id-field names a field of --metadata, --ids or a .jsonl file; none of them is given")
    if id_field is not None and metadata is not None and ids is None:
        given_ids = None
    return ArraySource(
        found.values,
        name=path.name,
        ids=given_ids,
        metadata=reader,
        metadata_name=metadata.name if metadata else path.name,
        metadata_has_ids=id_field is not None and ids is None,
        strict=strict,
    )


class ArraySource:
    """Rows of an array, with ids from a list, from the metadata, or none (then they are the row numbers)."""

    def __init__(
        self,
        values: np.ndarray,
        *,
        name: str,
        ids: Sequence[RowId] | None,
        metadata: MetadataReader | None,
        metadata_name: str,
        metadata_has_ids: bool,
        strict: bool,
    ) -> None:
        if values.ndim != 2 or 0 in values.shape:
            raise BadFile(f"{name}: values must be of shape (rows, dimension), got {values.shape}")
        if values.dtype.kind not in "fiu":
            raise BadFile(f"{name}: values must be floats or integers, got {values.dtype}")
        self.rows: int | None = len(values)
        if ids is not None and len(ids) != len(values):
            raise BadFile(f"{name} has {len(values):,} rows, but there are {len(ids):,} ids")
        self.ids_are_row_numbers = ids is None and not metadata_has_ids
        self.notes: list[str] = []
        self._values = values
        self._name = name
        self._ids = ids
        self._metadata = metadata
        self._metadata_name = metadata_name
        self._metadata_has_ids = metadata_has_ids
        self._strict = strict

    def batches(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the rows from `start` on, `size` at a time."""
        reader = None if self._metadata is None else self._metadata(start)
        for begin in range(start, len(self._values), size):
            values = _float32(self._values[begin : begin + size], begin, self._name)
            stop = begin + len(values)
            ids: Sequence[RowId] = range(begin, stop) if self._ids is None else self._ids[begin:stop]
            metadata = None
            if reader is not None:
                pairs = list(itertools.islice(reader, len(values)))
                if len(pairs) < len(values):
                    raise BadFile(
                        f"{self._metadata_name} has {begin + len(pairs):,} lines for the {len(self._values):,} rows"
                        f" of {self._name}"
                    )
                metadata = [value for _, value in pairs]
                if self._metadata_has_ids:
                    ids = [row_id for row_id, _ in pairs if row_id is not None]
            yield Batch(begin, list(ids), values, metadata)
        if reader is not None:
            self._look_beyond(sum(1 for _ in reader))

    def _look_beyond(self, surplus: int) -> None:
        if not surplus:
            return
        text = f"{self._metadata_name} has {surplus:,} lines more than {self._name} has rows; line i belongs to row i"
        if self._strict:
            raise BadFile(text)
        note = f"{text}, the lines after the last row are not used"
        if note not in self.notes:
            self.notes.append(note)


class JsonLinesSource:
    """Rows of a JSON Lines file: values, an id, and metadata (an object, or all the other fields)."""

    rows: int | None = None

    def __init__(self, path: Path, *, id_field: str | None, values_field: str) -> None:
        self.notes: list[str] = []
        self._path = path
        self._values_field = values_field
        first = next(objects(path), None)
        if first is None:
            raise BadFile(f"{path.name} has no rows")
        # The first line says whether there are ids: a file in which only some rows have one is refused.
        self._id_field = id_field or ("id" if "id" in first[1] else None)
        self.ids_are_row_numbers = self._id_field is None

    def batches(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the rows from `start` on, `size` at a time."""
        rows = (item for item in objects(self._path) if item[0] > start)
        begin = start
        dimension: int | None = None
        while chunk := list(itertools.islice(rows, size)):
            ids: list[RowId] = []
            texts: list[bytes] = []
            metadata: list[dict[str, Any]] = []
            for number, row in chunk:
                where = f"{self._path.name} line {number}"
                ids.append(self._take_id(row, number, where))
                packed = _packed(row.pop(self._values_field, None), self._values_field, where)
                dimension = dimension or len(packed) // 4
                if len(packed) != 4 * dimension:
                    raise BadFile(f"{where}: has {len(packed) // 4} values, the lines before have {dimension}")
                texts.append(packed)
                metadata.append(_metadata(row, where))
            values = np.frombuffer(b"".join(texts), dtype="<f4").reshape(len(chunk), -1)
            yield Batch(begin, ids, values, metadata)
            begin += len(chunk)

    def _take_id(self, row: dict[str, Any], number: int, where: str) -> RowId:
        if self._id_field is None:
            if "id" in row:
                raise BadFile(f"{where} has an id, the first line has none")
            return number - 1
        if self._id_field not in row:
            raise BadFile(f"{where} has no field {self._id_field!r}")
        try:
            return id_of(key_of(row.pop(self._id_field)))
        except InvalidInput as error:
            raise BadFile(f"{where}: {error.message}") from None


@dataclass(frozen=True, slots=True)
class _Archive:
    values: np.ndarray
    ids: Sequence[RowId] | None
    metadata: MetadataReader | None


def _load_array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadFile(f"{path.name} cannot be read as an array: {error}") from error
    return array


def _load_archive(path: Path, values_field: str | None) -> _Archive:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            name = values_field or next((one for one in VALUES_NAMES if one in names), None)
            if name is None and len(names) == 1:
                name = names[0]
            if name is None or name not in names:
                raise BadFile(
                    f"{path.name} has the arrays {', '.join(names) or 'none'}: name the one of the vectors"
                    " with --values-field"
                )
            values = archive[name]
            ids: Sequence[RowId] | None = None
            if "ids" in names:
                ids = ids_of_array(archive["ids"], name=path.name)
            elif "ids_jsonl" in names:
                ids = json_ids_of_array(archive["ids_jsonl"], name=path.name)
            metadata = metadata_array(archive["metadata"], name=path.name) if "metadata" in names else None
    except BadFile:
        raise
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise BadFile(f"{path.name} cannot be read as an archive of arrays: {error}") from error
    return _Archive(values, ids, metadata)


def _float32(rows: np.ndarray, begin: int, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        values: np.ndarray = np.ascontiguousarray(rows, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
        column = int(np.flatnonzero(~finite[row])[0])
        raise BadFile(f"{name} row {begin + row} has {rows[row, column]} at column {column}: not finite in float32")
    return values


def _packed(values: Any, field: str, where: str) -> bytes:
    if type(values) is not list or not values:
        raise BadFile(f"{where}: {field!r} must be a list of numbers")
    try:
        packed = struct.pack(f"<{len(values)}f", *values)
    except (struct.error, OverflowError) as error:
        raise BadFile(f"{where}: {field!r} must hold numbers within float32 ({error})") from None
    if bool in map(type, values):
        raise BadFile(f"{where}: {field!r} must hold numbers, not booleans")
    return packed


def _metadata(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the object in `metadata` where that is the only field left, else all fields that are left."""
    if row.keys() != {"metadata"}:
        return row
    value = row["metadata"]
    if value is None:
        return {}
    if type(value) is not dict:
        raise BadFile(f"{where}: 'metadata' must be an object")
    return value
