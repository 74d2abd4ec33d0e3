"""An HNSW graph to compare with: hnswlib where it can be imported, else the one of faiss. M=16, efConstruction=200."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

M = 16
EF_CONSTRUCTION = 200
TOP_K = 10

_MOST = 2048


class Graph:
    """A graph of unit rows, (n, d) float32, searched by one thread; `name` says whose it is, `built_s` for how long."""

    def __init__(self, rows: np.ndarray, *, threads: int) -> None:
        self._rows = rows
        try:
            import hnswlib
        except ImportError:
            hnswlib = None
        began = time.perf_counter()
        if hnswlib is not None:
            self.name = f"hnswlib {getattr(hnswlib, '__version__', '')}".strip()
            self._search, self._set_ef = _of_hnswlib(hnswlib, rows, threads)
        else:
            import faiss

            self.name = f"faiss {faiss.__version__} IndexHNSWFlat"
            self._search, self._set_ef = _of_faiss(faiss, rows, threads)
        self.built_s = time.perf_counter() - began
        self.ef = 0

    def search(self, query: np.ndarray) -> np.ndarray:
        """Return the rows that seem nearest to a query (d,): (10,) int64."""
        return self._search(query)

    def look(self, ef: int) -> None:
        """Set how many candidates a search keeps."""
        self.ef = ef
        self._set_ef(ef)

    def recall(self, queries: np.ndarray, worst: np.ndarray) -> float:
        """Return the share of answers at least as good as `worst` (q,), the true tenth score of each query."""
        good = 0
        for query, least in zip(queries, worst, strict=True):
            rows = self.search(query)
            good += int(np.count_nonzero(self._rows[rows].astype(np.float64) @ query.astype(np.float64) >= least))
        return good / (TOP_K * len(queries))

    def reach(self, recall: float, queries: np.ndarray, worst: np.ndarray) -> float:
        """Set the least `ef` with which the recall is reached, as far as there is one; return the recall."""
        low, high = TOP_K, _MOST
        while low < high:
            middle = (low + high) // 2
            self.look(middle)
            if self.recall(queries, worst) >= recall:
                high = middle
            else:
                low = middle + 1
        self.look(low)
        return self.recall(queries, worst)


_Search = Callable[[np.ndarray], np.ndarray]


def _of_hnswlib(hnswlib: Any, rows: np.ndarray, threads: int) -> tuple[_Search, Callable[[int], None]]:
    graph = hnswlib.Index(space="ip", dim=rows.shape[1])
    graph.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
    graph.add_items(rows, np.arange(len(rows)), num_threads=threads)
    graph.set_num_threads(1)

    def search(query: np.ndarray) -> np.ndarray:
        found: np.ndarray = graph.knn_query(query, k=TOP_K, num_threads=1)[0][0].astype(np.int64)
        return found

    return search, graph.set_ef


def _of_faiss(faiss: Any, rows: np.ndarray, threads: int) -> tuple[_Search, Callable[[int], None]]:
    graph = faiss.IndexHNSWFlat(rows.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    faiss.omp_set_num_threads(threads)
    graph.add(rows)
    faiss.omp_set_num_threads(1)

    def search(query: np.ndarray) -> np.ndarray:
        found: np.ndarray = graph.search(query[np.newaxis], TOP_K)[1][0]
        return found

    def set_ef(ef: int) -> None:
        graph.hnsw.efSearch = ef

    return search, set_ef
