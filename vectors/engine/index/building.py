"""Making the index of a segment: cells and codes from a sample, every row coded, settings tuned and then measured.

Memory stays bounded: the sample, some thousand rows at a time, and the codes themselves. Everything that is drawn is
drawn from the number of rows, so the same rows give the same index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vectors.engine.distances import Metric, Query, is_safe_in_float32
from vectors.engine.index import layout, reach
from vectors.engine.index.scanner import Codebook, Scanner, available, threads_of, train
from vectors.engine.index.segment_index import CELL_NS, CODE_NS, FETCHED_NS, SegmentIndex, Tuning
from vectors.engine.index.truth import nearest
from vectors.engine.index.tuning import LEVELS, Costs, Ranks, settings
from vectors.engine.parts import FrozenPart, PartView
from vectors.engine.selection import Selection

FEWEST_ROWS = 256
"""Below this there is too little to learn cells and codes from."""

_ROWS_AT_ONCE = 8192
_ROWS_PER_CELL_TRAINED = 64
_MOST_CELLS = 16384
_QUERIES = 640
_QUERIES_OF_SHARES = 128
_QUERIES_OF_CODES = 96
_QUERIES_MEASURED = 96
_FEWEST_REAL = 32
_MARGIN = 0.5
_MARGIN_IS_FOR = 0.01
_MARGIN_FALLS = 0.4
"""Settings are for this share less of the misses that are allowed, where those are 1 % and fewer: a sample may be
easier than other queries, and what is missed lies around few of them. The more may be missed the better a sample tells
how many are: the share falls with this power of what is allowed. Measured on six sets of rows with six samples each."""

_MOVED = 0.75
"""How far rows are moved to stand for queries, in differences of two others: so the rows themselves say in which
directions queries lie elsewhere. Measured beside real queries on embeddings as they are, with near copies of them and
with mixtures, and on made-up rows of few directions: moved rows need at least as many cells as those do."""
_SHRUNK = 0.72
"""Moved rows are a third longer, so their distances differ by less than those of queries do."""

_SCORED_NS = 100.0
_DEPTHS = (10, 100)
_SHARES = (0.3, 0.1, 0.03, 0.01, 0.003)
_ROWS_OF_A_SHARE = 2000
"""So few selected rows are scored exactly: no setting is needed for them."""
_MOST_SCORED = 1024


class BuiltIndex:
    """An index as it was built, to be written to a file; `summary` is what is known of it, as JSON types."""

    def __init__(
        self,
        scanner: Scanner,
        *,
        metric: Metric,
        cells_of_rows: np.ndarray,
        tunings: Sequence[Tuning],
        spread: float,
    ) -> None:
        self.summary: Mapping[str, Any] = {}
        self._scanner = scanner
        self._metric = metric
        self._cells_of_rows = cells_of_rows
        self._tunings = tunings
        self._spread = spread

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of its file in order."""
        codebook = self._scanner.codebook
        document = {
            "metric": self._metric,
            "summary": self.summary,
            "spread": self._spread,
            "tunings": [tuning.to_document() for tuning in self._tunings],
        }
        arrays = {"cells": codebook.cells, "codes": codebook.codes, "cells_of_rows": self._cells_of_rows}
        return layout.chunks(document, arrays, self._scanner.list_chunks())


def worthwhile(rows: int, dimension: int, *, min_rows: int) -> bool:
    """Whether a segment is large enough for an index: `min_rows` rows, or fewer of more than 384 dimensions."""
    return rows >= max(FEWEST_ROWS, min_rows * min(1.0, 384 / dimension)) and rows * dimension >= min_rows * 16


def build(
    part: FrozenPart,
    *,
    metric: Metric,
    recall_target: float,
    queries: np.ndarray | None,
    threads: int | Callable[[], int],
) -> BuiltIndex | None:
    """Return an index of all rows of a segment, tuned for a namespace's `recall_target`.

    `queries` (n, d) float32 are real ones, on which the target is reached as well as on rows that are taken for
    queries. None where faiss is missing, where no setting reaches the target, and for rows that float32 cannot hold the
    products of: such a segment is searched exactly. Uses up to `threads` threads; what returns their number is asked
    again as the work goes on.
    """
    if not available() or part.rows < FEWEST_ROWS or recall_target >= 1.0 or not is_safe_in_float32(part, part.rows):
        return None
    started = time.perf_counter()
    share = threads if callable(threads) else lambda: threads
    generator = np.random.default_rng(part.rows)
    codebook = _train(part, metric, generator, threads=share())
    scanner = Scanner(codebook, metric)
    for start in range(0, part.rows, _ROWS_AT_ONCE):
        rows = np.arange(start, min(part.rows, start + _ROWS_AT_ONCE))
        scanner.add(_coded(part, rows, metric, codebook.padded), threads=share())
    cells_of_rows = np.empty(part.rows, dtype=np.uint16)
    for cell in range(len(codebook.cells)):
        cells_of_rows[scanner.numbers(cell)] = cell
    tuner = _Tuner(part, metric, scanner, cells_of_rows, queries, generator, threads=share)
    tunings = tuner.tunings(recall_target)
    if tunings is None:
        return None
    built = BuiltIndex(scanner, metric=metric, cells_of_rows=cells_of_rows, tunings=tunings, spread=tuner.spread)
    working = SegmentIndex(
        scanner,
        metric=metric,
        dimension=part.matrix.shape[1],
        cells_of_rows=cells_of_rows,
        tunings=tunings,
        spread=tuner.spread,
        summary={},
    )
    built.summary = {
        "rows": part.rows,
        "dimension": int(part.matrix.shape[1]),
        "metric": metric,
        "cells": len(codebook.cells),
        "code_bytes": codebook.code_bytes,
        "recall": round(tuner.measured(working, recall_target), 5),
        "recall_target": recall_target,
        "queries": 0 if queries is None else len(queries),
        "built_s": round(time.perf_counter() - started, 3),
    }
    return built


