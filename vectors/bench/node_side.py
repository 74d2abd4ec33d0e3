"""A node over HTTP: rows in, the wait for its indexes, searches at several recalls from a process of their own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from vectors.bench.data import TOP_K, BenchData
from vectors.bench.load import generated, search_requests
from vectors.bench.measures import RECALLS, Measure, searches
from vectors.client import Client
from vectors.engine import index

BATCH_ROWS = 1000
LONGEST_WAIT_S = 600.0
QUIET_S = 8.0
"""A node merges what is small some seconds after the last write: so long nothing must have changed."""

_LOOK_EVERY_S = 0.25
_NO_INDEX_AFTER_S = 60.0


def http_measures(
    data: BenchData, url: str, *, api_key: str | None, seconds: float, connections: int, min_rows: int
) -> list[Measure]:
    """Measure a node: batches in, searches, recall. Leaves nothing behind.

    Where the node, with `min_rows` as its MLVDB_INDEX_MIN_ROWS, makes an index, that is waited for; then searches ask
    for each of RECALLS as well.
    """
    namespace = f"bench_{uuid.uuid4().hex[:12]}"
    with Client(url, api_key, timeout=120.0) as client:
        client.namespace_put(namespace, dimension=data.rows.shape[1], metric="cosine")
        try:
            began = time.perf_counter()
            client.upsert(data.rows, ids=range(len(data.rows)), namespace=namespace, batch_rows=BATCH_ROWS)
            measures = [_rows_per_s("HTTP: ingest, batches of 1,000", data, time.perf_counter() - began)]
            indexed_at = None
            if index.worthwhile(len(data.rows), data.rows.shape[1], min_rows=min_rows):
                indexed_at = wait_indexed(lambda: _details(client, namespace), min_rows=min_rows, quiet_s=QUIET_S)
            if indexed_at is not None:
                measures.append(_rows_per_s("HTTP: ingest until indexed", data, indexed_at - began))

            def point(recall: float | None, count: int, *, curve: bool) -> Measure:
                options: dict[str, Any] = {"exact": True} if recall is None else {"recall": recall}
                answers = client.search_batch(
                    data.queries, top_k=TOP_K, with_values=False, namespace=namespace, **options
                )
                requests = search_requests(
                    data.queries, url, namespace=namespace, api_key=api_key, options=options
                )  # fmt: skip
                what = "exact search" if recall is None else f"search at recall {recall:g}"
                side_by_side = f"{count} connection{'s' if count > 1 else ''}"
                return searches(
                    f"HTTP: {what}, {side_by_side}",
                    generated(requests, url, connections=count, seconds=seconds),
                    seconds=seconds,
                    recall=data.recall([[hit.id for hit in hits] for hits in answers]),
                    curve=f"HTTP, {side_by_side}" if curve else "",
                )

            measures.append(point(None, 1, curve=connections == 1))
            if connections > 1:
                measures.append(point(None, connections, curve=True))
            if indexed_at is not None:
                measures.extend(point(recall, connections, curve=True) for recall in RECALLS)
            return measures
        finally:
            client.namespace_drop(namespace)


def wait_indexed(details: Callable[[], dict[str, Any]], *, min_rows: int, quiet_s: float) -> float | None:
    """Wait until a namespace is indexed and at rest; return when it was indexed, by `time.perf_counter`.

    `details` returns what `GET /namespaces?detail=1` says of it. It is indexed when fewer than `min_rows` rows are in
    the tail and in segments without an index: so few are searched exactly. None when that does not come to be.
    """
    deadline = time.perf_counter() + LONGEST_WAIT_S
    indexed_at: float | None = None
    changed_at, seen = time.perf_counter(), None
    while (now := time.perf_counter()) < deadline:
        info = details()
        state = tuple(info.get(name) for name in ("count", "segments", "indexed_rows", "tail_rows"))
        if state != seen:
            changed_at, seen = now, state
        if info["count"] - info.get("indexed_rows", 0) >= min_rows:
            indexed_at = None
        elif indexed_at is None:
            indexed_at = now
        if now - changed_at >= quiet_s and indexed_at is not None:
            return indexed_at
        if not info.get("indexed_rows") and now - changed_at >= _NO_INDEX_AFTER_S:
            # There is no faiss there, or no setting reaches the recall: it searches exactly.
            return None
        time.sleep(_LOOK_EVERY_S)
    return indexed_at


def _details(client: Client, namespace: str) -> dict[str, Any]:
    return next(info for info in client.namespace_details() if info["name"] == namespace)


def _rows_per_s(what: str, data: BenchData, took_s: float) -> Measure:
    return Measure(what, len(data.rows) / took_s, "rows/s")
