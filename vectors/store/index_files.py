"""The index files of segments: opened beside the segment, and what is wrong with one noted for the next merge.

An index is worth only time. One that is missing, altered, of another format, or that this process cannot read for want
of faiss leaves its segment to exact search; nothing is lost, and nothing refused.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from django.db import transaction

from vectors.engine import index
from vectors.engine.index import SegmentIndex
from vectors.errors import CorruptSegment, MLVectorDBError
from vectors.models import ShardHead
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults
from vectors.store.manifests import ManifestRecord
from vectors.store.segment_files import SegmentRecord, check_file

logger = logging.getLogger(__name__)


class IndexFault(NamedTuple):
    """Why an index is not used; `is_of_file`: a new one would be, and it is not this process that lacks something."""

    reason: str
    is_of_file: bool


def open_index_of(
    directory: Path, record: SegmentRecord, *, progress: Callable[[int], None] | None = None
) -> tuple[SegmentIndex | None, IndexFault | None]:
    """Return the index of a segment in `directory`, or None and, where it should have had one, why not."""
    if record.index is None:
        return None, None
    if not index.available():
        _tell_missing_library()
        return None, IndexFault("faiss is not installed", is_of_file=False)
    try:
        check_file(directory / record.index.name, record.index.stamp, progress=progress)
        opened = index.open_index(directory / record.index.name)
        if opened.rows != record.rows or opened.dimension != record.dimension:
            raise ValueError("it is of other rows")
    except CorruptSegment as error:
        fault = IndexFault(error.message, is_of_file=True)
    except (ValueError, RuntimeError) as error:
        fault = IndexFault(f"{record.index.name} of segment {record.uid}: {error}", is_of_file=True)
    except OSError as error:
        fault = IndexFault(f"{record.index.name} of segment {record.uid}: {error}", is_of_file=False)
    else:
        return opened, None
    logger.warning("index_unusable segment=%s file=%s reason=%s", record.uid, record.index.name, fault.reason)
    return None, fault


def index_is_good(directory: Path, record: SegmentRecord) -> bool:
    """Whether a segment has an index whose file is what it should be."""
    return record.index is not None and open_index_of(directory, record)[1] is None


def without_bad_index(directory: Path, record: SegmentRecord) -> SegmentRecord:
    """Return the record of a segment in `directory` as others are to have it: without an index that is no good here."""
    if record.index is None:
        return record
    try:
        check_file(directory / record.index.name, record.index.stamp)
    except CorruptSegment as error:
        logger.warning("index_not_offered segment=%s reason=%s", record.uid, error.message)
        return dataclasses.replace(record, index=None)
    return record


def note_index_faults(shard_id: int, manifest: ManifestRecord, faults: Mapping[str, IndexFault]) -> None:
    """Write on the head row which segments, by uid, have an index that cannot be used, for pages and the next merge.

    What only this process lacks is not written down. Never raises: the segments answer without.
    """
    names = {
        segment.uid: segment.index.name
        for record in manifest.namespaces.values()
        for segment in record.segments
        if segment.index is not None
    }
    found = {
        uid: {"file": names[uid], "reason": fault.reason}
        for uid, fault in faults.items()
        if uid in names and fault.is_of_file
    }
    if not found:
        return
    try:
        with storage_faults(), writers_in_line(), transaction.atomic():
            head = ShardHead.objects.select_for_update().filter(pk=shard_id, manifest=manifest.number).first()
            if head is not None and {**head.index_faults, **found} != head.index_faults:
                ShardHead.objects.filter(pk=shard_id).update(index_faults={**head.index_faults, **found})
    except MLVectorDBError as error:
        logger.warning("index_faults_not_noted shard_id=%d reason=%s", shard_id, error.message)


def faults_left(faults: Mapping[str, Mapping[str, str]], manifest: ManifestRecord) -> dict[str, Mapping[str, str]]:
    """Return what of noted faults is still true under a manifest: the same file is listed for the same segment."""
    listed = {
        (segment.uid, segment.index.name)
        for record in manifest.namespaces.values()
        for segment in record.segments
        if segment.index is not None
    }
    return {uid: fault for uid, fault in faults.items() if (uid, fault["file"]) in listed}


@cache
def _tell_missing_library() -> None:
    logger.warning("faiss_missing: segments with an index are searched exactly")
