"""What a merge is to do next with the segments of a namespace: merge some, make an index, or nothing.

Segments are sorted by size into tiers that grow by MLVDB_SEGMENT_TIER, the smallest of 4 MiB. A tier that has as many
segments as that is full and becomes one segment, with all that are smaller. So of n bytes of rows there are never more
than (MLVDB_SEGMENT_TIER - 1) × (log n + 2) segments, the logarithm to that base of n in units of 4 MiB, beside those
beyond MLVDB_SEGMENT_MAX_BYTES, of which there are at most n / MLVDB_SEGMENT_MAX_BYTES (`Tiers.bound`), beside those
that a step is about, and beside up to MLVDB_SEGMENT_TIER more while indexes are made. A row is written
again once for each tier it rises to, so log n + 1 times at most; before it leaves the smallest tier, 4 MiB at most are
written again for each MLVDB_SEGMENT_TIER - 1 checkpoints. Merging at rest leaves one segment with four fifths of the
rows or more, and so writes a row five times at most while a namespace grows, on top of its tiers.

Pure: of records and numbers alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vectors.engine import index
from vectors.engine.namespace import NamespaceSpec
from vectors.store.manifests import ManifestRecord, NamespaceRecord
from vectors.store.segment_files import SegmentRecord

SMALLEST_TIER_BYTES = 4 * 1024 * 1024
_DEAD_SHARE = 0.3
_LARGEST_SHARE = 0.8
_MOST_WAITING = 2
"""Times as many segments as fill a tier wait for indexes at most."""
_ROW_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Tiers:
    """How sizes are judged: `factor` segments fill a tier, and one of more than `max_bytes` is merged no more."""

    factor: int
    max_bytes: int

    def tier(self, size: int) -> int:
        """Return the tier of a segment with that many bytes of living rows, from 0 up."""
        if size <= SMALLEST_TIER_BYTES:
            return 0
        return math.floor(math.log(size / SMALLEST_TIER_BYTES, self.factor)) + 1

    def to_merge(self, segments: Sequence[SegmentRecord]) -> list[SegmentRecord]:
        """Return the segments to make one of now: full tiers from the smallest up, and those with many dead rows."""
        small = [segment for segment in segments if alive_bytes(segment) <= self.max_bytes]
        merging = [segment for segment in small if segment.deleted_rows > _DEAD_SHARE * segment.rows]
        while True:
            rest = [segment for segment in small if segment not in merging]
            counts = Counter(self.tier(alive_bytes(segment)) for segment in rest)
            size = sum(map(alive_bytes, merging))
            if size:
                # What is being merged already counts as the one segment it will be.
                counts[self.tier(size)] += 1
            full = min((tier for tier, count in counts.items() if count >= self.factor), default=None)
            if full is None:
                return merging
            merging.extend(segment for segment in rest if self.tier(alive_bytes(segment)) <= full)

    def at_rest(self, segments: Sequence[SegmentRecord]) -> list[SegmentRecord]:
        """Return the segments to make one of when nothing else is to be done; none when one has nearly all rows."""
        chosen: list[SegmentRecord] = []
        size = 0
        for segment in sorted(segments, key=alive_bytes):
            size += alive_bytes(segment)
            if size > self.max_bytes:
                break
            chosen.append(segment)
        rows = sum(segment.alive for segment in chosen)
        if len(chosen) < 2 or max(segment.alive for segment in chosen) >= _LARGEST_SHARE * rows:
            return []
        return chosen

    def bound(self, size: int) -> int:
        """Return how many segments of `size` bytes of rows there are at most when no tier is full."""
        return (self.factor - 1) * (self.tier(min(size, self.max_bytes)) + 1) + size // self.max_bytes


def alive_bytes(segment: SegmentRecord) -> int:
    """Return about how many bytes the living rows of a segment take."""
    return segment.alive * (4 * segment.dimension + _ROW_OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class Merging:
    """A step: make one segment of `sources`, with an index where it is worth one."""

    spec: NamespaceSpec
    sources: tuple[SegmentRecord, ...]
    at_rest: bool = False

    @property
    def segments(self) -> Sequence[SegmentRecord]:
        """The segments it is about."""
        return self.sources


@dataclass(frozen=True, slots=True)
class Indexing:
    """A step: make an index for a segment that is there."""

    spec: NamespaceSpec
    segment: SegmentRecord

    @property
    def segments(self) -> Sequence[SegmentRecord]:
        """The segments it is about."""
        return (self.segment,)


Step = Merging | Indexing


@dataclass(frozen=True, slots=True)
class Planner:
    """What is to be done next under a manifest.

    `targets` are the recall targets of the living namespaces by uid: others go with the next checkpoint and are left
    alone. `anew` are segments, by uid, whose index is to be made anew. `indexing` is off where no index can be made.
    """

    tiers: Tiers
    min_rows: int
    targets: Mapping[str, float]
    anew: Collection[str] = ()
    indexing: bool = True

    def next_step(self, manifest: ManifestRecord, *, rested: bool, busy: Collection[str] = frozenset()) -> Step | None:
        """Return the next step, None when there is nothing to do; merging at rest only where the log has `rested`.

        Merging comes before indexing, so that nothing is indexed that is about to go, and small steps before large. But
        where indexed segments and others would become one with an index of all, the others get theirs first: their rows
        would be searched exactly until that is made.
        `busy` segments, by uid, are as good as not there: another step is about them.
        """
        spaces = [
            NamespaceRecord(
                replace(record.spec, recall_target=self.targets[uid]),
                [segment for segment in record.segments if segment.uid not in busy],
            )
            for uid, record in manifest.namespaces.items()
            if uid in self.targets
        ]
        merges = [(space.spec, self._to_merge(space)) for space in spaces]
        step = _smallest(merges, at_rest=False)
        if step is not None:
            return step
        wanting = [
            Indexing(space.spec, segment)
            for space in spaces
            for segment in space.segments
            if self.wants_index(segment, space.spec.recall_target)
        ]
        if wanting:
            return max(wanting, key=lambda step: step.segment.alive)
        if not rested:
            return None
        return _smallest([(space.spec, self.tiers.at_rest(space.segments)) for space in spaces], at_rest=True)

    def _to_merge(self, space: NamespaceRecord) -> list[SegmentRecord]:
        chosen = self.tiers.to_merge(space.segments)
        if not any(segment.index is not None for segment in chosen) or len(chosen) >= _MOST_WAITING * self.tiers.factor:
            return chosen
        target = space.spec.recall_target
        waiting = {segment.uid for segment in chosen if segment.index is None and self.wants_index(segment, target)}
        return self.tiers.to_merge([segment for segment in space.segments if segment.uid not in waiting])

    def wants_index(self, segment: SegmentRecord, target: float) -> bool:
        """Whether an index is to be made for a segment: it has none, or one tuned for less than the target."""
        if not self.indexing or target >= 1.0:
            return False
        if not index.worthwhile(segment.alive, segment.dimension, min_rows=self.min_rows):
            return False
        if segment.uid in self.anew:
            return True
        if segment.index is not None:
            return float(segment.index.summary.get("recall_target", 0.0)) < target
        return segment.unindexed is None or segment.unindexed["recall_target"] > target


def _smallest(merges: Sequence[tuple[NamespaceSpec, Sequence[SegmentRecord]]], *, at_rest: bool) -> Merging | None:
    possible = [Merging(spec, tuple(sources), at_rest) for spec, sources in merges if sources]
    return min(possible, key=lambda step: sum(map(alive_bytes, step.sources)), default=None)