def _train(part: FrozenPart, metric: Metric, generator: np.random.Generator, *, threads: int) -> Codebook:
    dimension = part.matrix.shape[1]
    cells = int(min(_MOST_CELLS, max(1, 1.5 * np.sqrt(part.rows))))
    per_code = 2 if dimension > 16 else 1
    sample = generator.choice(part.rows, size=min(part.rows, cells * _ROWS_PER_CELL_TRAINED), replace=False)
    sample.sort()
    values = _coded(part, sample, metric, -(-dimension // per_code) * per_code)
    # Rows in key order may lie in the order of their content; codes are learnt from the first ones.
    values = values[generator.permutation(len(values))]
    return train(
        values, cells=cells, dimensions_per_code=per_code, by_direction=metric == "cosine", seed=1, threads=threads
    )


def _coded(part: FrozenPart, rows: np.ndarray, metric: Metric, padded: int) -> np.ndarray:
    """Return some rows (n,) as they are coded: (n, padded) float32, of length 1 for cosine."""
    dimension = part.matrix.shape[1]
    values = np.zeros((len(rows), padded), dtype=np.float32)
    values[:, :dimension] = part.matrix[rows]
    if metric == "cosine":
        values *= part.inverse_norms(part.rows)[rows, None]
    return values


def _margin(recall: float) -> float:
    """Return by which share of what is allowed less is to be missed by a setting for a recall."""
    return _MARGIN * min(1.0, float((_MARGIN_IS_FOR / (1.0 - recall)) ** _MARGIN_FALLS))


class _Sample(NamedTuple):
    """Queries to tune or measure on; the `rows` they were made of are none of their neighbours.

    Their distances differ by a part only, `shrunk`, of what those of queries do.
    """

    queries: Sequence[Query]
    rows: np.ndarray | None = None
    shrunk: float = 1.0

    def some(self, count: int) -> _Sample:
        """Return about `count` of them."""
        step = max(1, len(self.queries) // count)
        return _Sample(self.queries[::step], None if self.rows is None else self.rows[::step], self.shrunk)


class _Tuner:
    """Finds the settings of a scanner, from queries whose nearest rows are known.

    Rows of the segment are taken for queries; and the same moved away, since rows may have close copies and lie well
    inside their cells, where queries do not. Real queries are taken as they are.
    """

    def __init__(
        self,
        part: FrozenPart,
        metric: Metric,
        scanner: Scanner,
        cells_of_rows: np.ndarray,
        real: np.ndarray | None,
        generator: np.random.Generator,
        *,
        threads: Callable[[], int],
    ) -> None:
        self._part, self._metric, self._scanner = part, metric, scanner
        self._threads = threads
        self._cells_of_rows = cells_of_rows
        self._generator = generator
        chosen = generator.permutation(part.rows)[: _QUERIES + _QUERIES_MEASURED]
        kept = max(1, len(chosen) * _QUERIES_MEASURED // (_QUERIES + _QUERIES_MEASURED))
        self._samples = self._of_rows(np.sort(chosen[kept:]))
        self.spread = reach.spread_of(scanner.distances(self._padded(self._samples[0].queries)))
        self._kept = self._of_rows(np.sort(chosen[:kept]))
        if real is not None and len(real):
            # What nothing was tuned on is measured; very few are used for both.
            tuned, measured = (real[::2], real[1::2]) if len(real) >= 2 * _FEWEST_REAL else (real, real)
            self._samples.append(_Sample(self._queries(tuned)))
            self._kept.append(_Sample(self._queries(measured)))

    def tunings(self, recall_target: float) -> list[Tuning] | None:
        """Return the settings for every number of neighbours and share of rows, None when the target is not reached."""
        levels = sorted({*LEVELS, recall_target})
        tunings = self._of_share(levels, 1.0)
        if not any(tuning.k == _DEPTHS[0] and tuning.setting(recall_target) for tuning in tunings):
            return None
        for share in _SHARES:
            if share * self._part.rows < _ROWS_OF_A_SHARE:
                break
            tunings += self._of_share(levels, share)
        return tunings

    def measured(self, index: SegmentIndex, recall: float) -> float:
        """Return the mean recall at 10 that searches with `recall` have on queries that nothing was tuned on."""
        everything = Selection(PartView(self._part, self._part.rows, None), None)
        recalls = []
        for sample in self._kept:
            truth = self._truth(sample, _DEPTHS[0], None)
            depth = truth.shape[1]
            found = 0
            for number, query in enumerate(sample.queries):
                own = sample.rows is not None
                proposed = index.propose(query, k=depth + own, recall=recall, selection=everything)
                found += depth if proposed is None else int(np.isin(truth[number], proposed).sum())
            recalls.append(found / (depth * len(sample.queries)))
        return float(np.mean(recalls))

    def _of_share(self, levels: Sequence[float], share: float) -> list[Tuning]:
        mask = None if share == 1.0 else self._generator.random(self._part.rows) < share
        samples = self._samples if mask is None else [item.some(_QUERIES_OF_SHARES) for item in self._samples]
        ranks = [self._ranks(sample, mask) for sample in samples]
        codebook = self._scanner.codebook
        in_a_cell = self._part.rows / len(codebook.cells)
        costs = Costs(
            probe_ns=CELL_NS + in_a_cell * codebook.code_bytes * CODE_NS,
            count_ns=_SCORED_NS + FETCHED_NS * self._part.matrix.shape[1],
        )
        wanted = [level + _margin(level) * (1.0 - level) for level in levels]
        tunings = []
        for depth in _DEPTHS:
            if min(rank.reach.shape[1] for rank in ranks) < depth and depth > _DEPTHS[0]:
                continue
            reached = settings(ranks, k=depth, limit=_MOST_SCORED, levels=wanted, costs=costs)
            found = [setting.promising(level) for level, setting in zip(levels, reached, strict=False)]
            tunings.append(Tuning(k=depth, share=share, settings=found))
        return tunings

    def _ranks(self, sample: _Sample, mask: np.ndarray | None) -> Ranks:
        truth = self._truth(sample, _DEPTHS[-1], mask)
        padded = self._padded(sample.queries)
        all_reach = self._reach(padded, mask, sample.shrunk)
        of_truth = np.take_along_axis(all_reach, self._cells_of_rows[truth].astype(np.int64), axis=1)
        step = max(1, len(padded) // _QUERIES_OF_CODES)
        return Ranks(of_truth, self._code_ranks(np.ascontiguousarray(padded[::step]), truth[::step], mask), all_reach)

    def _truth(self, sample: _Sample, depth: int, mask: np.ndarray | None) -> np.ndarray:
        """Return the rows that searches should find, nearest first: (q, depth) int64, fewer where there are no more."""
        return nearest(
            self._part, sample.queries, depth=depth, leave_out=sample.rows, mask=mask, threads=self._threads()
        )

    def _reach(self, padded: np.ndarray, mask: np.ndarray | None, shrunk: float) -> np.ndarray:
        """Return the reach of every cell, infinite for those that have none of the rows: (q, c) float32."""
        distances = self._scanner.distances(padded)
        if mask is not None:
            cells = distances.shape[1]
            distances[:, np.bincount(self._cells_of_rows[mask], minlength=cells) == 0] = np.inf
        cells, ascending = reach.of_cells(distances, self.spread * shrunk)
        found = np.empty_like(ascending)
        np.put_along_axis(found, cells, ascending, axis=1)
        return found

    def _code_ranks(self, padded: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        cells = len(self._scanner.codebook.cells)
        with threads_of(self._threads()):
            found = self._scanner.scan(
                padded,
                np.tile(np.arange(cells), (len(padded), 1)),
                count=min(_MOST_SCORED, self._part.rows),
                selected=None if mask is None else np.packbits(mask, bitorder="little"),
            )
        ranks = np.full(truth.shape, np.iinfo(np.int64).max, dtype=np.int64)
        for number, proposed in enumerate(found):
            order = np.argsort(proposed)
            places = np.minimum(np.searchsorted(proposed[order], truth[number]), len(proposed) - 1)
            hit = proposed[order[places]] == truth[number]
            ranks[number, hit] = order[places[hit]] + 1
        return ranks

    def _of_rows(self, rows: np.ndarray) -> list[_Sample]:
        values = self._rows(rows)
        first, second = self._generator.integers(self._part.rows, size=(2, len(rows)))
        moved = values + np.float32(_MOVED) * (self._rows(first) - self._rows(second))
        # Of the harder ones more: the few neighbours that are missed decide.
        return [_Sample(self._queries(values[::4]), rows[::4]), _Sample(self._queries(moved), rows, _SHRUNK)]

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        return _coded(self._part, rows, self._metric, self._part.matrix.shape[1])

    def _queries(self, values: np.ndarray) -> list[Query]:
        return [Query.of(row, self._metric) for row in values]

    def _padded(self, queries: Sequence[Query]) -> np.ndarray:
        padded = np.zeros((len(queries), self._scanner.codebook.padded), dtype=np.float32)
        for row, query in zip(padded, queries, strict=True):
            row[: len(query.scan)] = query.scan
        return padded
