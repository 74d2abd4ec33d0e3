"""What a scrape of /metrics says of segments, indexes and merges; named in the AppConfig as `gauges`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vectors.engine import index
from vectors.models import Manifest, ShardHead


def storage_gauges() -> Iterator[Metric]:
    """Yield the segments, rows written and index faults of each shard copy."""
    segments = GaugeMetricFamily("mlvdb_shard_segments", "Segments of a shard copy.", labels=("shard",))
    largest = GaugeMetricFamily(
        "mlvdb_shard_segments_most", "Segments of the namespace that has the most of them.", labels=("shard",)
    )
    indexed = GaugeMetricFamily("mlvdb_segments_indexed", "Segments with an index.", labels=("shard",))
    flushed = CounterMetricFamily("mlvdb_rows_flushed", "Rows that checkpoints wrote to segments.", labels=("shard",))
    merged = CounterMetricFamily("mlvdb_rows_merged", "Rows that merges wrote to segments again.", labels=("shard",))
    faults = GaugeMetricFamily(
        "mlvdb_index_faults", "Indexes that cannot be used: their segments answer exactly.", labels=("shard",)
    )
    library = GaugeMetricFamily("mlvdb_index_available", "1 when indexes can be made and used (faiss is there).")
    library.add_metric((), int(index.available()))
    for head in ShardHead.objects.all():
        labels = (head.label,)
        rows = Manifest.objects.filter(shard=head, number=head.manifest).values_list("document", flat=True)
        spaces = [space["segments"] for document in rows for space in document["namespaces"].values()]
        segments.add_metric(labels, sum(map(len, spaces)))
        largest.add_metric(labels, max(map(len, spaces), default=0))
        indexed.add_metric(labels, sum(item.get("index") is not None for space in spaces for item in space))
        flushed.add_metric(labels, head.rows_flushed)
        merged.add_metric(labels, head.rows_merged)
        faults.add_metric(labels, len(head.index_faults))
    yield from (segments, largest, indexed, flushed, merged, faults, library)
