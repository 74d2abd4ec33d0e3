"""Loading a source into a namespace.

Steps: read everything once and refuse what cannot be loaded, so that bad input changes nothing; make the namespace;
write batch after batch, several on their way at once. Every row has its id before it is written, so a load that was
cut short can simply be run again; with `resume` it begins at the first batch of which an id is missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vectors.engine.ids import hashes_of, key_of
from vectors.errors import MLVectorDBError
from vectors.query_processor.parsing import metadata_of
from vectors.transfer.places import Place
from vectors.transfer.progress import Progress
from vectors.transfer.sources import Batch, Source
from vectors.transfer.text_files import BadFile

CHECK_ROWS = 8192
BODY_BYTES = 16 * 1024 * 1024
"""Vector bytes of one request: a quarter of what a node accepts by default, the rest is for metadata."""

_AHEAD = 2


class LoadRefused(RuntimeError):
    """Raised when a load would do what nobody asked for; the message says which option asks for it."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a source was found to hold."""

    rows: int
    dimension: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did."""

    rows: int
    skipped: int
    took_s: float

    @property
    def rows_per_s(self) -> float:
        """The mean rate of the rows that were written."""
        return self.rows / max(self.took_s, 1e-9)


def check_source(source: Source, progress: Progress) -> Checked:
    """Read a source whole; raise BadFile for the first thing in it that cannot be loaded."""
    hashes: list[np.ndarray] = []
    rows, dimension = 0, 0
    for batch in source.batches(CHECK_ROWS):
        dimension = dimension or batch.values.shape[1]
        if batch.values.shape[1] != dimension:
            raise BadFile(f"row {batch.start} has {batch.values.shape[1]} values, the rows before have {dimension}")
        if not source.ids_are_row_numbers:
            hashes.append(hashes_of([key_of(row_id) for row_id in batch.ids]))
        for place, metadata in enumerate(batch.metadata or ()):
            try:
                metadata_of(metadata, field="metadata")
            except MLVectorDBError as error:
                raise BadFile(f"row {batch.start + place}: {error.message}") from None
        rows += len(batch.ids)
        progress.add(len(batch.ids))
    if hashes:
        _refuse_repeated(source, np.concatenate(hashes))
    return Checked(rows, dimension)


def load(
    source: Source,
    place: Place,
    namespace: str,
    *,
    checked: Checked,
    metric: str | None,
    batch_rows: int,
    resume: bool,
    replace: bool,
    progress: Callable[[int], Progress],
) -> Loaded:
    """Write a checked source into a namespace; `progress` makes the display, given the rows that are there already.

    Raise LoadRefused for row numbers as ids in a namespace that has rows, and PlaceError when the node refuses.
    """
    known = place.known(namespace)
    if source.ids_are_row_numbers and known is not None and known.rows and not (resume or replace):
        raise LoadRefused(
            f"namespace {namespace} has {known.rows:,} rows, and this file has no ids: its row numbers might replace"
            " rows of another. Give --ids or --id-field, --resume to carry a load on, or --replace"
        )
    place.make(namespace, dimension=checked.dimension, metric=metric)
    batch_rows = max(1, min(batch_rows, BODY_BYTES // (4 * checked.dimension)))
    start = 0
    if resume and known is not None and known.rows:
        start = _first_missing(source, place, namespace, batch_rows)
    shown = progress(start)
    try:
        _write_all(source, place, namespace, start=start, batch_rows=batch_rows, progress=shown)
    finally:
        shown.finish()
    return Loaded(shown.done - start, start, shown.took_s)


def _write_all(
    source: Source, place: Place, namespace: str, *, start: int, batch_rows: int, progress: Progress
) -> None:
    if place.writers == 1:
        for batch in source.batches(batch_rows, start=start):
            place.write(namespace, batch)
            progress.add(len(batch.ids))
        return
    # Rows count as written in their order, so that a number shown is a number that is there.
    writing: deque[tuple[Future[None], Batch]] = deque()
    with ThreadPoolExecutor(place.writers, thread_name_prefix="load") as pool:
        try:
            for batch in source.batches(batch_rows, start=start):
                writing.append((pool.submit(place.write, namespace, batch), batch))
                while len(writing) > place.writers + _AHEAD:
                    _await_first(writing, progress)
            while writing:
                _await_first(writing, progress)
        except BaseException:
            for future, _ in writing:
                future.cancel()
            raise


def _await_first(writing: deque[tuple[Future[None], Batch]], progress: Progress) -> None:
    future, batch = writing.popleft()
    future.result()
    progress.add(len(batch.ids))


def _first_missing(source: Source, place: Place, namespace: str, batch_rows: int) -> int:
    """Return the row at which the first batch begins of which an id is not there."""
    row = 0
    for batch in source.batches(batch_rows):
        if place.count_ids(namespace, list(batch.ids)) < len(batch.ids):
            return batch.start
        row = batch.start + len(batch.ids)
    return row


def _refuse_repeated(source: Source, hashes: np.ndarray) -> None:
    """Raise BadFile when two rows have the same id, naming the first such pair."""
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return
    suspects = set(repeated.tolist())
    seen: dict[bytes, int] = {}
    for batch in source.batches(CHECK_ROWS):
        keys = [key_of(row_id) for row_id in batch.ids]
        for place, (key, digest) in enumerate(zip(keys, hashes_of(keys).tolist(), strict=True)):
            if digest not in suspects:
                continue
            row = batch.start + place
            if key in seen:
                raise BadFile(f"rows {seen[key]} and {row} have the same id {batch.ids[place]!r}")
            seen[key] = row
