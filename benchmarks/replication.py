"""A primary and its replicas, measured: write throughput, latency of the levels, replication delay, full sync.

See README.md beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.node import Node
from benchmarks.single_node import Table, batches, elsewhere, msgpack_batches, processor, rows_of
from benchmarks.wire import Load, Wire, json_request, prepared, run

BATCH = 1000
LONGEST_WAIT_S = 300.0
LEVELS = ("one", "quorum", "all")


def ask(node: Node, method: str, path: str, document: object = None, *, expect: int = 200) -> Any:
    """Send one request on a connection of its own and return the JSON of the answer."""
    request = prepared(method, path) if document is None else json_request(method, path, document)
    status, body = Wire(node.port).ask(request)
    if status != expect:
        raise RuntimeError(f"{method} {path}: {status} {body[:500]!r}")
    return json.loads(body)


def until(condition: Callable[[], bool], what: str, *, every_s: float = 0.005) -> float:
    """Wait for a condition, looking every now and then; return the seconds it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > LONGEST_WAIT_S:
            raise RuntimeError(f"waited {LONGEST_WAIT_S:g} s for {what}")
        time.sleep(every_s)
    return time.perf_counter() - began


def position(node: Node) -> tuple[int, int]:
    """Return (term, seq) of a node's shard copy."""
    status, body = Wire(node.port).ask(prepared("GET", "/cluster/node/status", node="7" * 32))
    if status != 200:
        raise RuntimeError(f"{status} {body[:500]!r}")
    [shard] = json.loads(body)["shards"]
    return shard["term"], shard["seq"]


def add(primary: Node, replica: Node, name: str) -> None:
    """Register a replica and wait until it is a member."""
    ask(primary, "POST", f"/replication/replicas?replica_id={name}&replica_url={replica.url}")
    until(lambda: is_following(primary, name), f"{name} to be a member")


def is_following(primary: Node, name: str) -> bool:
    """Return whether a replica follows and counts."""
    replica = ask(primary, "GET", "/replication/info")["replicas"][name]
    return replica["state"] == "following" and replica["member"]


def caught_up(primary: Node, replicas: Sequence[Node]) -> float:
    """Wait until all replicas have the head; return the seconds it took."""
    head = position(primary)
    return until(lambda: all(position(replica) >= head for replica in replicas), "the replicas")


@contextlib.contextmanager
def started(*, primary: bool = False) -> Iterator[Node]:
    """Run a node within the context."""
    with Node(**({"MLVDB_ENABLE_REPLICATION": "primary"} if primary else {})) as node:
        node.start()
        yield node


# -- write throughput ----------------------------------------------------------------------------------------------


def throughput(table: Table, primary: Node, replicas: Sequence[Node], rows: np.ndarray, *, repeats: int) -> None:
    """Measure asynchronous ingest with 0, 1, … replicas, and tell the replicas' own processor time apart.

    All sizes of the cluster run in turn on the same nodes, each `repeats` times; the medians are compared. The time
    that the replicas' processes spend on the shared cores is no cost of shipping on a real cluster, where they have
    their own: the last figure takes it out of the elapsed time.
    """
    cores = os.cpu_count() or 1
    bare: tuple[float, float] | None = None
    for many in range(len(replicas) + 1):
        if many:
            add(primary, replicas[many - 1], f"replica_{many}")
        runs = [_ingest(primary, replicas[:many], rows, f"async_{many}_{turn}") for turn in range(repeats)]
        seconds, own, others, lag = (float(np.median(column)) for column in zip(*runs, strict=True))
        aside = seconds - others / cores
        if bare is None:
            bare = (seconds, aside)
        table.add(
            f"ingest, msgpack, batches of {BATCH}, 4 clients, level one, {many} replicas",
            len(rows),
            f"{len(rows) / seconds:,.0f} rows/s = {bare[0] / seconds:.0%}; replicas' CPU aside "
            f"{len(rows) / aside:,.0f} rows/s = {bare[1] / aside:.0%}",
            "≥ 90 %" if many else "",
        )
        table.add(
            f"  processor time of it, {many} replicas",
            len(rows),
            f"primary {own:.2f} s, replicas {others:.2f} s of {seconds:.2f} s × {cores}; caught up {lag:.2f} s after",
        )


