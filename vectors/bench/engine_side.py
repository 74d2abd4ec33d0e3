"""The engine alone, in this process and by one thread: rows applied, index built, searches at several recalls."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vectors.bench.data import TOP_K, BenchData
from vectors.bench.measures import RECALLS, Measure, searches, timed
from vectors.engine import ids, index, search
from vectors.engine.distances import Query, squared_norms
from vectors.engine.filters import Filter
from vectors.engine.namespace import NamespaceEngine, NamespaceSpec, NamespaceView
from vectors.engine.operations import NamespacePut, Upsert
from vectors.engine.packed import PackedBytes, pack
from vectors.engine.parts import FrozenPart
from vectors.engine.shard import ShardEngine

BATCH_ROWS = 1000
THREADS = 2

_CURVE = "engine, 1 thread"


def engine_measures(data: BenchData, *, seconds: float, min_rows: int) -> list[Measure]:
    """Measure the engine on rows in its memory, then on the same rows as one segment of a node has them.

    With `min_rows` rows or more, as a node decides it, the segment gets an index, and a search for each of RECALLS.
    """
    measures = [
        Measure("engine: rows applied", len(data.rows) / _applied_s(data.rows), "rows/s"),
        searches(
            "numpy: X @ q, 1 thread",
            timed(lambda number: data.rows @ data.queries[number], len(data.queries), seconds=seconds),
        ),
    ]
    with tempfile.TemporaryDirectory(prefix="mlvdb-bench-") as directory:
        segment = Segment.of(data.rows, Path(directory))
        measures.append(_point(data, segment, None, seconds=seconds))
        if not index.available() or not index.worthwhile(len(data.rows), data.rows.shape[1], min_rows=min_rows):
            return measures
        built_s = segment.give_index(recall_target=0.99, threads=THREADS)
        if built_s is not None:
            measures.append(Measure(f"engine: index built, {THREADS} threads", len(data.rows) / built_s, "rows/s"))
            measures.extend(_point(data, segment, recall, seconds=seconds) for recall in RECALLS)
    return measures


def frozen_part(
    matrix: np.ndarray, keys: Sequence[bytes], metadata: Sequence[bytes], *, seqs: np.ndarray | None = None
) -> FrozenPart:
    """Return rows (n, d) float32, in the order of their keys, as a segment; `seqs` (n,) int64, all 1 when None."""
    hashes = ids.hashes_of(keys)
    order = np.argsort(hashes, kind="stable")
    return FrozenPart(
        uid="f" * 32,
        matrix=matrix,
        squared_norms=squared_norms(matrix),
        slots=ids.slots_of(keys),
        seqs=np.ones(len(matrix), dtype=np.int64) if seqs is None else seqs,
        keys=PackedBytes(*pack(keys)),
        metadata=PackedBytes(*pack(metadata)),
        sorted_hashes=hashes[order],
        hash_rows=order.astype(np.uint32),
    )


@dataclass(slots=True)
class Segment:
    """Rows as one frozen segment of a namespace, their vectors and the index mapped from files as a node maps them."""

    part: FrozenPart
    directory: Path

    @classmethod
    def of(cls, rows: np.ndarray, directory: Path, metadata: Sequence[bytes] | None = None) -> Segment:
        """Write rows (n, d) float32, of the ids 0, 1, …, into a directory and map them."""
        np.save(directory / "vectors.npy", rows)
        matrix = np.load(directory / "vectors.npy", mmap_mode="r", allow_pickle=False)
        keys = [ids.key_of(row) for row in range(len(rows))]
        return cls(frozen_part(matrix, keys, [b"{}"] * len(rows) if metadata is None else metadata), directory)

    def give_index(self, *, recall_target: float, threads: int) -> float | None:
        """Build the index, and return the seconds until it was open; None where none is made."""
        began = time.perf_counter()
        built = index.build(self.part, metric="cosine", recall_target=recall_target, queries=None, threads=threads)
        if built is None:
            return None
        path = self.directory / "index.bin"
        with path.open("wb") as file:
            for chunk in built.chunks():
                file.write(chunk)
        self.part.index = index.open_index(path)
        return time.perf_counter() - began

    def view(self, *, recall_target: float = 0.99) -> NamespaceView:
        """Return the namespace."""
        spec = NamespaceSpec("bench", "bench", int(self.part.matrix.shape[1]), "cosine", recall_target)
        return NamespaceEngine(spec, frozen=[self.part]).view()

    def searcher(self, queries: np.ndarray, **wanted: Any) -> Callable[[int], search.Result]:
        """Return what searches for the query of a number, with `filter`, `recall` and `exact` as `Wanted` has them."""
        view = self.view()

        def find(number: int) -> search.Result:
            return search.search(view, search.Wanted(Query.of(queries[number], "cosine"), TOP_K, **wanted))

        return find

    def truth(self, queries: np.ndarray, *, filter: Filter | None = None) -> list[list[float]]:
        """Return the scores of the truly nearest rows of each query, best first."""
        wanteds = [search.Wanted(Query.of(query, "cosine"), TOP_K, filter, exact=True) for query in queries]
        return [[item.score for item in result.found] for result in search.search_batch(self.view(), wanteds)]


def _point(data: BenchData, segment: Segment, recall: float | None, *, seconds: float) -> Measure:
    find = segment.searcher(data.queries, recall=recall, exact=recall is None)
    # The first round over all queries also brings memory and caches to what they are in use.
    found = [[ids.id_of(item.key) for item in find(number).found] for number in range(len(data.queries))]
    what = "engine: exact search, 1 thread" if recall is None else f"engine: search at recall {recall:g}, 1 thread"
    latencies = timed(find, len(data.queries), seconds=seconds)
    return searches(what, latencies, recall=data.recall(found), curve=_CURVE)


def _applied_s(rows: np.ndarray) -> float:
    engine = ShardEngine()
    put = NamespacePut("bench", rows.shape[1], "cosine", 0.99)
    engine.apply(seq=1, term=1, namespace="bench", operation=put)
    upserts = [
        Upsert([ids.key_of(row) for row in range(start, start + len(part))], part, [b"{}"] * len(part))
        for start in range(0, len(rows), BATCH_ROWS)
        for part in [rows[start : start + BATCH_ROWS]]
    ]
    began = time.perf_counter()
    for place, upsert in enumerate(upserts):
        engine.apply(seq=place + 2, term=1, namespace="bench", operation=upsert)
    return time.perf_counter() - began
