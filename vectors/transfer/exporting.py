"""A namespace into a file: JSON Lines, or an archive of arrays that `load_vectors` reads back.

The file appears under its name when it is whole: it is written beside it, synced, and renamed.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from vectors.transfer.companions import RowId
from vectors.transfer.places import Row
from vectors.transfer.progress import Progress

SUFFIXES = (".jsonl", ".jsonl.gz", ".npz")

_COPY_BYTES = 1024 * 1024


def export_rows(rows: Iterable[Row], path: Path, *, dimension: int, progress: Progress) -> int:
    """Write rows to a file of one of SUFFIXES and return how many there were. Nothing is left behind when it fails."""
    write = _write_archive if path.suffix == ".npz" else _write_json_lines
    with _appearing_whole(path) as temporary:
        return write(_counted(rows, progress), temporary, path, dimension)


def _write_json_lines(rows: Iterable[Row], temporary: Path, path: Path, dimension: int) -> int:
    count = 0
    with _opened(temporary, compressed=path.suffix == ".gz") as file:
        for row in rows:
            line = orjson.dumps(
                {"id": row.id, "values": _plain(row.values), "metadata": orjson.Fragment(row.metadata)},
                option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
            )
            file.write(line)
            count += 1
    return count


def _write_archive(rows: Iterable[Row], temporary: Path, path: Path, dimension: int) -> int:
    """Write the columns to files of their own first: how many rows there are is known only at the end."""
    ids: list[RowId] = []
    with (
        tempfile.TemporaryFile(dir=path.parent) as values,
        tempfile.TemporaryFile(dir=path.parent) as metadata,
        zipfile.ZipFile(temporary, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for row in rows:
            values.write(np.ascontiguousarray(row.values, dtype="<f4").tobytes())
            metadata.write(row.metadata + b"\n")
            ids.append(row.id)
        _add_array(archive, "values", np.dtype("<f4"), (len(ids), dimension), values)
        _add_array(archive, "metadata", np.dtype("u1"), (metadata.tell(),), metadata)
        name, array = _id_array(ids)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)
    return len(ids)


def _add_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], content: IO[bytes]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    content.seek(0)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_2_0(entry, header)
        shutil.copyfileobj(content, entry, _COPY_BYTES)


def _id_array(ids: list[RowId]) -> tuple[str, np.ndarray]:
    """Return ids as `ids`, integers or text, or as `ids_jsonl` where neither keeps them apart."""
    if all(type(row_id) is int for row_id in ids):
        return "ids", np.array(ids, dtype=np.int64)
    # numpy drops NUL characters at the end of a text.
    if all(type(row_id) is str and not row_id.endswith("\0") for row_id in ids):
        return "ids", np.array(ids, dtype=np.str_)
    return "ids_jsonl", np.frombuffer(b"".join(orjson.dumps(row_id) + b"\n" for row_id in ids), dtype=np.uint8)


def _counted(rows: Iterable[Row], progress: Progress) -> Iterator[Row]:
    for row in rows:
        yield row
        progress.add(1)


def _plain(values: np.ndarray) -> np.ndarray:
    """Return values as orjson takes them: of exactly numpy's own class, in native order."""
    return np.array(values, dtype=np.float32, subok=False)


@contextmanager
def _opened(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if not compressed:
            yield raw
            return
        # No time and no name in the header: the same rows make the same file.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=3, mtime=0) as file:
            yield file  # type: ignore[misc]


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp's files are for their owner alone; a new file is as the umask says.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