def _ingest(
    primary: Node, replicas: Sequence[Node], rows: np.ndarray, namespace: str
) -> tuple[float, float, float, float]:
    """Load rows into a new namespace; return elapsed, the CPU of primary and replicas, the lag after it."""
    requests = msgpack_batches(rows, namespace)
    own, others = primary.cpu_s(), sum(replica.cpu_s() for replica in replicas)
    load = elsewhere(run, primary.port, requests, clients=4)
    own, others = primary.cpu_s() - own, sum(replica.cpu_s() for replica in replicas) - others
    lag = caught_up(primary, replicas)
    Wire(primary.port).ask(prepared("DELETE", f"/namespaces/{namespace}"))
    caught_up(primary, replicas)
    return len(batches(len(rows))) / load.per_s, own, others, lag


# -- latency of the levels -----------------------------------------------------------------------------------------


def levels(table: Table, primary: Node, replicas: Sequence[Node], queries: np.ndarray, *, seconds: float) -> None:
    """Measure single durable inserts at each level, from 1 client and from 4: a node lets only so many wait."""
    for clients in (1, 4):
        bare: Load | None = None
        for level in LEVELS:
            requests = [
                json_request("POST", f"/vectors?namespace=levels&consistency={level}", {"values": query.tolist()})
                for query in queries[:256]
            ]
            load = elsewhere(run, primary.port, requests, clients=clients, seconds=seconds, expect=201)
            bare = bare or load
            table.add(
                f"single inserts at level {level}, {clients} clients, {len(replicas)} replicas",
                1,
                f"{load}, p50 {load.p50_ms / bare.p50_ms:.1f} × of one",
            )
            caught_up(primary, replicas)


# -- replication delay ---------------------------------------------------------------------------------------------


def delays(primary: Node, replica: Node, query: np.ndarray, *, samples: int, pause_s: float) -> list[float]:
    """Return the seconds from the answer of a write on the primary to the first read on the replica that sees it."""
    rng = random.Random(0)
    writer, reader = Wire(primary.port), Wire(replica.port)
    seen = []
    for number in range(samples):
        row_id = f"delay-{pause_s:g}-{number}"
        write = json_request("POST", "/vectors?namespace=delay", {"id": row_id, "values": query.tolist()})
        read = prepared("GET", f"/vectors/{row_id}?namespace=delay")
        status, body = writer.ask(write)
        answered = time.perf_counter()
        if status != 201:
            raise RuntimeError(f"{status} {body[:300]!r}")
        while reader.ask(read)[0] != 200:
            if time.perf_counter() - answered > LONGEST_WAIT_S:
                raise RuntimeError(f"{row_id} is not visible on the replica")
            time.sleep(0.001)
        seen.append(time.perf_counter() - answered)
        time.sleep(pause_s * rng.uniform(0.5, 1.5))
    return seen


def distribution(seconds: Sequence[float]) -> str:
    """Return the quantiles of delays in milliseconds."""
    p50, p90, p99, most = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.9, 0.99, 1.0))
    return f"p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms, max {most:.0f} ms ({len(seconds)} writes)"


