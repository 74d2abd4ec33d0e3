"""Merges and indexes of a real node: while it is written to, searched, and its workers are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import requests

from tests.processes.at_work import AtWork
from tests.processes.node import NodeProcess, children_of, wait_for

DIMENSION = 32
SETTINGS = {
    "MLVDB_INDEX_MIN_ROWS": "1000",
    "MLVDB_TAIL_SOFT_BYTES": "256k",
    "MLVDB_TAIL_REST_BYTES": "16k",
    "MLVDB_MERGE_REST_S": "1",
    "MLVDB_INDEX_THREADS": "1",
}


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    """A node whose tails, segments and indexes are small."""
    process = NodeProcess(**SETTINGS)
    try:
        yield process.start()
    finally:
        process.close()


def rows(count: int, *, start: int = 0) -> np.ndarray:
    """Rows about some centres, the same for the same start."""
    rng = np.random.default_rng([7, start])
    centres = np.random.default_rng(3).standard_normal((12, DIMENSION))
    return (centres[rng.integers(0, 12, count)] + 0.4 * rng.standard_normal((count, DIMENSION))).astype(np.float32)


def put(node: NodeProcess, values: np.ndarray, *, start: int) -> None:
    for low in range(0, len(values), 500):
        body = [
            {"id": start + low + number, "values": row.tolist(), "metadata": {"n": start + low + number}}
            for number, row in enumerate(values[low : low + 500])
        ]
        wait_for(partial(takes, node, body), timeout_s=30, what="room in the tail")


def takes(node: NodeProcess, body: list[dict[str, object]]) -> bool:
    return requests.put(f"{node.base_url}/vectors/batch", json={"vectors": body}, timeout=30).ok


def best(values: np.ndarray, query: np.ndarray, alive: np.ndarray) -> list[int]:
    scores = values @ query / np.linalg.norm(values, axis=1)
    scores[~alive] = -np.inf
    return [int(place) for place in np.argsort(-scores)[:10]]


def search(node: NodeProcess, query: np.ndarray, **options: object) -> list[int]:
    body = {"query": query.tolist(), "top_k": 10, "with_values": False, "with_metadata": False, **options}
    answer = requests.post(f"{node.base_url}/search", json=body, timeout=30)
    answer.raise_for_status()
    return [hit["id"] for hit in answer.json()]


class Searches(AtWork):
    """An exact search for rows that are there from the beginning, `n` below 4000, again and again: one answer only."""

    def __init__(self, node: NodeProcess, query: np.ndarray, *, expected: list[int]) -> None:
        self.node, self.query, self.expected = node, query, expected
        self.answered = 0
        super().__init__([self._run], ends_within_s=30)

    def wait_for_more(self) -> None:
        """Wait until some more searches that begin now are answered."""
        enough = self.answered + 10
        self._wait(lambda: self.answered > enough, timeout_s=30, missing=lambda: "more answers")

    def _run(self) -> None:
        while not self._stop.is_set():
            assert search(self.node, self.query, exact=True, filter={"n__lt": 4000}) == self.expected
            self.answered += 1


def detail(node: NodeProcess) -> dict[str, int]:
    return dict(node.get("/namespaces", params={"detail": "1"}).json()["namespaces"][0])


def test_a_load_is_merged_and_indexed_while_workers_are_killed_and_exact_searches_answer_the_truth(
    node: NodeProcess,
) -> None:
    values = rows(12_000)
    alive = np.ones(len(values), dtype=bool)
    query = rows(1, start=99)[0]
    put(node, values[:4000], start=0)
    with Searches(node, query, expected=best(values[:4000], query, alive[:4000])) as searches:
        for start in range(4000, 12_000, 2000):
            put(node, values[start : start + 2000], start=start)
            pool = children_of(node.record["processes"]["tasks"])
            if pool:
                os.kill(pool[start // 2000 % len(pool)], signal.SIGKILL)
        doomed = list(range(4000, 12_000, 5))
        alive[doomed] = False
        assert node.post("/vectors/delete", {"ids": doomed}).json()["deleted"] == len(doomed)
        wait_for(
            lambda: (info := detail(node))["segments"] == 1 and info["indexed_rows"] == alive.sum() == info["count"],
            timeout_s=90,
            what="one segment with an index",
        )
        searches.wait_for_more()
    queries = rows(50, start=123)
    hits = [set(search(node, item)) & set(best(values, item, alive)) for item in queries]
    assert sum(map(len, hits)) >= 0.95 * 10 * len(queries)
    for item in queries:
        assert search(node, item, exact=True) == best(values, item, alive)
    text = node.get("/metrics").text
    assert 'mlvdb_shard_segments{shard="shard_0"} 1.0' in text
    assert 'mlvdb_index_faults{shard="shard_0"} 0.0' in text
    node.stop()
    verified = node.manage("verify")
    assert verified.returncode == 0, verified.stderr
    assert f"{alive.sum()} rows" in verified.stdout


@pytest.mark.long
def test_merges_go_on_without_a_broker(node: NodeProcess) -> None:
    values = rows(3000)
    put(node, values, start=0)
    for name in ("tasks", "beat"):
        os.kill(node.child(name), signal.SIGSTOP)
    try:
        for pid in children_of(node.child("tasks")):
            os.kill(pid, signal.SIGSTOP)
        put(node, rows(2500, start=3000), start=3000)
        wait_for(
            lambda: (info := detail(node))["segments"] <= 2 and info["tail_rows"] == 0,
            timeout_s=110,
            what="few segments and an empty tail",
        )
    finally:
        for name in ("tasks", "beat"):
            for pid in [node.child(name), *children_of(node.child(name))]:
                os.kill(pid, signal.SIGCONT)
    assert node.post("/count", {}).json() == {"count": 5500}
