"""The measurements: the engine alone in this process, and a node over HTTP."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from vectors.client import Client
from vectors.client.rows import pack
from vectors.engine import search
from vectors.engine.distances import Query
from vectors.engine.ids import id_of, key_of
from vectors.engine.operations import NamespacePut, Upsert
from vectors.engine.shard import ShardEngine

TOP_K = 10
BATCH_ROWS = 1000

_TIE = 1e-9


class LoadFailed(RuntimeError):
    """Raised when the load generator stopped: the node answered with an error, or not at all."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table; a column that does not apply is None."""

    what: str
    per_s: float
    unit: str
    p50_ms: float | None = None
    p99_ms: float | None = None
    recall: float | None = None


class BenchData:
    """Rows (n, d) and queries (q, d), float32, and what a brute-force search finds: the oracle of the recall."""

    def __init__(self, rows: np.ndarray, queries: np.ndarray) -> None:
        self.rows = rows
        self.queries = queries
        norms = np.linalg.norm(rows, axis=1).astype(np.float64)
        self._norms = np.where(norms == 0, 1.0, norms)
        self._worst = np.array([self._tenth_score(query) for query in queries])

    def recall(self, found: Sequence[Sequence[int | str]]) -> float:
        """Return the share of answered ids, over all queries, whose rows are among the truly nearest (ties count)."""
        good = 0
        for ids, query, worst in zip(found, self.queries, self._worst, strict=True):
            good += int(np.count_nonzero(self._scores(query, np.array(ids, dtype=np.int64)) >= worst - _TIE))
        return good / (len(self.queries) * min(TOP_K, len(self.rows)))

    def _tenth_score(self, query: np.ndarray) -> float:
        fast = (self.rows @ query) / self._norms
        # The product in float32 proposes more rows than are needed; float64 decides.
        proposed = np.argpartition(-fast, min(10 * TOP_K, len(fast)) - 1)[: 10 * TOP_K]
        return float(np.sort(self._scores(query, proposed))[::-1][:TOP_K][-1])

    def _scores(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (self.rows[rows].astype(np.float64) @ query.astype(np.float64)) / self._norms[rows]
        return scores


def bench_data(rows: np.ndarray, *, queries: int, seed: int = 0) -> BenchData:
    """Return rows with queries that are some of them, a little moved."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(rows), size=min(queries, len(rows)), replace=False)
    moved = rows[chosen] + generator.normal(scale=0.1 * rows.std(), size=(len(chosen), rows.shape[1]))
    return BenchData(rows, np.ascontiguousarray(moved, dtype=np.float32))


def engine_measures(data: BenchData, *, seconds: float) -> list[Measure]:
    """Measure the engine: rows applied, exact searches by one thread, and the bare matrix product beside them."""
    engine = ShardEngine()
    dimension = data.rows.shape[1]
    engine.apply(seq=1, term=1, namespace="bench", operation=NamespacePut("bench", dimension, "cosine", 0.99))
    upserts = [
        Upsert([key_of(row) for row in range(start, start + len(part))], part, [b"{}"] * len(part))
        for start in range(0, len(data.rows), BATCH_ROWS)
        for part in [data.rows[start : start + BATCH_ROWS]]
    ]
    began = time.perf_counter()
    for place, upsert in enumerate(upserts):
        engine.apply(seq=place + 2, term=1, namespace="bench", operation=upsert)
    applied_s = time.perf_counter() - began
    view = engine.view("bench")
    assert view is not None

    def find(number: int) -> list[int | str]:
        wanted = search.Wanted(Query.of(data.queries[number], "cosine"), TOP_K)
        return [id_of(found.key) for found in search.search(view, wanted).found]

    recall = data.recall([find(number) for number in range(len(data.queries))])
    return [
        Measure("engine: rows applied", len(data.rows) / applied_s, "rows/s"),
        _timed("engine: exact search, 1 thread", find, len(data.queries), seconds=seconds, recall=recall),
        _timed("numpy: X @ q, 1 thread", lambda number: data.rows @ data.queries[number], len(data.queries),
               seconds=seconds),
    ]  # fmt: skip


def http_measures(data: BenchData, url: str, *, api_key: str | None, seconds: float, connections: int) -> list[Measure]:
    """Measure a node: batches in, exact searches from a process of their own, recall. Leaves nothing behind."""
    namespace = f"bench_{uuid.uuid4().hex[:12]}"
    dimension = data.rows.shape[1]
    with Client(url, api_key, timeout=120.0) as client:
        client.namespace_put(namespace, dimension=dimension, metric="cosine")
        try:
            began = time.perf_counter()
            client.upsert(data.rows, ids=range(len(data.rows)), namespace=namespace, batch_rows=BATCH_ROWS)
            written_s = time.perf_counter() - began
            answers = client.search_batch(data.queries, top_k=TOP_K, exact=True, with_values=False, namespace=namespace)
            recall = data.recall([[hit.id for hit in hits] for hits in answers])
            measures = [Measure("HTTP: ingest, batches of 1,000", len(data.rows) / written_s, "rows/s")]
            for count in (1, connections):
                latencies = _generated(
                    _requests(data.queries, url, namespace, api_key), url, connections=count, seconds=seconds
                )
                what = f"HTTP: exact search, {count} connection{'s' if count > 1 else ''}"
                measures.append(_measure(what, latencies, len(latencies) / seconds, recall=recall))
            return measures
        finally:
            client.namespace_drop(namespace)


def table(measures: Sequence[Measure]) -> list[str]:
    """Return the lines of the table."""
    width = max(len(measure.what) for measure in measures)
    lines = [f"{'':{width}}  {'rate':>18}  {'p50 ms':>8}  {'p99 ms':>8}  {'recall':>6}"]
    for measure in measures:
        rate = f"{measure.per_s:,.0f} {measure.unit}"
        lines.append(
            f"{measure.what:{width}}  {rate:>18}  {_shown(measure.p50_ms, 2):>8}  {_shown(measure.p99_ms, 2):>8}"
            f"  {_shown(measure.recall, 3):>6}"
        )
    return lines


def _requests(queries: np.ndarray, url: str, namespace: str, api_key: str | None) -> list[bytes]:
    host = urlsplit(url).netloc
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    found = []
    for query in queries:
        body = pack({"query": query.tobytes(), "top_k": TOP_K, "exact": True, "with_values": False})
        head = (
            f"POST /search?namespace={namespace} HTTP/1.1\r\nHost: {host}\r\n{key}Accept: application/msgpack\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def _generated(requests: Sequence[bytes], url: str, *, connections: int, seconds: float) -> np.ndarray:
    parts = urlsplit(url)
    plan = {
        "host": parts.hostname,
        "port": parts.port or 80,
        "requests": [base64.b64encode(request).decode() for request in requests],
        "connections": connections,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "vectors.bench.generator"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )
    if done.returncode:
        raise LoadFailed(f"the load generator failed: {done.stderr.strip().splitlines()[-1]}")
    return np.array(json.loads(done.stdout))


def _timed(
    what: str, call: Callable[[int], object], count: int, *, seconds: float, recall: float | None = None
) -> Measure:
    latencies = []
    began = now = time.perf_counter()
    turn = 0
    while now - began < seconds:
        call(turn % count)
        after = time.perf_counter()
        latencies.append(after - now)
        now = after
        turn += 1
    return _measure(what, np.array(latencies), turn / (now - began), recall=recall)


def _measure(what: str, latencies: np.ndarray, per_s: float, *, recall: float | None = None) -> Measure:
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Measure(what, per_s, "searches/s", float(p50), float(p99), recall)


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
