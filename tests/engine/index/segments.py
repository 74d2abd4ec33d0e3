"""Segments in memory, with rows that lie in clusters as those of real embeddings do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vectors.bench.engine_side import frozen_part
from vectors.engine import ids, index
from vectors.engine.distances import Metric
from vectors.engine.index import SegmentIndex
from vectors.engine.namespace import NamespaceEngine, NamespaceSpec, NamespaceView
from vectors.engine.parts import FrozenPart


def clustered(rows: int, dimension: int, *, seed: int = 0, lengths: float = 0.0) -> np.ndarray:
    """Return rows of clusters of clusters: (rows, dimension) float32; `lengths` spreads their norms, log-normally."""
    generator = np.random.default_rng(seed)
    wide = generator.normal(size=(12, dimension))
    close = wide[generator.integers(0, 12, size=200)] + 0.6 * generator.normal(size=(200, dimension))
    values = close[generator.integers(0, 200, size=rows)] + 0.5 * generator.normal(size=(rows, dimension))
    return (values * np.exp(lengths * generator.normal(size=(rows, 1)))).astype(np.float32)


def segment(values: np.ndarray, metadata: Sequence[bytes] | None = None) -> FrozenPart:
    """Return a segment of rows with the ids 0, 1, …"""
    keys = [ids.key_of(row) for row in range(len(values))]
    return frozen_part(values, keys, [b"{}"] * len(values) if metadata is None else metadata)


def indexed(
    part: FrozenPart, directory: Path, metric: Metric = "cosine", *, recall_target: float = 0.95
) -> SegmentIndex:
    """Give a segment an index that went through a file, and return it."""
    built = index.build(part, metric=metric, recall_target=recall_target, queries=None, threads=1)
    assert built is not None
    path = directory / "index.bin"
    path.write_bytes(b"".join(map(bytes, built.chunks())))
    part.index = index.open_index(path)
    return part.index


def view_of(*parts: FrozenPart, metric: Metric = "cosine", recall_target: float = 0.95) -> NamespaceView:
    """Return a namespace with these segments."""
    spec = NamespaceSpec("uid", "name", parts[0].matrix.shape[1], metric, recall_target)
    return NamespaceEngine(spec, frozen=parts).view()
