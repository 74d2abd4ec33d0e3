"""The files of a merge: one segment of several, and indexes. Reads and writes files alone, and asks no database."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from django.conf import settings

from vectors.engine import index
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.parts import FrozenPart
from vectors.errors import StorageFull
from vectors.store.row_order import RowOrder
from vectors.store.segment_files import CheckedFiles, SegmentRecord, map_segment, open_segment, read_deleted
from vectors.store.segment_writing import write_deleted, write_index, write_segment

logger = logging.getLogger(__name__)

# Disk space that is left to the log and the database.
_SPARE_BYTES = 64 * 1024 * 1024

_checked = CheckedFiles()


@dataclass(frozen=True, slots=True)
class Merged:
    """A segment made of others, `record`, None when no row of them was alive; and where each row of them is in it."""

    record: SegmentRecord | None
    sources: Sequence[SegmentRecord]
    parts: Sequence[FrozenPart]
    order: RowOrder

    def deleted_since(self, directory: Path, listed: Sequence[SegmentRecord]) -> np.ndarray:
        """Return which of its rows the sources, as they are `listed` now, have lost since it was written: (n,) bool."""
        deleted = np.zeros(len(self.order), dtype=bool)
        for source, part, now in zip(self.sources, self.parts, listed, strict=True):
            if now.deleted == source.deleted:
                continue
            dead = read_deleted(directory / now.uid, now)
            if dead is not None:
                deleted[self.order.positions_of(part, np.flatnonzero(dead & part.living))] = True
        return deleted


def merge_write(directory: Path, spec: NamespaceSpec, sources: Sequence[SegmentRecord], *, token: int) -> Merged:
    """Write the living rows of segments as a new one in the namespace's `directory`.

    Raise CorruptSegment when a file of a source is not what it should be, StorageFull, OSError; then nothing stays.
    """
    _check_room(directory, sum(source.size_bytes for source in sources))
    parts = [open_segment(directory / source.uid, source, checked=_checked) for source in sources]
    order = RowOrder(parts)
    record = None
    if len(order):
        with_columns = len(order) >= settings.MLVDB_INDEX_MIN_ROWS
        record = write_segment(directory, rows=order, dimension=spec.dimension, token=token, with_columns=with_columns)
    return Merged(record, sources, parts, order)


def index_write(
    directory: Path,
    spec: NamespaceSpec,
    record: SegmentRecord,
    *,
    queries: np.ndarray | None,
    number: int,
    token: int,
    wish: int,
    is_new: bool,
    threads: Callable[[], int],
) -> SegmentRecord:
    """Make an index for a segment in the namespace's `directory`; return the segment's record with it.

    Where no setting reaches the target, or none can be made, the record says so, and is not tried again for the same.
    `wish` is the newest wish that this heeds, `threads` says how many threads it may use as it goes on.
    `is_new`: the segment was written just now, and need not be read to be checked. Raise CorruptSegment, OSError.
    """
    where = directory / record.uid
    if is_new:
        part = map_segment(where, record, deleted=read_deleted(where, record))
    else:
        part = open_segment(where, record, checked=_checked)
    reason = "no setting reaches the target"
    built = None
    try:
        built = index.build(
            part,
            metric=spec.metric,
            recall_target=spec.recall_target,
            queries=queries,
            threads=threads,
        )
    except (RuntimeError, ValueError, MemoryError, ArithmeticError) as error:
        # A segment without an index answers all the same; what fails once would fail again and again.
        logger.exception("index_not_built segment=%s rows=%d", record.uid, record.rows)
        reason = f"it could not be built: {error!r}"[:500]
    if built is None:
        unindexed = {"recall_target": spec.recall_target, "reason": reason}
        return dataclasses.replace(record, index=None, unindexed=unindexed, wish=wish)
    made = write_index(where, number=number, token=token, chunks=built.chunks(), summary=dict(built.summary))
    return dataclasses.replace(record, index=made, unindexed=None, wish=wish)


def deletions_write(
    directory: Path, record: SegmentRecord, deleted: np.ndarray, *, seq: int, token: int
) -> SegmentRecord:
    """Write the deletions of a segment that is not listed yet; return its record with them."""
    if not deleted.any():
        return record
    name, stamp = write_deleted(directory / record.uid, seq=seq, deleted=deleted, token=token)
    return dataclasses.replace(record, deleted=name, deleted_stamp=stamp, deleted_rows=int(np.count_nonzero(deleted)))


def discard(directory: Path, record: SegmentRecord | None) -> None:
    """Remove a segment that no manifest lists, nor ever will."""
    if record is None:
        return
    shutil.rmtree(directory / record.uid, ignore_errors=True)


def _check_room(directory: Path, wanted: int) -> None:
    below = directory
    while not below.exists():
        below = below.parent
    free = shutil.disk_usage(below).free
    if wanted + _SPARE_BYTES > free:
        raise StorageFull(
            f"the disk has {free} bytes free, and a merge would write {wanted}",
            detail={"missing_bytes": wanted, "free_bytes": free, "spare_bytes": _SPARE_BYTES},
        )
