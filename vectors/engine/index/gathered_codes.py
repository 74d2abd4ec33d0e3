"""Codes of some rows side by side: what a filter selects, scanned without looking at any other row.

A scan that leaves rows out pays for all the rows it passes, and for finding out which ones count; where a filter comes
again and again, a copy of the codes of its rows costs little and is scanned from end to end.
"""

from __future__ import annotations

import numpy as np

from vectors.engine.distances import Metric
from vectors.engine.fetching import faiss_library

BLOCK_ROWS = 32
"""Rows whose codes are interleaved."""

_BITS = 4
_LOW = (1 << _BITS) - 1
_HALF = BLOCK_ROWS // 2
# In a block two quantizers have 32 bytes, 16 each. The low halves of the 16 bytes are of the first 16 rows in the order
# 0, 8, 1, 9, …, and the high halves of the others in the same order: so one instruction looks up all of them.
_PLACE = np.empty(_HALF, dtype=np.int64)
_PLACE[np.arange(_HALF) // 2 + _HALF // 2 * (np.arange(_HALF) % 2)] = np.arange(_HALF)


def unpacked(packed: np.ndarray, places: np.ndarray, code_bytes: int) -> np.ndarray:
    """Return the codes of the rows at some `places` (n,) int64 of a list: (n, code_bytes) uint8, two codes a byte.

    `packed` are the bytes of the list in whole blocks.
    """
    blocks = packed.reshape(-1, code_bytes, BLOCK_ROWS)
    block, within = places // BLOCK_ROWS, places % BLOCK_ROWS
    byte = _PLACE[within % _HALF]
    shift = (within // _HALF * _BITS).astype(np.uint8)[:, np.newaxis]
    first = (blocks[block, :, byte] >> shift) & _LOW
    second = (blocks[block, :, byte + _HALF] >> shift) & _LOW
    codes: np.ndarray = first | (second << _BITS)
    return codes


class GatheredCodes:
    """The codes (n, code_bytes) uint8 of some rows by a codebook `codes` (m, 16, D // m) float32. Thread-safe."""

    def __init__(self, codes: np.ndarray, packed: np.ndarray, metric: Metric) -> None:
        faiss = faiss_library()
        quantizers, _, dimensions = codes.shape
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        plain = faiss.IndexPQ(quantizers * dimensions, quantizers, _BITS, kind)
        faiss.copy_array_to_vector(codes.reshape(-1), plain.pq.centroids)
        faiss.copy_array_to_vector(packed.reshape(-1), plain.codes)
        plain.ntotal, plain.is_trained = len(packed), True
        self._index = faiss.IndexPQFastScan(plain, BLOCK_ROWS)
        self.rows = len(packed)

    def nearest(self, query: np.ndarray, count: int) -> np.ndarray:
        """Return the places of the up to `count` rows that seem nearest to a query (1, D) float32; -1 is none."""
        faiss = faiss_library()
        goodness = np.empty((1, count), dtype=np.float32)
        places = np.empty((1, count), dtype=np.int64)
        self._index.search_c(1, faiss.swig_ptr(query), count, faiss.swig_ptr(goodness), faiss.swig_ptr(places), None)
        found: np.ndarray = places[0]
        return found
