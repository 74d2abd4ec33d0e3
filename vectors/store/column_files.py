"""The column files of segments: columns of metadata for filters, opened beside the segment.

They are worth only time. Where one is missing, altered or of another format, each process builds the columns that its
filters ask for from metadata, as it does for segments that have none. A merge of the segment writes them anew.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from vectors.engine.filters.stored import StoredColumns
from vectors.errors import CorruptSegment
from vectors.store.segment_files import COLUMNS_FILE, SegmentRecord, check_file

logger = logging.getLogger(__name__)


def open_columns_of(
    directory: Path, record: SegmentRecord, *, progress: Callable[[int], None] | None = None
) -> StoredColumns | None:
    """Return the columns of a segment in `directory`, None where it has none that can be used."""
    if COLUMNS_FILE not in record.files:
        return None
    try:
        return _open(directory, record, progress)
    except (CorruptSegment, ValueError, OSError) as error:
        logger.warning("columns_unusable segment=%s reason=%s", record.uid, error)
        return None


def columns_fault(directory: Path, record: SegmentRecord) -> str | None:
    """Return why the columns that a segment in `directory` should have cannot be used, None when nothing is wrong."""
    if COLUMNS_FILE not in record.files:
        return None
    try:
        _open(directory, record, None)
    except (CorruptSegment, ValueError, OSError) as error:
        return str(error)
    return None


def without_bad_columns(directory: Path, record: SegmentRecord) -> SegmentRecord:
    """Return the record of a segment in `directory` as others are to have it: without columns that are no good here."""
    fault = columns_fault(directory, record)
    if fault is None:
        return record
    logger.warning("columns_not_offered segment=%s reason=%s", record.uid, fault)
    files = {name: stamp for name, stamp in record.files.items() if name != COLUMNS_FILE}
    return dataclasses.replace(record, files=files)


def _open(directory: Path, record: SegmentRecord, progress: Callable[[int], None] | None) -> StoredColumns:
    check_file(directory / COLUMNS_FILE, record.files[COLUMNS_FILE], progress=progress)
    opened = StoredColumns.open(directory / COLUMNS_FILE)
    if opened.rows != record.rows:
        raise ValueError(f"{COLUMNS_FILE} is of {opened.rows} rows instead of {record.rows}")
    return opened
