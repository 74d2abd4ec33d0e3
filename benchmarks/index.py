"""The index, measured against its targets, in one run. See README.md beside it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

# As every process of a node has it.
for _variable, _value in {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}.items():
    os.environ.setdefault(_variable, _value)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import index_engine, index_node
from benchmarks.index_engine import Run
from benchmarks.larger_sets import grown, rows_and_queries
from benchmarks.single_node import Table, processor
from vectors.bench.data import random_rows
from vectors.engine import index

PARTS = ("engine", "filters", "http", "ingest", "hnsw", "growth", "beside")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="(n, d) rows, .npy; without it they are made up")
    parser.add_argument("--queries", type=Path, help="(m, d) queries, .npy; without it 500 of the rows are taken out")
    parser.add_argument("--rows", type=int, default=120_000, help="rows to measure with (%(default)s)")
    parser.add_argument("--growth", default="20000,120000,600000", help="sizes of the part growth (%(default)s)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure these parts alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of which the median counts (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    if not index.available():
        parser.error("faiss is not installed: there are no indexes to measure")
    data, base, queries = _data(options.data, options.queries)
    rows = grown(base, options.rows)
    made = f", of them {len(rows) - len(base):,} mixed of near ones" if len(rows) > len(base) else ""
    head = (
        f"{os.cpu_count()} × {processor()}, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}; {data}, {base.shape[1]} dimensions, {len(rows):,} "
        f"rows{made}, {len(queries)} queries apart from them; medians of {options.repeats}; nodes of two web workers, "
        "load from a separate process"
    )
    print(head + "\n")
    run = Run(Table(), options.seconds, options.repeats)
    sizes = [int(size) for size in options.growth.split(",")]
    parts: dict[str, Callable[[], None]] = {
        "engine": lambda: index_engine.engine(run, rows, queries),
        "filters": lambda: index_engine.filters(run, rows, queries),
        "http": lambda: index_node.http(run, rows, queries),
        "ingest": lambda: index_node.ingest(run, rows, queries),
        "hnsw": lambda: index_engine.hnsw(run, rows, queries),
        "growth": lambda: index_engine.growth(run, base, queries, sizes),
        "beside": lambda: index_node.beside(run, rows, queries),
    }
    for name in PARTS:
        if not options.only or name in options.only:
            parts[name]()
            if options.out is not None:
                options.out.write_text(head + "\n\n" + "\n".join(run.table.lines) + "\n")


def _data(data: Path | None, queries: Path | None) -> tuple[str, np.ndarray, np.ndarray]:
    rows = random_rows(20_500, 384) if data is None else np.load(data, allow_pickle=False)
    asked = None if queries is None else np.load(queries, allow_pickle=False)
    return "made-up rows" if data is None else data.name, *rows_and_queries(rows, asked)


if __name__ == "__main__":
    main()
