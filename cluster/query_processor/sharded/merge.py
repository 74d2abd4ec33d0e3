"""Answers of shards become one, exactly as one node with all their rows would have answered. Pure.

Rows are compared as the engine compares them: scores are float64 and depend on the row alone, equal ones are ordered by
key. So it does not matter which shard a row is in, nor how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vectors.engine.distances import lower_is_better
from vectors.query_processor import Hit, NamespaceInfo, SearchRequest


def merged_hits(lists: Sequence[Sequence[Hit]], request: SearchRequest, metric: str) -> list[Hit]:
    """Return what a search asked for, of the best `top_k + offset` rows of each shard."""
    end = request.offset + request.top_k
    if len(lists) == 1:
        return list(lists[0][request.offset : end])
    descending = 1.0 if lower_is_better(request.metric or metric) else -1.0  # type: ignore[arg-type]
    hits = [hit for hits in lists for hit in hits]
    hits.sort(key=lambda hit: (hit.score * descending, hit.key))
    return hits[request.offset : end]


def merged_infos(infos: Iterable[NamespaceInfo], empty: NamespaceInfo) -> NamespaceInfo:
    """Return what the shards have of one namespace, added up; attributes are those of `empty`."""
    count = segments = tail_rows = size_bytes = indexed_rows = 0
    found = 0.0
    moments = []
    for info in infos:
        count += info.count
        segments += info.segments
        tail_rows += info.tail_rows
        size_bytes += info.size_bytes
        indexed_rows += info.indexed_rows
        # A shard without an index finds them all.
        found += info.count * (1.0 if info.measured_recall is None else info.measured_recall)
        if info.measured_recall is not None:
            moments.append(info.recall_measured_at)
    return NamespaceInfo(
        empty.name,
        empty.uid,
        empty.dimension,
        empty.metric,
        empty.recall_target,
        empty.picture,
        count,
        segments,
        tail_rows,
        size_bytes,
        found / count if moments and count else None,
        indexed_rows,
        # The age of the oldest part; None while one is only known from the tuning of its index.
        min((moment for moment in moments if moment is not None), default=None) if None not in moments else None,
    )
