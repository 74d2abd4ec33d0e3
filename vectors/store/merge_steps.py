"""What the steps of a merge make: files first, in any thread, then the change of the manifest that lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vectors.models import Manifest
from vectors.store.manifests import ManifestRecord
from vectors.store.merge_commit import Change, same_segments
from vectors.store.merge_plan import Indexing, Merging, Planner, Step
from vectors.store.merge_writing import Merged, deletions_write, discard, index_write, merge_write
from vectors.store.segment_files import SegmentRecord


class Made(Change):
    """What a step has made: `record` is the segment as it is to be listed, None where nothing is left of it."""

    record: SegmentRecord | None

    def discard(self) -> None:
        """Remove what surely no manifest lists."""


@dataclass(slots=True)
class Replaced(Made):
    """Segments go, and one of their living rows comes."""

    namespace: str
    merged: Merged
    record: SegmentRecord | None
    directory: Path
    token: int
    origin: Manifest.Origin = Manifest.Origin.MERGE

    @property
    def rows(self) -> int:  # type: ignore[override]
        """Rows that were written."""
        return 0 if self.record is None else self.record.rows

    def segments(self, manifest: ManifestRecord, listed: Sequence[SegmentRecord]) -> Sequence[SegmentRecord]:
        """Return the others and the new one, which has lost what its sources have lost meanwhile."""
        sources = same_segments(listed, self.merged.sources)
        gone = {source.uid for source in sources}
        kept = [segment for segment in listed if segment.uid not in gone]
        if self.record is None:
            return kept
        deleted = self.merged.deleted_since(self.directory, sources)
        return [*kept, deletions_write(self.directory, self.record, deleted, seq=manifest.seq, token=self.token)]

    def discard(self) -> None:
        """Remove the new segment."""
        discard(self.directory, self.merged.record)


@dataclass(slots=True)
class Indexed(Made):
    """A segment gets an index, or it is noted why not."""

    namespace: str
    before: SegmentRecord
    record: SegmentRecord
    origin: Manifest.Origin = Manifest.Origin.INDEX
    rows: int = 0

    def segments(self, manifest: ManifestRecord, listed: Sequence[SegmentRecord]) -> Sequence[SegmentRecord]:
        """Return them all, one of them with its index."""
        (now,) = same_segments(listed, [self.before])
        indexed = replace(now, index=self.record.index, unindexed=self.record.unindexed, wish=self.record.wish)
        return [indexed if segment.uid == now.uid else segment for segment in listed]


@dataclass(frozen=True, slots=True)
class Making:
    """All that a step's work needs to know: nothing is asked of the database in its thread.

    `queries` (n, d) float32 are real ones to tune with, `number` that of the manifest it was planned from, `wish` the
    newest wish for an index that it heeds, None for none; `threads` says how many it may use as it goes on.
    """

    directory: Path
    planner: Planner
    token: int
    number: int
    queries: np.ndarray | None
    wish: int | None
    threads: Callable[[], int]

    def make(self, step: Step) -> Made:
        """Write the files of a step. Raise CorruptSegment, StorageFull, OSError; then nothing of it stays."""
        return self._merged(step) if isinstance(step, Merging) else self._indexed(step)

    def _merged(self, step: Merging) -> Replaced:
        merged = merge_write(self.directory, step.spec, step.sources, token=self.token)
        record = merged.record
        # Where no source has an index it can wait: while segments come fast, merging them keeps their number down.
        had_index = any(source.index is not None for source in step.sources)
        if record is not None and had_index and self.planner.wants_index(record, step.spec.recall_target):
            try:
                record = self._with_index(step, record, is_new=True)
            except BaseException:
                discard(self.directory, record)
                raise
        return Replaced(step.spec.uid, merged, record, self.directory, self.token)

    def _indexed(self, step: Indexing) -> Indexed:
        return Indexed(step.spec.uid, step.segment, self._with_index(step, step.segment, is_new=False))

    def _with_index(self, step: Step, record: SegmentRecord, *, is_new: bool) -> SegmentRecord:
        return index_write(
            self.directory,
            step.spec,
            record,
            queries=self.queries,
            number=self.number,
            token=self.token,
            wish=record.wish if self.wish is None else self.wish,
            is_new=is_new,
            threads=self.threads,
        )
