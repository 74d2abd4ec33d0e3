"""What a scrape measures at the moment it is made: rows, segments, tails, heads, memory, background processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from django.apps import apps
from django.db import DatabaseError
from django.utils.module_loading import import_string
from prometheus_client.core import GaugeMetricFamily, Metric

from mlvdb_site import __version__
from mlvdb_site.heartbeats import process_states

logger = logging.getLogger(__name__)


class NodeCollector:
    """A prometheus collector over the state of the node; a part that cannot be read now is left out."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        version = GaugeMetricFamily("mlvdb_node_info", "Always 1.", labels=("version",))
        version.add_metric((__version__,), 1)
        yield version
        for part in (_shards, _namespaces, _processes, *_parts_of_apps()):
            try:
                yield from part()
            except DatabaseError as error:
                logger.warning("gauges left out part=%s error=%r", part.__name__, str(error))
        yield from _memory(self._pids)


def _parts_of_apps() -> Iterator[Callable[[], Iterator[Metric]]]:
    """Yield the functions that apps name in their AppConfig as `gauges` (dotted paths)."""
    for config in apps.get_app_configs():
        for path in getattr(config, "gauges", ()):
            yield import_string(path)


def _shards() -> Iterator[Metric]:
    seq = GaugeMetricFamily("mlvdb_log_head_seq", "Last operation in the log.", labels=("shard",))
    covered = GaugeMetricFamily("mlvdb_log_segment_seq", "Last operation that segments stand for.", labels=("shard",))
    tail = GaugeMetricFamily("mlvdb_tail_bytes", "Log bytes after the newest segment.", labels=("shard",))
    damaged = GaugeMetricFamily("mlvdb_shard_damaged", "1 when something of the shard is corrupt.", labels=("shard",))
    for head in apps.get_model("vectors", "ShardHead").objects.all():
        labels = (head.label,)
        seq.add_metric(labels, head.last_seq)
        covered.add_metric(labels, head.manifest_seq)
        tail.add_metric(labels, head.tail_bytes)
        damaged.add_metric(labels, int(head.damage is not None))
    yield from (seq, covered, tail, damaged)


def _namespaces() -> Iterator[Metric]:
    rows = GaugeMetricFamily("mlvdb_vectors", "Vectors in a namespace.", labels=("namespace",))
    segments = GaugeMetricFamily("mlvdb_segments", "Segments of a namespace.", labels=("namespace",))
    size = GaugeMetricFamily("mlvdb_namespace_bytes", "Bytes of a namespace's engines.", labels=("namespace",))
    try:
        queries = import_string("vectors.query_processor.query_processor")()
        details = queries.namespace_details(options=import_string("vectors.query_processor.WHAT_IS_THERE")).value
    except DatabaseError:
        raise
    except Exception as error:  # an engine that is still being opened, or is damaged, has no numbers
        logger.info("namespaces not measured error=%r", str(error))
        return
    for namespace in details:
        labels = (namespace.name,)
        rows.add_metric(labels, namespace.count)
        segments.add_metric(labels, namespace.segments)
        size.add_metric(labels, namespace.size_bytes)
    yield from (rows, segments, size)


def _processes() -> Iterator[Metric]:
    alive = GaugeMetricFamily("mlvdb_process_alive", "1 when a background process is alive.", labels=("process",))
    for state in process_states().values():
        alive.add_metric((state.name,), int(state.alive))
    yield alive


def _memory(pids: Sequence[int]) -> Iterator[Metric]:
    """Memory of the web workers from /proc, where there is one.

    Segments are mapped by every worker: `pss` divides shared pages among them and may be added up, `rss` may not.
    """
    memory = GaugeMetricFamily(
        "mlvdb_process_memory_bytes", "Memory of a web worker (pss may be summed, rss not).", labels=("pid", "kind")
    )
    for pid in pids:
        for kind, size in _memory_of(pid):
            memory.add_metric((str(pid), kind), size)
    yield memory


def _memory_of(pid: int) -> Iterator[tuple[str, int]]:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            yield name.lower(), int(rest.split()[0]) * 1024
