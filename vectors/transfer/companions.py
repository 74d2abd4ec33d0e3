"""Ids and metadata that lie beside the vectors: in files of their own, or in an array archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from vectors.engine.ids import id_of, key_of, key_of_text
from vectors.errors import InvalidInput
from vectors.transfer.text_files import BadFile, is_json_lines, lines, objects

RowId = int | str
#: Reads metadata from a row on: yields (the row's id or None, its metadata).
MetadataReader = Callable[[int], Iterator[tuple[RowId | None, dict[str, Any]]]]


def read_ids(path: Path, *, id_field: str | None, as_strings: bool) -> Sequence[RowId]:
    """Return the ids in a file: `.npy` (integers or text), `.jsonl[.gz]` (a field, or a line each), or text.

    In a text file an id is what it is in a URL: digits are an integer unless `as_strings`. Raise BadFile.
    """
    if path.suffix == ".npy":
        try:
            return ids_of_array(np.load(path, allow_pickle=False), name=path.name)
        except (OSError, ValueError, EOFError) as error:
            raise BadFile(f"{path.name}: {error}") from error
    if is_json_lines(path):
        return [_checked(_field_or_self(value, path, number, id_field), f"{path.name} line {number}")
                for number, value in _values(path)]  # fmt: skip
    found: list[RowId] = []
    for number, line in lines(path):
        try:
            found.append(id_of(key_of_text(line.decode(), as_string=as_strings)))
        except (InvalidInput, UnicodeDecodeError) as error:
            raise BadFile(f"{path.name} line {number}: {error}") from None
    return found


def ids_of_array(array: np.ndarray, *, name: str) -> Sequence[RowId]:
    """Return the ids in an array of (n,) integers or text; raise BadFile for another shape or type."""
    if array.ndim != 1:
        raise BadFile(f"{name}: ids must be of shape (rows,), got {array.shape}")
    if array.dtype.kind not in "iuUS":
        raise BadFile(f"{name}: ids must be integers or text, got {array.dtype}")
    found: list[RowId] = array.astype(str).tolist() if array.dtype.kind == "S" else array.tolist()
    return [_checked(value, f"{name} row {row}") for row, value in enumerate(found)]


def json_ids_of_array(array: np.ndarray, *, name: str) -> Sequence[RowId]:
    """Return the ids in an array of (bytes,) uint8: JSON Lines, an id each."""
    texts = array.tobytes().splitlines() if array.dtype == np.uint8 else None
    if texts is None:
        raise BadFile(f"{name}: ids_jsonl must be bytes of JSON Lines, got {array.dtype}")
    return [_checked(_loaded(text, f"{name} id {row}"), f"{name} row {row}") for row, text in enumerate(texts)]


def metadata_file(path: Path, *, id_field: str | None) -> MetadataReader:
    """Return a reader of a `.jsonl[.gz]` whose line i is the metadata of row i; `id_field` is taken out as the id."""
    if not is_json_lines(path):
        raise BadFile(f"{path.name}: metadata is read from .jsonl or .jsonl.gz")
    if not path.is_file():
        raise BadFile(f"{path}: No such file or directory")

    def read(start: int) -> Iterator[tuple[RowId | None, dict[str, Any]]]:
        for number, value in objects(path):
            if number > start:
                yield _take_id(value, id_field, f"{path.name} line {number}"), value

    return read


def metadata_array(array: np.ndarray, *, name: str) -> MetadataReader:
    """Return a reader of metadata in an archive: (bytes,) uint8 of JSON Lines, or (n,) texts of JSON."""
    if array.dtype == np.uint8 and array.ndim == 1:
        texts: Sequence[bytes | str] = array.tobytes().splitlines()
    elif array.dtype.kind in "US" and array.ndim == 1:
        texts = array.tolist()
    else:
        raise BadFile(f"{name}: metadata must be JSON Lines as uint8 or texts of JSON, got {array.dtype} {array.shape}")

    def read(start: int) -> Iterator[tuple[RowId | None, dict[str, Any]]]:
        for row, text in enumerate(texts[start:], start=start):
            value = _loaded(text, f"{name} metadata of row {row}")
            if type(value) is not dict:
                raise BadFile(f"{name} metadata of row {row} must be an object")
            yield None, value

    return read


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in lines(path):
        yield number, _loaded(line, f"{path.name} line {number}")


def _loaded(text: bytes | str, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadFile(f"{where} is not valid JSON: {error}") from None


def _field_or_self(value: Any, path: Path, number: int, id_field: str | None) -> Any:
    if type(value) is not dict:
        return value
    field = id_field or "id"
    if field not in value:
        raise BadFile(f"{path.name} line {number} has no field {field!r}")
    return value[field]


def _take_id(value: dict[str, Any], id_field: str | None, where: str) -> RowId | None:
    if id_field is None:
        return None
    if id_field not in value:
        raise BadFile(f"{where} has no field {id_field!r}")
    return _checked(value.pop(id_field), where)


def _checked(value: Any, where: str) -> RowId:
    try:
        return id_of(key_of(value))
    except InvalidInput as error:
        raise BadFile(f"{where}: {error.message}") from None
