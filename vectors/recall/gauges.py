"""What a scrape of /metrics says of recall; named in the AppConfig as `gauges`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from vectors.recall.measures import measures_alive

_MOST = 1000
"""Namespaces that get labels: the worst ones, where there are more."""


def recall_gauges() -> Iterator[Metric]:
    """Yield the gauges of the namespaces whose recall was measured."""
    labels = ("namespace", "shard")
    measured = GaugeMetricFamily(
        "mlvdb_recall_measured", "Share of true neighbours found, last measured.", labels=labels
    )
    target = GaugeMetricFamily("mlvdb_recall_target", "Share of true neighbours promised.", labels=labels)
    short = GaugeMetricFamily(
        "mlvdb_recall_short", "1 when the promise is missed by more than chance explains.", labels=labels
    )
    queries = GaugeMetricFamily("mlvdb_recall_queries", "Queries it was last measured with.", labels=labels)
    seconds = GaugeMetricFamily(
        "mlvdb_recall_measured_timestamp_seconds", "When it was last measured (Unix time).", labels=labels
    )
    for measure in measures_alive(most=_MOST):
        values = (measure.namespace.name, measure.namespace.shard.label)
        measured.add_metric(values, measure.recall)
        target.add_metric(values, measure.namespace.recall_target)
        short.add_metric(values, int(measure.is_short))
        queries.add_metric(values, measure.queries)
        seconds.add_metric(values, measure.measured_at.timestamp())
    yield from (measured, target, short, queries, seconds)
