"""The whole loop on real indexes: an index that knew no queries is found out by real ones, and mended with them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vectors.conftest import Shard
from vectors import measuring, runtime
from vectors.engine import ids
from vectors.engine.parts import FrozenPart
from vectors.models import Namespace, RecallMeasure
from vectors.query_processor import SearchRequest, VectorBatch
from vectors.recall import requests
from vectors.recall.samples import sample_of
from vectors.store import recovery
from vectors.store.merging import merge_run

ROWS, DIMENSION = 12_000, 64


@pytest.fixture
def passages(shard, settings) -> np.ndarray:
    """Rows in clusters, all indexed; the queries that will be asked, apart from all of them, are returned."""
    settings.MLVDB_INDEX_MIN_ROWS = 1000
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((150, DIMENSION)).astype(np.float32)
    noise = 0.6 * rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    rows = centres[rng.integers(0, len(centres), ROWS)] + noise
    shard.queries.namespace_put("passages", dimension=DIMENSION)
    for start in range(0, ROWS, 4000):
        keys = [ids.key_of(number) for number in range(start, start + 4000)]
        batch = VectorBatch(keys, np.ascontiguousarray(rows[start : start + 4000]), [b"{}"] * 4000)
        shard.queries.upsert_many(batch, namespace="passages")
    shard.checkpoint()
    assert merge_run(shard.head.uid, owner="test", rest_s=0.0).indexed
    shard.restart()
    return rng.standard_normal((400, DIMENSION)).astype(np.float32)


def ask(shard: Shard, queries: np.ndarray) -> list[list[bytes]]:
    """Search as clients do, and have what was sampled written; return the keys found."""
    found = []
    for query in queries:
        answer = shard.queries.find_similar(SearchRequest(query=query, top_k=10), namespace="passages")
        found.append([hit.key for hit in answer.value])
    reservoir = runtime.runtime().queries
    reservoir.timer = lambda: float("inf")
    reservoir.flush()
    del reservoir.timer
    return found


def recall_of(shard: Shard, queries: np.ndarray, found: list[list[bytes]]) -> float:
    """What share of the true neighbours searches have found, by searches that are exact."""
    exact = shard.queries.search_batch(
        [SearchRequest(query=query, top_k=10, exact=True) for query in queries], namespace="passages"
    ).value
    shares = [len({hit.key for hit in truth} & set(keys)) / 10 for truth, keys in zip(exact, found, strict=True)]
    return float(np.mean(shares))


def measure(shard: Shard) -> RecallMeasure:
    [found] = measuring.recall_measure(shard.head, owner="test")
    return found


def test_queries_unlike_the_rows_are_found_out_and_the_index_is_mended_with_them(shard, passages):
    first, later = passages[:200], passages[200:]
    by_rows = measure(shard)
    assert (by_rows.is_real, by_rows.is_short) == (False, False)

    for start in range(0, 200, 25):
        ask(shard, first[start : start + 25])
    sampled = sample_of(Namespace.objects.get().uid, DIMENSION)
    assert sampled is not None
    assert {bytes(query) for query in sampled} == {bytes(query) for query in first}

    by_queries = measure(shard)
    assert (by_queries.is_real, by_queries.is_short, by_queries.queries) == (True, True, 200)
    assert by_queries.recall == pytest.approx(recall_of(shard, first, ask(shard, first)), abs=1e-9)
    assert [wish.reason for wish in requests.pending(shard.head.pk).values()] == ["measured"]

    assert merge_run(shard.head.uid, owner="test", rest_s=0.0).indexes == 1
    shard.restart()
    assert requests.pending(shard.head.pk) == {}
    mended = measure(shard)
    assert (mended.is_real, mended.is_short) == (True, False)
    # Of queries that nobody had asked before: 2,000 neighbours, a standard error of about 0.003.
    assert recall_of(shard, later, ask(shard, later)) >= 0.98


def test_a_raised_target_has_the_index_tuned_anew_and_a_lowered_one_has_not(shard, passages):
    shard.queries.namespace_put("passages", recall_target=0.999)
    assert [wish.reason for wish in requests.pending(shard.head.pk).values()] == ["target"]
    assert merge_run(shard.head.uid, owner="test", rest_s=0.0).indexes == 1
    assert requests.pending(shard.head.pk) == {}
    assert tuned_for(shard) in (0.999, None)

    before = tuned_for(shard)
    shard.queries.namespace_put("passages", recall_target=0.95)
    assert requests.pending(shard.head.pk) == {}
    if before is not None:
        assert merge_run(shard.head.uid, owner="test", rest_s=0.0).indexes == 0
        assert tuned_for(shard) == before


def tuned_for(shard: Shard) -> float | None:
    """The target that the one segment's index was built for; None where no setting reached it."""
    view = recovery.open_shard(shard.head.pk).engine.view("passages")
    assert view is not None
    [part] = view.frozen
    assert isinstance(part.part, FrozenPart)
    return None if part.part.index is None else part.part.index.summary["recall_target"]
