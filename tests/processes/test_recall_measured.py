"""Recall on a real node: rows come in, are indexed, are searched, and what the index finds is measured by itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.processes.node import ROOT, NodeProcess, wait_for
from vectors.client import Client

ROWS, DIMENSION = 4_000, 32

_EVERY_SECOND = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
second, _ = IntervalSchedule.objects.get_or_create(every=2, period=IntervalSchedule.SECONDS)
entry = PeriodicTask.objects.get(name="recall measure")
entry.interval = second
entry.save()
"""


@pytest.mark.processes
@pytest.mark.slow
def test_a_node_measures_what_its_searches_find_with_their_own_queries():
    node = NodeProcess(MLVDB_INDEX_MIN_ROWS="1000", MLVDB_TAIL_REST_BYTES="1k", MLVDB_MERGE_REST_S="0.5")
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((40, DIMENSION)).astype(np.float32)
    rows = centres[rng.integers(0, 40, ROWS)] + 0.5 * rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    queries = centres[rng.integers(0, 40, 100)] + 0.5 * rng.standard_normal((100, DIMENSION)).astype(np.float32)
    try:
        node.start()
        # As a person does in the admin's periodic tasks; beat takes it up without a restart.
        subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "shell", "-c", _EVERY_SECOND],
            env=node.process_environ(),
            check=True,
            capture_output=True,
        )
        with Client(node.base_url) as client:
            for start in range(0, ROWS, 1000):
                client.upsert(rows[start : start + 1000], ids=list(range(start, start + 1000)), namespace="books")

            def details() -> dict[str, object]:
                [found] = client.namespace_details()
                return found

            wait_for(lambda: details()["indexed_rows"] == ROWS, timeout_s=60, what="the index")
            for query in queries:
                client.search(query, top_k=10, namespace="books")
            wait_for(lambda: details()["recall_measured_at"], timeout_s=60, what="a measure")

            def measured_with_queries() -> bool:
                text = node.session.get(f"{node.base_url}/metrics").text
                return any(
                    line.startswith("mlvdb_recall_queries{") and 20 <= float(line.split()[-1]) < 100
                    for line in text.splitlines()
                )

            # 100 are rows of its own; of 100 real queries each of two workers writes 32 at most at first.
            wait_for(measured_with_queries, timeout_s=60, what="a measure with real queries")
            assert details()["measured_recall"] >= 0.97
    finally:
        node.close()
