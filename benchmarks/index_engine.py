"""The engine's part of `index.py`: one frozen segment in this process, searched by one thread."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from benchmarks.hnsw import Graph
from benchmarks.larger_sets import flags_of, grown, metadata_of
from benchmarks.single_node import Table
from vectors.bench.data import TOP_K
from vectors.bench.engine_side import Segment
from vectors.bench.measures import timed
from vectors.engine import search
from vectors.engine.filters import Filter, parse_filter

THREADS = 2

_WHAT_INDEX = "engine, one thread"
_LEVELS = (0.8, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999)
_TIE = 1e-6


@dataclass(frozen=True)
class Run:
    """How long a figure is measured, how often (the median counts), and where it is written."""

    table: Table
    seconds: float
    repeats: int

    def medians(self, *calls: Callable[[int], object], count: int) -> list[float]:
        """Return calls per second of each, measured in turn."""
        rates: list[list[float]] = [[] for _ in calls]
        for _ in range(self.repeats):
            for mine, call in zip(rates, calls, strict=True):
                latencies = timed(call, count, seconds=self.seconds)
                mine.append(len(latencies) / float(latencies.sum()))
        return [statistics.median(mine) for mine in rates]


def engine(run: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Build the index, and search at recalls of 0.99 and 0.95."""
    with segment_of(rows) as segment:
        for threads in (1, THREADS):
            built = [segment.give_index(recall_target=0.99, threads=threads) for _ in range(run.repeats)]
            took = statistics.median([seconds for seconds in built if seconds is not None])
            figure = f"{took:.1f} s = {len(rows) / took:,.0f} rows/s"
            run.table.add(f"index of all rows built, {_threads(threads)}", len(rows), figure, "≤ 8 s")
        truth = segment.truth(queries)
        for recall, target in ((0.99, 1900), (0.95, 4000)):
            find = segment.searcher(queries, recall=recall)
            reached = recall_of(find, truth)
            [rate] = run.medians(find, count=len(queries))
            what = f"{_WHAT_INDEX}, top 10, asked for recall {recall:g}"
            run.table.add(what, len(rows), f"{rate:,.0f}/s at recall {reached:.4f}", f"≥ {target:,}/s, recall {recall}")
        exact = segment.searcher(queries, exact=True)
        [rate] = run.medians(exact, count=len(queries))
        run.table.add(f"{_WHAT_INDEX}, exact", len(rows), f"{rate:,.0f}/s", "")


def filters(run: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Search with filters that 50, 10, 1 and 0.1 % of rows match, beside searches without."""
    flags = flags_of(len(rows))
    with segment_of(rows, [orjson.dumps(metadata_of(number, flags)) for number in range(len(rows))]) as segment:
        if segment.give_index(recall_target=0.99, threads=THREADS) is None:
            raise RuntimeError("no index reaches the recall")
        unfiltered = segment.searcher(queries, recall=0.99)
        recall_of(unfiltered, segment.truth(queries))
        for name, share in (("f50", "50"), ("f10", "10"), ("f1", "1"), ("f01", "0.1")):
            condition = filter_of(name)
            find = segment.searcher(queries, recall=0.99, filter=condition)
            reached = recall_of(find, segment.truth(queries, filter=condition))
            bare, rate = run.medians(unfiltered, find, count=len(queries))
            ways = sorted({find(number).strategy for number in range(min(50, len(queries)))})
            few = share in ("1", "0.1")
            run.table.add(
                f"{_WHAT_INDEX}, filter of {share} %",
                len(rows),
                f"{rate:,.0f}/s = {rate / bare:.0%} of {bare:,.0f}/s, recall {reached:.4f} ({', '.join(ways)})",
                "≥ 5,000/s, recall 1.0" if few else "≥ 60 %, recall ≥ 0.99",
            )


def hnsw(run: Run, rows: np.ndarray, queries: np.ndarray) -> None:
    """Search our index and an HNSW graph in turn, at the least effort with which either has a recall of 0.985."""
    with segment_of(rows) as segment:
        ours_s = segment.give_index(recall_target=0.99, threads=THREADS)
        if ours_s is None:
            raise RuntimeError("no index reaches the recall")
        truth = segment.truth(queries)
        # Scores of unit rows are products; graphs answer in float32, so a tie is wider here.
        worst = np.array([scores[-1] for scores in truth]) - _TIE
        graph = Graph(rows, threads=THREADS)
        run.table.add(
            f"index built, {_threads(THREADS)}: ours and {graph.name}, M=16, ef_construction=200",
            len(rows),
            f"{ours_s:.1f} s and {graph.built_s:.1f} s = 1/{graph.built_s / ours_s:.1f}",
            "≤ 1/8",
        )
        for level in (0.985, 0.95):
            reached = graph.reach(level, queries, worst)
            found = [(recall_of(segment.searcher(queries, recall=asked), truth), asked) for asked in _LEVELS]
            mine, asked = next(((have, asked) for have, asked in found if have >= level), found[-1])
            ours, theirs = run.medians(
                segment.searcher(queries, recall=asked),
                lambda number: graph.search(queries[number]),
                count=len(queries),
            )
            run.table.add(
                f"one thread, recall ≥ {level}: ours and {graph.name}",
                len(rows),
                f"{ours:,.0f}/s at {mine:.4f} (asked {asked:g}) and {theirs:,.0f}/s at {reached:.4f} (ef={graph.ef})"
                f" = {ours / theirs:.2f} ×",
                "≥ 2 ×" if level == 0.985 else "",
            )


def growth(run: Run, rows: np.ndarray, queries: np.ndarray, sizes: Sequence[int]) -> None:
    """Search ever more rows at one recall."""
    before: tuple[int, float] | None = None
    for size in sizes:
        some = grown(rows, size)
        with segment_of(some) as segment:
            built_s = segment.give_index(recall_target=0.99, threads=THREADS)
            find = segment.searcher(queries, recall=0.99)
            reached = recall_of(find, segment.truth(queries))
            [rate] = run.medians(find, count=len(queries))
        figure = f"{1000 / rate:.3f} ms a query at recall {reached:.4f}"
        if built_s is not None:
            figure += f", built in {built_s:.1f} s"
        target = ""
        if before is not None:
            figure += f"; {before[1] / rate:.2f} × for {size / before[0]:g} × the rows"
            target = "< 3 × for 5 ×"
        run.table.add(f"{_WHAT_INDEX}, recall 0.99", size, figure, target)
        before = (size, rate)


@contextmanager
def segment_of(rows: np.ndarray, metadata: Sequence[bytes] | None = None) -> Iterator[Segment]:
    """Map rows as one frozen segment from a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="mlvdb-bench-") as directory:
        yield Segment.of(rows, Path(directory), metadata)


def filter_of(name: str) -> Filter:
    """Return the filter for rows in which a field is 1."""
    return parse_filter({name: 1}, field="filter", max_conditions=1, max_depth=1, max_values=1)


def recall_of(find: Callable[[int], search.Result], truth: Sequence[Sequence[float]]) -> float:
    """Return the share of the true scores that searches for all queries reach; scores are exact, so ties count."""
    good = wanted = 0
    for number, scores in enumerate(truth):
        found = [item.score for item in find(number).found]
        good += sum(score >= scores[-1] for score in found) if scores else 0
        wanted += min(TOP_K, len(scores))
    return good / max(1, wanted)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
