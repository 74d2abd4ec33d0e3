"""Cells and 4-bit codes as faiss makes and scans them: the one module that knows its indexes.

Rows are assigned to the nearest of some cells and kept there as codes of a product quantizer, half a byte for each few
dimensions. A scan looks at the codes of the cells nearest to a query, 32 rows with a few instructions, and answers the
rows that seem best. The lists of codes may lie in a mapped file: then all processes share their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vectors.engine.distances import Metric
from vectors.engine.fetching import faiss_library
from vectors.engine.index.gathered_codes import BLOCK_ROWS, GatheredCodes, unpacked

_BITS = 4
_CODES = 1 << _BITS
_ROW_NUMBER_BYTES = 8
_CELL_ROUNDS = 6
_CODE_ROUNDS = 5
_ROWS_PER_CELL_TRAINED = 64
_ROWS_CODES_TRAINED = 2048


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Let faiss use `count` threads meanwhile: what answers searches uses one."""
    faiss = faiss_library()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)


def available() -> bool:
    """Whether faiss is there."""
    return faiss_library() is not None


class Codebook:
    """What rows are coded with: `cells` (c, D) and `codes` (m, 16, D // m), float32, for D = `padded` dimensions."""

    def __init__(self, cells: np.ndarray, codes: np.ndarray) -> None:
        self.cells = np.ascontiguousarray(cells, dtype=np.float32)
        self.codes = np.ascontiguousarray(codes, dtype=np.float32)
        if self.codes.ndim != 3 or self.codes.shape[1] != _CODES or self.cells.ndim != 2:
            raise ValueError("these are no cells and codes")
        if self.cells.shape[1] != self.codes.shape[0] * self.codes.shape[2]:
            raise ValueError("cells and codes are of different dimensions")

    @property
    def padded(self) -> int:
        """Dimensions of the rows as they are coded: zeros are added to fill the last code."""
        return int(self.cells.shape[1])

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's codes in a list."""
        return (len(self.codes) + 1) // 2


