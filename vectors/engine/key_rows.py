"""Which row of a segment a key is: by hash, over arrays that are mapped from its files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vectors.engine.packed import PackedBytes


class KeyRows:
    """`keys` row by row; their hashes in order, `sorted_hashes` (n,) uint64, and the row of each, `hash_rows` (n,)."""

    def __init__(self, keys: PackedBytes, sorted_hashes: np.ndarray, hash_rows: np.ndarray) -> None:
        self._keys = keys
        self._sorted_hashes, self._hash_rows = sorted_hashes, hash_rows

    def find(self, keys: Sequence[bytes], hashes: np.ndarray) -> np.ndarray:
        """Return the row of each key, -1 where there is none: (n,) int64. `hashes` are those of `keys`."""
        found = np.full(len(keys), -1, dtype=np.int64)
        total = len(self._sorted_hashes)
        if not total:
            return found
        positions = np.searchsorted(self._sorted_hashes, hashes)
        inside = np.minimum(positions, total - 1)
        for asked in np.flatnonzero(self._sorted_hashes[inside] == hashes).tolist():
            position, key = int(positions[asked]), keys[asked]
            while position < total and self._sorted_hashes[position] == hashes[asked]:
                row = int(self._hash_rows[position])
                if self._keys[row] == key:
                    found[asked] = row
                    break
                position += 1
        return found
