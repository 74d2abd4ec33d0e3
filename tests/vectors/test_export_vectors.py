"""`export_vectors` out of a data dir, and back in by `load_vectors`."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from django.core.management import CommandError, call_command

from vectors.engine.ids import key_of
from vectors.query_processor import VectorBatch
from vectors.transfer import exporting, places

IDS: list[Any] = [*range(-2, 8), "7", "x", "ü", "0191e4a5-0000-7000-8000-00000000000a"]
VALUES = np.random.default_rng(4).normal(size=(len(IDS), 3)).astype(np.float32)


@pytest.fixture
def filled(shard):
    """A namespace with every kind of id."""
    _fill(shard, IDS)
    return shard


def _fill(shard, ids: list[Any]) -> None:
    metadata = [orjson.dumps({"n": n, "text": "ü\n"}) for n in range(len(ids))]
    batch = VectorBatch([key_of(one) for one in ids], VALUES[: len(ids)], metadata)
    shard.queries.upsert_many(batch, namespace="from")


def _export(path: Path, **options: Any) -> str:
    out = io.StringIO()
    call_command("export_vectors", "from", str(path), stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


def _load(path: Path, **options: Any) -> None:
    call_command("load_vectors", str(path), namespace="to", stdout=io.StringIO(), stderr=io.StringIO(), **options)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.npz"])
@pytest.mark.parametrize("ids", [IDS, list(range(5)), ["a", "b\0", "b"]], ids=["mixed", "integers", "nul"])
def test_what_is_exported_is_loaded_back_the_same(shard, tmp_path, name, ids) -> None:
    _fill(shard, ids)

    text = _export(tmp_path / name, page=4)
    _load(tmp_path / name)

    assert shard.served_digest("to") == shard.served_digest("from")
    assert f"Exported {len(ids)} rows" in text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_lines_are_in_id_order_with_every_digit(filled, tmp_path) -> None:
    _export(tmp_path / "rows.jsonl.gz")

    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "rows.jsonl.gz").read_bytes()).splitlines()]
    assert [line["id"] for line in lines] == [*range(-2, 8), "0191e4a5-0000-7000-8000-00000000000a", "7", "x", "ü"]
    assert np.float32(lines[0]["values"]).tobytes() == VALUES[0].tobytes()
    assert lines[0]["metadata"] == {"n": 0, "text": "ü\n"}


def test_an_archive_is_read_by_numpy_alone(filled, tmp_path) -> None:
    _export(tmp_path / "rows.npz", filter='{"id__lt": 1000}')

    with np.load(tmp_path / "rows.npz", allow_pickle=False) as archive:
        assert archive["values"].shape == (10, 3)
        assert archive["values"].dtype == np.float32
        assert archive["ids"].tolist() == list(range(-2, 8))
        metadata = [json.loads(line) for line in archive["metadata"].tobytes().splitlines()]
    assert [row["n"] for row in metadata] == list(range(10))


def test_a_filter_chooses_rows(filled, tmp_path) -> None:
    assert "Exported 3 rows" in _export(tmp_path / "rows.jsonl", filter='{"n__lt": 3}')
    assert "Exported 0 rows" in _export(tmp_path / "none.npz", filter='{"n": -1}')
    with np.load(tmp_path / "none.npz") as archive:
        assert archive["values"].shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.csv", {}, "files are .jsonl, .jsonl.gz, .npz"),
        ("rows.jsonl", {"filter": "{"}, "not valid JSON"),
        ("rows.jsonl", {"filter": "[]"}, "must be an object"),
        ("rows.jsonl", {"filter": '{"n__nope": 1}'}, "nope"),
        ("no/such/rows.jsonl", {}, "is no directory"),
    ],
    ids=["suffix", "filter-json", "filter-list", "filter-lookup", "directory"],
)
def test_bad_input_is_refused_and_leaves_no_file(filled, tmp_path, name, options, message) -> None:
    with pytest.raises(CommandError, match=message):
        _export(tmp_path / name, **options)

    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_an_unknown_namespace_is_refused(shard, tmp_path) -> None:
    with pytest.raises(CommandError, match="there is no namespace from"):
        _export(tmp_path / "rows.jsonl")


def test_a_file_that_exists_stays_unless_asked(filled, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("mine")

    with pytest.raises(CommandError, match="--overwrite"):
        _export(path)
    assert path.read_text() == "mine"
    _export(path, overwrite=True)
    assert len(path.read_text().splitlines()) == len(IDS)


def test_an_export_that_fails_leaves_the_file_as_it_was(filled, tmp_path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("before")
    rows = places.DataDirPlace.rows

    def failing(self, namespace, **options):
        yield from list(rows(self, namespace, **options))[:5]
        raise places.PlaceError("the node is gone")

    monkeypatch.setattr(places.DataDirPlace, "rows", failing)
    with pytest.raises(CommandError, match="the node is gone"):
        _export(path, overwrite=True)

    assert path.read_text() == "before"
    assert [one for one in tmp_path.iterdir() if one.is_file()] == [path]


def test_a_full_disk_is_one_line(filled, tmp_path, monkeypatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_json_lines", full)
    with pytest.raises(CommandError, match="No space left on device"):
        _export(tmp_path / "rows.jsonl")

    assert [one for one in tmp_path.iterdir() if one.is_file()] == []