def train(
    sample: np.ndarray, *, cells: int, dimensions_per_code: int, by_direction: bool, seed: int, threads: int
) -> Codebook:
    """Return a codebook for rows like those of `sample` (n, D) float32, D a multiple of `dimensions_per_code`.

    `by_direction`: the rows have length 1, and so shall the cells.
    """
    faiss = faiss_library()
    dimension = sample.shape[1]
    with threads_of(threads):
        clustering = faiss.Kmeans(
            dimension,
            cells,
            niter=_CELL_ROUNDS,
            spherical=by_direction,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=_ROWS_PER_CELL_TRAINED,
        )
        clustering.train(sample)
        quantizer = faiss.ProductQuantizer(dimension, dimension // dimensions_per_code, _BITS)
        quantizer.cp.seed = seed
        quantizer.cp.niter = _CODE_ROUNDS
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(sample[:_ROWS_CODES_TRAINED])
        codes = faiss.vector_to_array(quantizer.centroids).reshape(-1, _CODES, dimensions_per_code)
    return Codebook(clustering.centroids, codes)


def list_bytes(rows: np.ndarray, code_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of lists with `rows` (c,) rows each the bytes of the codes and of the row numbers behind: 2 × (c,)."""
    room = -(-rows.astype(np.int64) // BLOCK_ROWS) * BLOCK_ROWS
    return room * code_bytes, room * _ROW_NUMBER_BYTES


class Scanner:
    """A codebook and the lists of rows coded with it. Searches are thread-safe, `add` is not."""

    def __init__(self, codebook: Codebook, metric: Metric) -> None:
        faiss = faiss_library()
        self.codebook = codebook
        self._metric = metric
        self._cell_norms = np.einsum("ij,ij->i", codebook.cells, codebook.cells)
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        # Rows belong to the nearest cell, whatever a query looks for.
        self._nearest = faiss.IndexFlatL2(codebook.padded)
        self._nearest.add(codebook.cells)
        self._index = faiss.IndexIVFPQFastScan(
            self._nearest, codebook.padded, len(codebook.cells), len(codebook.codes), _BITS, kind
        )
        faiss.copy_array_to_vector(codebook.codes.reshape(-1), self._index.pq.centroids)
        self._index.is_trained = True
        self._mapped: Any = None
        self._parameters: dict[int, Any] = {}

    @classmethod
    def over_file(
        cls, codebook: Codebook, metric: Metric, *, path: Path, offset: int, size: int, list_rows: np.ndarray
    ) -> Scanner:
        """Return one whose lists, of `list_rows` (c,) rows, begin at `offset` of a file of `size` bytes, and map it."""
        faiss = faiss_library()
        scanner = cls(codebook, metric)
        mapped = faiss.OnDiskInvertedLists()
        mapped.nlist, mapped.code_size = len(list_rows), codebook.code_bytes
        mapped.filename, mapped.totsize, mapped.read_only = str(path), size, True
        code_bytes, number_bytes = list_bytes(list_rows, codebook.code_bytes)
        for rows, codes, numbers in zip(list_rows.tolist(), code_bytes.tolist(), number_bytes.tolist(), strict=True):
            place = faiss.OnDiskOneList()
            # Row numbers are read from behind the room of the codes.
            place.size, place.capacity, place.offset = rows, codes // codebook.code_bytes, offset
            mapped.lists.push_back(place)
            offset += codes + numbers
        if offset > size:
            raise ValueError("the lists are longer than their file")
        # The pages are in memory; threads that fetch them would cost more than the scan.
        mapped.prefetch_nthread = 0
        mapped.do_mmap()
        scanner._mapped = mapped
        scanner._index.replace_invlists(mapped, False)
        scanner._index.ntotal = int(list_rows.sum())
        return scanner

    @property
    def rows(self) -> int:
        """Rows that were coded."""
        return int(self._index.ntotal)

    def add(self, rows: np.ndarray, *, threads: int) -> None:
        """Code further rows (n, D) float32, numbered on from those before."""
        with threads_of(threads):
            self._index.add(np.ascontiguousarray(rows, dtype=np.float32))

    @property
    def list_rows(self) -> np.ndarray:
        """How many rows each cell has: (c,) int64."""
        lists = self._index.invlists
        return np.array([lists.list_size(cell) for cell in range(len(self.codebook.cells))], dtype=np.int64)

    def numbers(self, cell: int) -> np.ndarray:
        """Return the rows of a cell: (n,) int64."""
        lists = self._index.invlists
        size = lists.list_size(cell)
        return faiss_library().rev_swig_ptr(lists.get_ids(cell), size).copy() if size else np.empty(0, dtype=np.int64)

    def list_chunks(self) -> Iterator[memoryview]:
        """Yield what `over_file` maps: of each cell the codes of whole blocks, then the row numbers."""
        faiss, lists = faiss_library(), self._index.invlists
        sizes = self.list_rows
        code_bytes, number_bytes = list_bytes(sizes, self.codebook.code_bytes)
        for cell, (rows, codes, numbers) in enumerate(
            zip(sizes.tolist(), code_bytes.tolist(), number_bytes.tolist(), strict=True)
        ):
            if not rows:
                continue
            yield faiss.rev_swig_ptr(lists.get_codes(cell), codes).data
            room = np.zeros(numbers // _ROW_NUMBER_BYTES, dtype=np.int64)
            room[:rows] = self.numbers(cell)
            yield room.data.cast("B")

    def gathered(self, rows: np.ndarray, cells_of_rows: np.ndarray) -> GatheredCodes:
        """Return a copy of the codes of some rows (n,) int64; `cells_of_rows` (rows,) are the cells of all rows."""
        code_bytes = self.codebook.code_bytes
        found = np.empty((len(rows), code_bytes), dtype=np.uint8)
        cells = cells_of_rows[rows]
        order = np.argsort(cells, kind="stable")
        bounds = np.flatnonzero(np.diff(cells[order], prepend=-1))
        for start, stop in pairwise([*bounds.tolist(), len(order)]):
            mine = order[start:stop]
            cell = int(cells[mine[0]])
            numbers = self.numbers(cell)
            by_number = np.argsort(numbers)
            places = by_number[np.searchsorted(numbers[by_number], rows[mine])]
            found[mine] = unpacked(self._packed(cell, len(numbers)), places, code_bytes)
        return GatheredCodes(self.codebook.codes, found, self._metric)

    def _packed(self, cell: int, rows: int) -> np.ndarray:
        size = -(-rows // BLOCK_ROWS) * BLOCK_ROWS * self.codebook.code_bytes
        packed: np.ndarray = faiss_library().rev_swig_ptr(self._index.invlists.get_codes(cell), size)
        return packed

    def distances(self, queries: np.ndarray) -> np.ndarray:
        """Return how far each cell is from queries (n, D) float32, in lengths of rows: (n, c) float32.

        For products that is how far the cell lies in the direction of the query, less than 0.
        """
        products: np.ndarray = queries @ self.codebook.cells.T
        if self._metric == "cosine":
            products *= -1.0
            return products
        squares = np.einsum("ij,ij->i", queries, queries)[:, np.newaxis]
        if self._metric == "ip":
            products /= -np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny))
            return products
        products *= -2.0
        products += squares
        products += self._cell_norms
        np.maximum(products, 0.0, out=products)
        np.sqrt(products, out=products)
        return products

    def scan(
        self,
        queries: np.ndarray,
        cells: np.ndarray,
        *,
        count: int,
        selected: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return up to `count` rows for each of queries (n, D) float32 from its `cells` (n, p) int64; -1 is none.

        (n, count) int64, best first as far as codes can tell, -1 where there are no more. `selected` has one bit a row,
        the lowest row in the lowest bit, and leaves the other rows out.
        """
        faiss = faiss_library()
        probes = cells.shape[1]
        if selected is None:
            parameters = self._parameters.get(probes)
            if parameters is None:
                parameters = self._parameters[probes] = faiss.SearchParametersIVF(nprobe=probes)
        else:
            selector = faiss.IDSelectorBitmap(len(selected), faiss.swig_ptr(selected))
            parameters = faiss.SearchParametersIVF(nprobe=probes)
            parameters.sel = selector
        # What is known of the cells counts for nothing: codes are of rows, not of what is left of them in a cell.
        distances = np.zeros(cells.shape, dtype=np.float32)
        goodness = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        self._index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            count,
            faiss.swig_ptr(cells),
            faiss.swig_ptr(distances),
            faiss.swig_ptr(goodness),
            faiss.swig_ptr(rows),
            False,
            parameters,
        )
        return rows
