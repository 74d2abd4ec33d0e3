"""One node, measured: search, point reads, ingest, durable inserts, restart, memory. See README.md beside it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgpack
import numpy as np

from benchmarks.node import ROOT, Node
from benchmarks.wire import Load, Wire, json_request, prepared, run

BATCH = 1000
SECONDS = 6.0


def rows_of(base: np.ndarray, count: int) -> np.ndarray:
    """Return `count` unit rows: those of `base` first, then the same again with small noise."""
    rng = np.random.default_rng(1)
    parts = [base]
    while sum(map(len, parts)) < count:
        parts.append(base + rng.standard_normal(base.shape, dtype=np.float32) * np.float32(0.02))
    rows = np.concatenate(parts)[:count].astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def row(number: int, values: object) -> dict[str, object]:
    """Return a row of a batch."""
    return {"id": f"row-{number}", "values": values, "metadata": {"number": number, "group": number % 100}}


def json_batches(rows: np.ndarray, namespace: str) -> list[bytes]:
    """Return the requests that upsert `rows` as JSON."""
    path = f"/vectors/batch?namespace={namespace}"
    return [
        json_request("PUT", path, {"vectors": [row(number, rows[number].tolist()) for number in batch]})
        for batch in batches(len(rows))
    ]


def msgpack_batches(rows: np.ndarray, namespace: str) -> list[bytes]:
    """Return the requests that upsert `rows` as msgpack."""
    path = f"/vectors/batch?namespace={namespace}"
    return [
        prepared(
            "PUT",
            path,
            msgpack.packb({"vectors": [row(number, rows[number].tobytes()) for number in batch]}),
            content_type="application/msgpack",
        )
        for batch in batches(len(rows))
    ]


def batches(count: int) -> list[range]:
    """Return the row numbers of each batch."""
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


def elsewhere(call: Callable[..., Load], *arguments: object, **options: object) -> Load:
    """Run a load in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send(call(*arguments, **options))
        except Exception as error:
            sender.send(error)

    process = context.Process(target=work)
    process.start()
    outcome = receiver.recv()
    process.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class Table:
    """Rows of the report, printed as they come."""

    def __init__(self) -> None:
        self.lines = ["| measured | rows | figure | target |", "| --- | --- | --- | --- |"]
        print("\n".join(self.lines), flush=True)

    def add(self, what: str, rows: int | str, figure: str, target: str = "") -> None:
        """Add a row."""
        self.lines.append(f"| {what} | {rows} | {figure} | {target} |")
        print(self.lines[-1], flush=True)


