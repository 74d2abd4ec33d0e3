"""Digests of contents: equal for two copies that hold the same rows, however these lie in segments and tail."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import orjson

from vectors.engine.namespace import NamespaceView

_BYTES = 16


def row_digest(key: bytes, values: np.ndarray, metadata: bytes) -> int:
    """Return the digest of one row: its key, the bytes of its (d,) float32 values, its metadata with sorted keys."""
    canonical = orjson.dumps(orjson.loads(metadata), option=orjson.OPT_SORT_KEYS)
    hashed = blake2b(digest_size=_BYTES)
    hashed.update(len(key).to_bytes(4, "big") + key)
    hashed.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    hashed.update(canonical)
    return int.from_bytes(hashed.digest(), "big")


def rows_digest(rows: Iterable[tuple[bytes, np.ndarray, bytes]]) -> tuple[int, str]:
    """Return the number of rows (key, values, metadata) and the digest of the set, in whatever order they come."""
    total, count = 0, 0
    for key, values, metadata in rows:
        total = (total + row_digest(key, values, metadata)) % (1 << 8 * _BYTES)
        count += 1
    return count, f"{total:0{2 * _BYTES}x}"


def view_digest(view: NamespaceView) -> tuple[int, str]:
    """Return the number of living rows of a namespace and their digest."""
    return rows_digest(
        (part.part.keys[row], part.part.matrix[row], part.part.metadata[row])
        for part in view.parts
        for row in (range(part.rows) if part.living is None else np.flatnonzero(part.living).tolist())
    )