def delay(table: Table, primary: Node, replica: Node, queries: np.ndarray, *, samples: int) -> None:
    """Measure the replication delay of single writes: each from rest, in a stream, and beside a load of inserts."""
    ask(primary, "PUT", "/namespaces/delay", {"dimension": queries.shape[1]}, expect=200)
    caught_up(primary, [replica])
    # A second of rest, and the sender has gone home: the write has to call it.
    for words, pause_s in (("idle, a write per second", 1.0), ("idle, a write per 0.1 s", 0.1)):
        seen = delays(primary, replica, queries[0], samples=samples, pause_s=pause_s)
        table.add(f"write answered → visible on the replica, {words}", 1, distribution(seen), "p50 ≤ 100 ms, p99 ≤ 1 s")
    stop = threading.Event()
    single = [json_request("POST", "/vectors?namespace=load", {"values": query.tolist()}) for query in queries[:256]]

    def load_on() -> None:
        while not stop.is_set():
            elsewhere(run, primary.port, single, clients=4, seconds=2.0, expect=201)

    loading = threading.Thread(target=load_on)
    loading.start()
    try:
        seen = delays(primary, replica, queries[0], samples=samples, pause_s=0.2)
    finally:
        stop.set()
        loading.join()
    table.add("write answered → visible on the replica, beside 4 clients that insert", 1, distribution(seen))


# -- full sync -----------------------------------------------------------------------------------------------------


def full_sync(table: Table, rows: np.ndarray) -> None:
    """Measure how an empty node becomes a replica of one that has all rows in segments."""
    with started(primary=True) as primary, started() as replica:
        elsewhere(run, primary.port, msgpack_batches(rows, "packed"), clients=4)
        primary.manage("checkpoint")
        began = time.perf_counter()
        add(primary, replica, "replica_1")
        took = time.perf_counter() - began
        count = ask(replica, "POST", "/count?namespace=packed", {})["count"]
        if count != len(rows):
            raise RuntimeError(f"the replica has {count} of {len(rows)} rows")
        [move] = [move for move in ask(primary, "GET", "/cluster/moves")["moves"] if move["kind"] == "full_sync"]
        copied = move["bytes_total"]
        begun, ended = (datetime.fromisoformat(move[moment]) for moment in ("started_at", "ended_at"))
        copying_s = (ended - begun).total_seconds()
        table.add(
            "full sync of an empty replica over loopback: copied, verified, installed",
            len(rows),
            f"{copied / 1e6:,.0f} MB in {copying_s:.2f} s = {copied / 1e6 / copying_s:,.0f} MB/s",
            "≥ 100 MB/s",
        )
        table.add(
            "full sync, from adding the replica to a member that answers",
            len(rows),
            f"{took:.2f} s = {copied / 1e6 / took:,.0f} MB/s",
        )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="(n, d) rows, .npy")
    parser.add_argument("--rows", type=int, default=120_000, help="rows of the full sync")
    parser.add_argument("--write-rows", type=int, default=40_000, help="rows of each run of ingest")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ingest per number of replicas")
    parser.add_argument("--samples", type=int, default=100, help="writes whose delay is measured, each way")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of inserts at each level")
    parser.add_argument("--only", choices=("writes", "levels", "delay", "sync"), action="append", help="parts to run")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    if options.data is None:
        base = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
    else:
        base = np.load(options.data, allow_pickle=False).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    parts = options.only or ["writes", "levels", "delay", "sync"]
    data = "random unit vectors" if options.data is None else options.data.name
    head = (
        f"{os.cpu_count()} × {processor()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}; {base.shape[1]} dimensions, {data}; "
        "two web workers per node, all nodes and the load on the same machine"
    )
    print(head + "\n")
    table = Table()
    if set(parts) & {"writes", "levels", "delay"}:
        with started(primary=True) as primary, started() as first, started() as second:
            replicas = [first, second]
            if "writes" in parts:
                throughput(table, primary, replicas, rows_of(base, options.write_rows), repeats=options.repeats)
            else:
                for number, replica in enumerate(replicas, 1):
                    add(primary, replica, f"replica_{number}")
            if "levels" in parts:
                levels(table, primary, replicas, base, seconds=options.seconds)
            if "delay" in parts:
                delay(table, primary, first, base, samples=options.samples)
    if "sync" in parts:
        full_sync(table, rows_of(base, options.rows))
    if options.out is not None:
        options.out.write_text(head + "\n\n" + "\n".join(table.lines) + "\n")


if __name__ == "__main__":
    main()