def measure(table: Table, rows: np.ndarray, queries: np.ndarray) -> None:
    """Measure one size on a fresh node."""
    count = len(rows)
    with Node() as node:
        table.add("first start to ready, empty data dir", 0, f"{node.start():.1f} s")
        bodies = msgpack_batches(rows, "packed")
        load = elsewhere(run, node.port, bodies, clients=4)
        ingest = f"batches of {BATCH}, 4 clients"
        table.add(f"ingest, msgpack, {ingest}", count, f"{load.per_s * BATCH:,.0f} rows/s", "≥ 30,000")
        del bodies
        bodies = json_batches(rows[:20_000], "json")
        load = elsewhere(run, node.port, bodies, clients=4)
        table.add(f"ingest, JSON, {ingest}", len(rows[:20_000]), f"{load.per_s * BATCH:,.0f} rows/s", "≥ 12,000")
        del bodies
        Wire(node.port).ask(prepared("DELETE", "/namespaces/json"))
        for clients in (1, 8):
            single = [
                json_request("POST", "/vectors?namespace=single", {"values": query.tolist(), "metadata": {"n": 1}})
                for query in queries[:256]
            ]
            load = elsewhere(run, node.port, single, clients=clients, seconds=SECONDS, expect=201)
            table.add(
                f"single durable inserts, {clients} clients",
                count,
                str(load),
                "≥ 1,200/s",
            )
        Wire(node.port).ask(prepared("DELETE", "/namespaces/single"))
        node.manage("checkpoint")
        searches = [
            json_request(
                "POST", "/search?namespace=packed", {"query": query.tolist(), "top_k": 10, "with_values": False}
            )
            for query in queries[:256]
        ]
        elsewhere(run, node.port, searches[:64], clients=4)
        for clients in (1, 8):
            load = elsewhere(run, node.port, searches, clients=clients, seconds=SECONDS)
            table.add(
                f"exact search over HTTP, top 10, {clients} clients",
                count,
                str(load),
            )
        asked = range(0, count, max(1, count // 512))
        reads = [prepared("GET", f"/vectors/row-{number}?namespace=packed") for number in asked]
        load = elsewhere(run, node.port, reads, clients=8, seconds=SECONDS)
        table.add("point reads, 8 clients", count, str(load))
        memory = node.memory_bytes()
        status, body = Wire(node.port).ask(prepared("GET", "/namespaces?detail=1"))
        assert status == 200
        data = sum(item["size_bytes"] for item in json.loads(body)["namespaces"] if item["name"] == "packed")
        table.add(
            "memory of two workers (summed PSS) after a checkpoint",
            count,
            f"{memory / 2**20:,.0f} MiB = {memory / data:.2f} × the data ({data / 2**20:,.0f} MiB)",
            "≤ 1.3 ×",
        )
        tiny = Wire(node.port)
        tiny.ask(json_request("POST", "/vectors?namespace=tiny", {"values": queries[0].tolist(), "metadata": {"a": 1}}))
        node.stop()
        began = node.start()
        status, _ = Wire(node.port).ask(searches[0])
        assert status == 200
        table.add("restart to ready and first answer", count, f"{began:.2f} s", "≤ 3 s")
        elsewhere(run, node.port, searches[:64], clients=4)
        memory = node.memory_bytes()
        table.add(
            "memory of two workers (summed PSS) after a restart and searches",
            count,
            f"{memory / 2**20:,.0f} MiB = {memory / data:.2f} × the data",
        )
        node.stop()
        inside(table, node, queries, count)


def inside(table: Table, node: Node, queries: np.ndarray, count: int) -> None:
    """Measure what one worker spends, without a server around it."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, queries[:32])
        file.flush()
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "inside.py"), "packed", file.name],
            env=node.environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seen = json.loads(done.stdout.splitlines()[-1])
    search_s, product_s = seen["search_s"], seen["product_s"]
    table.add(
        "exact search in the engine against the bare X @ q",
        count,
        f"{1000 * search_s:.2f} ms / {1000 * product_s:.2f} ms = {search_s / product_s:.2f} ×",
        "≤ 1.3 ×",
    )
    table.add("top-k selection", count, f"{1000 * seen['topk_s']:.3f} ms", "≤ 0.1 ms")
    table.add(
        "freshness check (of it the statement)",
        count,
        f"{1e6 * seen['freshness_s']:.0f} µs ({1e6 * seen['bare_head_s']:.0f} µs)",
        "≤ 50 µs",
    )
    overhead = seen["request_s"] - seen["tiny_search_s"]
    table.add("a search request through our own code, search excluded", 1, f"{1e6 * overhead:.0f} µs", "≤ 350 µs")


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="(n, d) rows, .npy")
    parser.add_argument("--queries", type=Path, help="(m, d) queries, .npy; rows of the data when not given")
    parser.add_argument("--rows", default="20000,120000", help="sizes to measure")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    if options.data is None:
        base = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
    else:
        base = np.load(options.data, allow_pickle=False).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    queries = base[:500]
    if options.queries is not None:
        queries = np.load(options.queries, allow_pickle=False).astype(np.float32)
    data = "random unit vectors" if options.data is None else options.data.name
    head = (
        f"{os.cpu_count()} × {processor()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}; {base.shape[1]} dimensions, {data}; "
        "two web workers, load from a separate process"
    )
    print(head + "\n")
    table = Table()
    for count in map(int, options.rows.split(",")):
        measure(table, rows_of(base, count), queries)
    if options.out is not None:
        options.out.write_text(head + "\n\n" + "\n".join(table.lines) + "\n")


if __name__ == "__main__":
    main()
