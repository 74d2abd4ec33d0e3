"""The node's part of `index.py`: everything over HTTP, from a load of another process."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np

from benchmarks.index_engine import Run
from benchmarks.larger_sets import flags_of, grown, metadata_of
from benchmarks.node import Node
from benchmarks.single_node import BATCH, batches, elsewhere
from benchmarks.wire import Load, Wire, json_request, prepared, run
from vectors.bench.load import generated

NAMESPACE = "index"
MIN_ROWS = 10_000
WRITES_PER_S = 5

_REST_S = 8.0
_KEPT_S = 15.0
_LOOK_EVERY_S = 0.1
_LONGEST_WAIT_S = 900.0
_RESTING_SHARE = 0.05


class Served:
    """A node with a namespace of its own for the rows of a measurement."""

    def __init__(self, node: Node, queries: np.ndarray) -> None:
        self.node, self.port = node, node.port
        self._queries = queries
        self._wire, self._asked = Wire(node.port), time.perf_counter()

    def ask(self, method: str, path: str, document: object = None) -> Any:
        """Send one request and return the JSON of its answer."""
        request = prepared(method, path) if document is None else json_request(method, path, document)
        status, body = self._on_wire(request)
        if status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {status} {body[:500]!r}")
        return json.loads(body) if body else None

    def info(self, namespace: str = NAMESPACE) -> dict[str, Any]:
        """Return what the node says of the namespace."""
        listed = self.ask("GET", "/namespaces?detail=1")["namespaces"]
        return next(item for item in listed if item["name"] == namespace)

    def indexed(self, rows: int, namespace: str = NAMESPACE) -> float:
        """Wait until all rows are indexed; return when that was, by `time.perf_counter`.

        They are when `indexed_rows` of `GET /namespaces?detail=1` says so, but for fewer than MLVDB_INDEX_MIN_ROWS:
        a segment so small has no index on purpose.
        """
        deadline = time.perf_counter() + _LONGEST_WAIT_S
        while True:
            info = self.info(namespace)
            if info["count"] >= rows and info["count"] - info["indexed_rows"] < MIN_ROWS:
                return time.perf_counter()
            if time.perf_counter() > deadline:
                raise RuntimeError(f"not indexed after {_LONGEST_WAIT_S:g} s: {info}")
            time.sleep(_LOOK_EVERY_S)

    def rested(self, namespace: str = NAMESPACE) -> dict[str, Any]:
        """Wait until nothing changes and no process of the node works any more; return what it says then."""
        since, seen, used = time.perf_counter(), self.info(namespace), self.node.cpu_s()
        deadline = since + _LONGEST_WAIT_S
        while (now := time.perf_counter()) - since < _REST_S:
            if now > deadline:
                raise RuntimeError(f"the node does not come to rest: {seen}")
            time.sleep(1.0)
            info, spent = self.info(namespace), self.node.cpu_s()
            took = time.perf_counter() - now
            if info != seen or spent - used > max(_RESTING_SHARE * took, 0.1):
                since = time.perf_counter()
            seen, used = info, spent
        return seen

    def searches(self, **options: Any) -> list[bytes]:
        """Return a search request for each query."""
        return [
            json_request("POST", f"/search?namespace={NAMESPACE}", _search(query, **options)) for query in self._queries
        ]

    def batched(self, size: int = 100) -> list[bytes]:
        """Return requests with `size` searches each."""
        bodies = [_search(query) for query in self._queries]
        return [
            json_request(
                "POST",
                f"/search/batch?namespace={NAMESPACE}",
                {"searches": [bodies[(start + place) % len(bodies)] for place in range(size)]},
            )
            for start in range(0, len(bodies), size)
        ]

    def recall(self, **options: Any) -> float:
        """Return the share of the answers of `exact=true` that searches find; equal scores count."""
        good = wanted = 0
        for request, exact in zip(self.searches(**options), self.searches(exact=True, **options), strict=True):
            found, truth = self._scores(request), self._scores(exact)
            good += sum(score >= truth[-1] for score in found) if truth else 0
            wanted += len(truth)
        return good / max(1, wanted)

    def load(self, requests: Sequence[bytes], *, clients: int, seconds: float) -> Load:
        """Load the node from another process."""
        latencies = np.sort(generated(requests, self.node.url, connections=clients, seconds=seconds))
        p50, p99 = np.percentile(latencies, [50, 99]) * 1000
        return Load(len(latencies) / seconds, float(p50), float(p99))

    def _on_wire(self, request: bytes) -> tuple[int, bytes]:
        # A server may close a connection that was idle for long.
        if time.perf_counter() - self._asked > _KEPT_S:
            self._wire = Wire(self.port)
        answer = self._wire.ask(request)
        self._asked = time.perf_counter()
        return answer

    def _scores(self, request: bytes) -> list[float]:
        status, body = self._on_wire(request)
        if status != 200:
            raise RuntimeError(f"{status} {body[:500]!r}")
        return [hit["score"] for hit in json.loads(body)]


def ingest(bench: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Load rows, as JSON and as msgpack, until all of them are indexed."""
    for kind, target in (("JSON", 10_000), ("msgpack", 18_000)):
        written, whole, segments = [], [], 0
        bodies = upserts(rows, packed=kind == "msgpack")
        for _ in range(bench.repeats):
            with Node() as node:
                node.start()
                served = Served(node, queries)
                began = time.perf_counter()
                elsewhere(run, node.port, bodies, clients=4)
                written.append(time.perf_counter() - began)
                whole.append(served.indexed(len(rows)) - began)
                segments = served.rested()["segments"]
        took, until = statistics.median(written), statistics.median(whole)
        bench.table.add(
            f"ingest over HTTP until indexed, {kind}, batches of {BATCH}, 4 clients",
            len(rows),
            f"{len(rows) / until:,.0f} rows/s ({until:.1f} s; acknowledged after {took:.1f} s; "
            f"at rest {segments} segment{'s' if segments != 1 else ''})",
            f"≥ {target:,} rows/s",
        )


