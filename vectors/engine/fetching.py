"""Products of a vector with rows that lie anywhere in a matrix, without a copy of them where faiss is there."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

_FETCHED_BYTES = 384 * 1024


@cache
def faiss_library() -> Any:
    """Return the library, None where it is missing."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def products_of(matrix: np.ndarray, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return the float32 products of `vector` (d,) with some `rows` (n,) int64 of a matrix (m, d): (n,) float32.

    The rows have to be there: faiss does not look. Nothing is said of the order of additions.
    """
    library = faiss_library()
    raw = np.empty(len(rows), dtype=np.float32)
    if library is not None and matrix.flags.c_contiguous and matrix.dtype == np.float32:
        library.fvec_inner_products_by_idx(
            library.swig_ptr(raw),
            library.swig_ptr(vector),
            library.swig_ptr(matrix),
            library.swig_ptr(rows),
            len(vector),
            1,
            len(rows),
        )
        return raw
    # So few rows at a time that they are still in the cache when they are multiplied.
    step = max(16, _FETCHED_BYTES // (4 * len(vector)))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        np.dot(matrix[some], vector, out=raw[start : start + len(some)])
    return raw
