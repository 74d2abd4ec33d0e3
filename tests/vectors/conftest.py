"""A shard copy of its own for each test, on a real database, with its files in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import orjson
import pytest

from mlvdb_site.node import NodeFiles
from vectors import runtime
from vectors.engine import ids
from vectors.engine.digest import view_digest
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor, VectorBatch, selection
from vectors.services import ensure_local_shard
from vectors.store import recovery
from vectors.store.checkpoint import CheckpointResult, checkpoint_run
from vectors.store.merging import MergeResult, merge_run


@dataclass
class Shard:
    """The node under test, seen from the query processor down."""

    head: ShardHead
    queries: LocalQueryProcessor

    def checkpoint(self) -> CheckpointResult | None:
        """Checkpoint now."""
        return checkpoint_run(self.head.uid, owner="test")

    def merge(self, *, tiers_alone: bool = False) -> MergeResult | None:
        """Merge and index now, taking the log to be at rest."""
        return merge_run(self.head.uid, owner="test", rest_s=0.0, tiers_alone=tiers_alone)

    def restart(self) -> None:
        """Throw the engines away, as a killed process does."""
        runtime.reset()

    def digest(self, namespace: str) -> tuple[int, str] | None:
        """Rows and digest of a namespace, read from disk by a second reader."""
        view = recovery.open_shard(self.head.pk).engine.view(namespace)
        return None if view is None else view_digest(view)

    def served_digest(self, namespace: str) -> tuple[int, str] | None:
        """Rows and digest of a namespace as this process serves it."""
        self.queries.count(namespace=namespace)
        opened = runtime.runtime().shard(self.head.pk).opened
        assert opened is not None
        view = opened.engine.view(namespace)
        return None if view is None else view_digest(view)


@pytest.fixture
def shard(transactional_db, settings, tmp_path) -> Iterator[Shard]:
    """An empty shard copy."""
    files = NodeFiles(tmp_path / "node")
    files.create()
    settings.NODE_FILES = files
    runtime.reset()
    yield Shard(ensure_local_shard(), LocalQueryProcessor())
    runtime.reset()


@pytest.fixture
def small_indexes(settings) -> None:
    """Segments of a few hundred rows get an index."""
    settings.MLVDB_INDEX_MIN_ROWS = 300
    settings.MLVDB_INDEX_THREADS = 1


@pytest.fixture
def batch() -> Callable[..., VectorBatch]:
    """Make rows: ids from `start`, deterministic values."""

    def make(start: int, count: int, *, dimension: int = 4, seed: int = 0, **metadata: object) -> VectorBatch:
        rng = np.random.default_rng([seed, start])
        return VectorBatch(
            [ids.key_of(number) for number in range(start, start + count)],
            rng.standard_normal((count, dimension), dtype=np.float32),
            [orjson.dumps({"n": number, **metadata}) for number in range(start, start + count)],
        )

    return make


@pytest.fixture
def served(shard) -> Iterator[Shard]:
    """The shard copy, also behind the views of this process: they keep their query processor from test to test."""
    selection._instance.cache_clear()
    yield shard
    selection._instance.cache_clear()