def http(bench: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Search over HTTP: 8 clients and one, filters, batches."""
    with loaded(rows, queries) as served:
        reached = served.recall()
        plain = served.searches()
        served.load(plain, clients=8, seconds=min(2.0, bench.seconds))
        load = _median(bench, lambda: served.load(plain, clients=8, seconds=bench.seconds))
        _add(bench, rows, "8 clients", load, reached, "≥ 1,600/s, recall ≥ 0.99")
        load = _median(bench, lambda: served.load(plain, clients=1, seconds=bench.seconds))
        _add(bench, rows, "1 client", load, reached, "p50 ≤ 1.2 ms, p99 ≤ 4 ms")
        for name, share, target in (
            ("f50", "50 %", "≥ 1,200/s, recall ≥ 0.99"),
            ("f10", "10 %", "≥ 1,200/s, recall ≥ 0.99"),
            ("f1", "1 %", "≥ 1,200/s, recall ≥ 0.99"),
            ("f01", "0.1 %", ""),
        ):
            reached = served.recall(filter={name: 1})
            asked = served.searches(filter={name: 1})
            load = _median(bench, lambda asked=asked: served.load(asked, clients=8, seconds=bench.seconds))
            _add(bench, rows, f"8 clients, filter of {share}", load, reached, target)
        for clients in (8, 1):
            _add_batches(bench, rows, served, clients)


def beside(bench: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Search while 5,000 rows a second are written and segments merge, beside the same on the idle node."""
    seconds = 6 * bench.seconds
    fresh = grown(rows, len(rows) + int(seconds + 5) * WRITES_PER_S * BATCH)[len(rows) :]
    bodies = upserts(fresh, packed=True, first=len(rows))
    for clients in (1, 8):
        with loaded(rows, queries) as served:
            plain = served.searches()
            served.load(plain, clients=clients, seconds=min(2.0, bench.seconds))
            idle = served.load(plain, clients=clients, seconds=seconds)
            before = served.info()["count"]
            with _Writer(served, bodies, seconds=seconds + 2.0) as writer:
                time.sleep(1.0)
                busy = served.load(plain, clients=clients, seconds=seconds)
            rate = (served.info()["count"] - before) / (seconds + 2.0)
        bench.table.add(
            f"p99 of searches of {clients} client{'s' if clients > 1 else ''} while 5,000 rows/s are written (msgpack)",
            len(rows),
            f"{busy.p99_ms:.2f} ms, idle {idle.p99_ms:.2f} ms: {busy.p99_ms / idle.p99_ms:.1f} × "
            f"(p50 {busy.p50_ms:.2f}, idle {idle.p50_ms:.2f} ms; {busy.per_s:,.0f}/s, idle {idle.per_s:,.0f}/s; "
            f"{rate:,.0f} rows/s in {seconds:.0f} s, {min(writer.segments)} to {max(writer.segments)} segments)",
            "≤ 3 ×",
        )


def upserts(rows: np.ndarray, *, packed: bool, first: int = 0) -> list[bytes]:
    """Return the requests that upsert rows, with metadata of some small fields, as msgpack or JSON."""
    flags = flags_of(len(rows))
    path = f"/vectors/batch?namespace={NAMESPACE}"
    requests = []
    for batch in batches(len(rows)):
        listed = [
            {
                "id": f"row-{first + number}",
                "values": rows[number].tobytes() if packed else rows[number].tolist(),
                "metadata": metadata_of(number, flags),
            }
            for number in batch
        ]
        if packed:
            body = msgpack.packb({"vectors": listed})
            requests.append(prepared("PUT", path, body, content_type="application/msgpack"))
        else:
            requests.append(json_request("PUT", path, {"vectors": listed}))
    return requests


@contextmanager
def loaded(rows: np.ndarray, queries: np.ndarray) -> Iterator[Served]:
    """Run a node with rows, all of them indexed, at rest."""
    with Node() as node:
        node.start()
        served = Served(node, queries)
        elsewhere(run, node.port, upserts(rows, packed=True), clients=4)
        served.indexed(len(rows))
        served.rested()
        yield served


class _Writer:
    """Writes at an even rate from another process while a block runs; `segments` are the numbers seen meanwhile."""

    def __init__(self, served: Served, bodies: Sequence[bytes], *, seconds: float) -> None:
        self.segments: list[int] = []
        self._port, self._bodies, self._seconds = served.port, bodies, seconds
        self._watched = Served(served.node, np.empty((0, 0)))
        self._failed: Exception | None = None
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._watch)]

    def __enter__(self) -> _Writer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for thread in self._threads:
            thread.join()
        if self._failed is not None:
            raise self._failed

    def _write(self) -> None:
        try:
            elsewhere(_paced, self._port, self._bodies, per_s=WRITES_PER_S, seconds=self._seconds)
        except Exception as error:
            self._failed = error
        finally:
            self._over.set()

    def _watch(self) -> None:
        while True:
            self.segments.append(self._watched.info()["segments"])
            if self._over.wait(1.0):
                return


