"""`load_vectors`, `export_vectors` and `bench` with a running node."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from mlvdb_site.processes.record import ServeRecord
from tests.clients.faults import FaultServer, error, pass_on
from vectors.bench import node_side
from vectors.bench.measures import RECALLS
from vectors.client import Client
from vectors.client.session import Session
from vectors.datasets import load_digits
from vectors.transfer import places

pytestmark = [pytest.mark.processes]


def _call(command: str, *arguments: Any, **options: Any) -> str:
    out = io.StringIO()
    call_command(command, *map(str, arguments), stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The digits as an array with metadata beside it."""
    digits = load_digits()
    np.save(tmp_path / "digits.npy", digits.values.astype(np.float16))
    lines = [json.dumps({"id": row_id, **row}) for row_id, row in zip(digits.ids, digits.metadata, strict=True)]
    (tmp_path / "digits.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_load_and_an_export_go_through_the_node(client: Client, node_url: str, files: Path) -> None:
    beside = {"metadata": files / "digits.jsonl", "id_field": "id"}

    text = _call("load_vectors", files / "digits.npy", namespace="d", url=node_url, **beside)

    assert f"Loaded 1,797 rows into namespace d of the node at {node_url}" in text
    assert client.get("digit-0002", namespace="d").metadata["digit"] == 1
    _call("export_vectors", "d", files / "out.npz", url=node_url)
    with np.load(files / "out.npz") as archive:
        np.testing.assert_array_equal(archive["values"], load_digits().values)
        assert archive["ids"].tolist() == load_digits().ids


def test_the_running_node_of_the_data_dir_is_the_default(client, node_url, files, monkeypatch) -> None:
    monkeypatch.setattr(places, "running_record", lambda files: ServeRecord(pid=1, url=node_url))

    text = _call("load_vectors", files / "digits.npy", namespace="d")

    assert f"of the node at {node_url}" in text
    assert client.count(namespace="d") == 1797


def test_a_resumed_load_writes_only_what_is_missing(client, node_url, files) -> None:
    _call("load_vectors", files / "digits.npy", namespace="d", url=node_url, batch=100)
    client.delete([950], namespace="d")

    text = _call("load_vectors", files / "digits.npy", namespace="d", url=node_url, batch=100, resume=True)

    assert "Loaded 897 rows" in text
    assert client.count(namespace="d") == 1797


def test_a_node_that_fails_now_and_then_is_loaded_all_the_same(
    client, node_url, files, faults: FaultServer, monkeypatch
) -> None:
    monkeypatch.setattr(Session, "sleep", staticmethod(lambda seconds: None))
    through, lost = pass_on(node_url), pass_on(node_url, keep_answer=True)
    faults.then(through, through, lost, through, error(503, "checkpoint_behind", Retry_After="1"), lost)
    faults.afterwards = through

    _call("load_vectors", files / "digits.npy", namespace="d", url=faults.url, batch=200)

    assert client.count(namespace="d") == 1797


@pytest.mark.parametrize("command", ["load_vectors", "export_vectors"])
def test_a_node_that_cannot_be_used_is_one_line(command, files, faults, monkeypatch) -> None:
    monkeypatch.setattr(Session, "sleep", staticmethod(lambda seconds: None))
    arguments = [files / "digits.npy"] if command == "load_vectors" else ["d", files / "out.jsonl"]

    faults.then(error(401, "not_authenticated"))
    with pytest.raises(CommandError, match="--api-key or MLVDB_API_KEY"):
        _call(command, *arguments, url=faults.url)
    with pytest.raises(CommandError, match="the connection broke"):
        _call(command, *arguments, url=faults.url)
    with pytest.raises(CommandError, match="base_url"):
        _call(command, *arguments, url="nonsense")


def test_bench_measures_engine_and_node_with_full_recall(client: Client, node_url: str, files: Path) -> None:
    text = _call("bench", files / "digits.npy", url=node_url, seconds=0.2, connections=2, queries=20)

    lines = text.splitlines()
    assert lines[0].startswith("1,777 rows × 64, 20 others as queries")
    searches = [line for line in lines if "exact search" in line]
    assert len(searches) == 3
    assert all(line.endswith("1.000") for line in searches)
    assert all(re.search(r"[\d,]+ searches/s +\d+\.\d\d +\d+\.\d\d", line) for line in searches)
    assert any(line.startswith("HTTP: ingest") for line in lines)
    assert client.namespaces() == []


def test_bench_takes_random_rows_and_can_leave_http_out() -> None:
    text = _call("bench", rows=500, dim=8, seconds=0.05, queries=5, engine_only=True)

    assert text.startswith("495 rows × 8, 5 others as queries")
    assert "HTTP" not in text


def test_bench_starts_a_node_of_its_own() -> None:
    text = _call("bench", rows=300, dim=8, seconds=0.1, queries=5, connections=2)

    assert "HTTP: exact search, 2 connections" in text


def test_bench_draws_recall_and_throughput_of_engine_and_node(files: Path, monkeypatch, settings) -> None:
    settings.MLVDB_INDEX_MIN_ROWS = 1000
    monkeypatch.setattr(node_side, "QUIET_S", 1.0)
    for name, value in {"INDEX_MIN_ROWS": "1000", "TAIL_REST_BYTES": "1024", "MERGE_REST_S": "0"}.items():
        monkeypatch.setenv(f"MLVDB_{name}", value)
    drawn = files / "recall.svg"

    text = _call("bench", files / "digits.npy", seconds=0.1, connections=2, queries=20, picture=drawn)

    found = {
        (side, float(recall)): float(line.split()[-1])
        for line in text.splitlines()
        for side, recall in re.findall(r"(engine|HTTP): search at recall ([\d.]+),", line)
    }
    assert {recall for _side, recall in found} == set(RECALLS)
    assert len(found) == 2 * len(RECALLS)
    # Twenty queries are few; what is promised is tested elsewhere.
    assert all(have >= asked - 0.1 for (_side, asked), have in found.items())
    assert "HTTP: ingest until indexed" in text
    svg = drawn.read_text()
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 2 * (len(RECALLS) + 1)


def test_bench_says_before_it_measures_that_a_picture_has_no_place(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no directory"):
        _call("bench", rows=500, dim=8, engine_only=True, picture=tmp_path / "none" / "recall.svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "--rows must be above 0"),
        ({"dim": -1}, "--dim must be above 0"),
        ({"seconds": 0.0}, "--seconds must be above 0"),
        ({"rows": 10, "dim": 2, "seconds": 0.01, "url": "nonsense"}, "base_url"),
        ({"rows": 10, "dim": 2, "seconds": 0.01, "url": "http://127.0.0.1:1"}, "connection refused"),
    ],
    ids=["rows", "dim", "seconds", "url", "nobody"],
)
def test_bench_refuses_what_cannot_be_measured(options, message, monkeypatch) -> None:
    monkeypatch.setattr(Session, "sleep", staticmethod(lambda seconds: None))

    with pytest.raises(CommandError, match=message):
        _call("bench", **options)


def test_bench_refuses_a_file_that_is_none(tmp_path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        _call("bench", tmp_path / "none.npy")
