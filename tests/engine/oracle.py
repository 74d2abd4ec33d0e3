"""The brute-force truth the engine is checked against: a dict of rows and a sort over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import orjson

from vectors.engine.filters import Filter, matches
from vectors.engine.ids import slot_of
from vectors.engine.operations import (
    ClearSlots,
    Delete,
    NamespaceDrop,
    NamespacePut,
    Operation,
    Patch,
    StartTerm,
    Upsert,
)
from vectors.engine.slots import SlotSet


@dataclass
class Oracle:
    """Namespaces as plain dicts: uid → {key: (values, metadata, seq)}."""

    rows: dict[str, dict[bytes, tuple[np.ndarray, dict, int]]] = field(default_factory=dict)

    def apply(self, seq: int, uid: str, operation: Operation) -> int:
        """Apply an operation and return how many rows it changed."""
        if isinstance(operation, NamespacePut):
            self.rows.setdefault(uid, {})
            return 0
        if isinstance(operation, NamespaceDrop):
            return len(self.rows.pop(uid, {}))
        if isinstance(operation, ClearSlots):
            slots = SlotSet(operation.slots)
            doomed_of = {space: [key for key in rows if slot_of(key) in slots] for space, rows in self.rows.items()}
            for space, keys in doomed_of.items():
                for key in keys:
                    del self.rows[space][key]
            return sum(map(len, doomed_of.values()))
        rows = self.rows.get(uid)
        if rows is None or isinstance(operation, StartTerm):
            return 0
        if isinstance(operation, Upsert):
            for key, values, metadata in zip(operation.keys, operation.values, operation.metadata, strict=True):
                rows[key] = (values.copy(), orjson.loads(metadata), seq)
            return len(operation.keys)
        if isinstance(operation, Delete):
            doomed = [
                key
                for key in dict.fromkeys(operation.keys)
                if key in rows and (operation.resolved_at is None or rows[key][2] <= operation.resolved_at)
            ]
            for key in doomed:
                del rows[key]
            return len(doomed)
        assert isinstance(operation, Patch)
        changed = 0
        for key, patch in zip(operation.keys, operation.patches, strict=True):
            if key in rows:
                values, metadata, _ = rows[key]
                rows[key] = (values, metadata | orjson.loads(patch), seq)
                changed += 1
        return changed

    def matching(self, uid: str, filter: Filter | None) -> list[bytes]:
        """Return the keys that match, in key order."""
        rows = self.rows.get(uid, {})
        return sorted(
            key
            for key, (_, metadata, _) in rows.items()
            if filter is None or matches(filter, orjson.dumps(metadata), key)
        )

    def search(
        self, uid: str, query: np.ndarray, *, k: int, metric: str, filter: Filter | None = None
    ) -> list[tuple[bytes, float]]:
        """Return the k best (key, score), equal scores by key."""
        rows = self.rows.get(uid, {})
        scored = [(key, score(rows[key][0], query, metric)) for key in self.matching(uid, filter)]
        sign = 1.0 if metric == "l2" else -1.0
        return sorted(scored, key=lambda item: (sign * item[1], item[0]))[:k]


def score(values: np.ndarray, query: np.ndarray, metric: str) -> float:
    """Return the score of one row in float64."""
    x, q = values.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return float(((x - q) ** 2).sum())
    product = float((x * q).sum())
    if metric == "ip":
        return product
    lengths = float(np.sqrt((x * x).sum() * (q * q).sum()))
    return float(np.clip(product / lengths, -1.0, 1.0)) if lengths > 0 else 0.0