def _paced(port: int, requests: Sequence[bytes], *, per_s: float, seconds: float) -> Load:
    wire = Wire(port)
    began = time.perf_counter()
    sent = 0
    for number, request in enumerate(requests):
        due = began + number / per_s
        if due > began + seconds:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        status, body = wire.ask(request)
        if status != 200:
            raise RuntimeError(f"{status} {body[:300]!r}")
        sent += 1
    return Load(sent / (time.perf_counter() - began), 0.0, 0.0)


def _search(query: np.ndarray, **options: Any) -> dict[str, Any]:
    return {"query": query.tolist(), "top_k": 10, "with_values": False, **options}


def _median(bench: Run, once: Callable[[], Load]) -> Load:
    loads = [once() for _ in range(bench.repeats)]
    return Load(
        statistics.median(load.per_s for load in loads),
        statistics.median(load.p50_ms for load in loads),
        statistics.median(load.p99_ms for load in loads),
    )


def _add_batches(bench: Run, rows: np.ndarray, served: Served, clients: int) -> None:
    requests = served.batched()
    load = _median(bench, lambda: served.load(requests, clients=clients, seconds=bench.seconds))
    bench.table.add(
        f"batches of 100 searches over HTTP, JSON, {clients} client{'s' if clients > 1 else ''}",
        len(rows),
        f"{100 * load.per_s:,.0f} queries/s (a batch p50 {load.p50_ms:.0f} ms, p99 {load.p99_ms:.0f} ms)",
        "≥ 3,500 queries/s" if clients == 8 else "",
    )


def _add(bench: Run, rows: np.ndarray, what: str, load: Load, recall: float, target: str) -> None:
    bench.table.add(f"search over HTTP, JSON, top 10, {what}", len(rows), f"{load}, recall {recall:.4f}", target)
