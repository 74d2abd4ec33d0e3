"""What an index is made of, and for which rows none is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.index.segments import clustered, indexed, segment, view_of
from vectors.engine import index
from vectors.engine.distances import Metric, Query
from vectors.engine.index.scanner import Codebook, Scanner, train
from vectors.engine.parts import PartView
from vectors.engine.search import Wanted, search
from vectors.engine.selection import Selection


def built_of(values: np.ndarray, metric="cosine", **options):
    options = {"recall_target": 0.95, "queries": None, "threads": 1} | options
    return index.build(segment(values), metric=metric, **options)


def test_the_same_rows_give_the_same_file() -> None:
    values = clustered(3000, 32)

    first, second = (built_of(values, threads=1) for _ in range(2))

    def without_time(built) -> bytes:
        built.summary = {**built.summary, "built_s": 0}
        return b"".join(map(bytes, built.chunks()))

    assert without_time(first) == without_time(second)


def test_the_summary_says_what_was_built() -> None:
    values = clustered(3000, 31)

    summary = built_of(values, queries=values[:40] + np.float32(0.01)).summary

    assert (summary["rows"], summary["dimension"], summary["metric"], summary["queries"]) == (3000, 31, "cosine", 40)
    assert summary["recall"] >= 0.9
    assert summary["recall_target"] == 0.95


def test_settings_suit_real_queries_that_are_unlike_the_rows(tmp_path: Path) -> None:
    values = clustered(6000, 48)
    real = np.random.default_rng(1).normal(size=(200, 48)).astype(np.float32)
    part = segment(values)
    built = index.build(part, metric="cosine", recall_target=0.98, queries=real[:100], threads=1)
    assert built is not None
    path = tmp_path / "index.bin"
    path.write_bytes(b"".join(map(bytes, built.chunks())))
    part.index = index.open_index(path)
    view = view_of(part, recall_target=0.98)

    shares = []
    for row in real[100:]:
        query = Query.of(row, "cosine")
        truth = {item.key for item in search(view, Wanted(query, 10, exact=True)).found}
        shares.append(len(truth & {item.key for item in search(view, Wanted(query, 10)).found}) / 10)

    assert np.mean(shares) >= 0.97


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.zeros((2000, 16), np.float32), id="all zero"),
        pytest.param(np.full((2000, 16), 2e18, np.float32), id="beyond float32 products"),
        pytest.param(clustered(200, 16), id="too few"),
    ],
)
def test_there_is_no_index_of_rows_that_codes_cannot_tell_apart(values: np.ndarray) -> None:
    assert built_of(values) is None


def test_rows_that_are_all_equal_are_searched_exactly() -> None:
    values = np.ones((5000, 16), np.float32)
    part = segment(values)
    built = index.build(part, metric="cosine", recall_target=0.95, queries=None, threads=1)

    assert built is None
    found = search(view_of(part), Wanted(Query.of(values[0], "cosine"), 5)).found
    assert [item.row for item in found] == [0, 1, 2, 3, 4]


def test_zero_rows_and_duplicates_among_others_are_found(tmp_path: Path) -> None:
    values = clustered(6000, 32)
    values[100] = 0
    values[200:220] = values[5]
    part = segment(values)
    indexed(part, tmp_path)

    found = search(view_of(part), Wanted(Query.of(values[5], "cosine"), 21)).found

    assert [item.row for item in found] == [5, *range(200, 220)]


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 16, 17, 129, 1000])
def test_any_dimension_is_answered(dimension: int, tmp_path: Path) -> None:
    values = clustered(1500, dimension)
    part = segment(values)
    built = index.build(part, metric="l2", recall_target=0.9, queries=None, threads=1)
    if built is not None:
        path = tmp_path / "index.bin"
        path.write_bytes(b"".join(map(bytes, built.chunks())))
        part.index = index.open_index(path)
    view = view_of(part, metric="l2", recall_target=0.9)

    shares = []
    for row in values[:40]:
        query = Query.of(row + np.float32(0.05), "l2")
        truth = {item.key for item in search(view, Wanted(query, 10, exact=True)).found}
        shares.append(len(truth & {item.key for item in search(view, Wanted(query, 10)).found}) / 10)

    assert np.mean(shares) >= 0.9


def test_lists_in_a_file_scan_as_those_in_memory(tmp_path: Path) -> None:
    values = clustered(2500, 30)
    codebook = train(values, cells=20, dimensions_per_code=2, by_direction=False, seed=1, threads=1)
    memory = Scanner(codebook, "l2")
    memory.add(values, threads=1)
    path = tmp_path / "lists"
    path.write_bytes(bytes(64) + b"".join(map(bytes, memory.list_chunks())))

    mapped = Scanner.over_file(
        codebook, "l2", path=path, offset=64, size=path.stat().st_size, list_rows=memory.list_rows
    )

    queries = values[:50]
    assert mapped.rows == 2500
    every = np.argsort(memory.distances(queries), axis=1)
    some = np.ascontiguousarray(every[:, :5])
    assert np.array_equal(memory.scan(queries, some, count=30), mapped.scan(queries, some, count=30))
    chosen = np.packbits(np.arange(2500) % 3 == 0, bitorder="little")
    rows = mapped.scan(queries, every, count=30, selected=chosen)
    assert not (rows % 3).any()


def test_cells_that_are_none_are_not_scanned() -> None:
    values = clustered(2500, 30)
    codebook = train(values, cells=20, dimensions_per_code=2, by_direction=False, seed=1, threads=1)
    scanner = Scanner(codebook, "l2")
    scanner.add(values, threads=1)

    rows = scanner.scan(values[:2], np.array([[3, -1, -1], [4, 5, 6]]), count=2500)

    assert set(rows[0][rows[0] >= 0]) == set(scanner.numbers(3))
    assert set(rows[1][rows[1] >= 0]) == {row for cell in (4, 5, 6) for row in scanner.numbers(cell)}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_distances_order_cells_as_the_metric_does(metric: Metric) -> None:
    generator = np.random.default_rng(5)
    cells = generator.normal(size=(20, 8)).astype(np.float32)
    queries = generator.normal(size=(30, 8)).astype(np.float32)

    found = Scanner(Codebook(cells, np.zeros((4, 16, 2))), metric).distances(queries)

    goodness = -np.linalg.norm(queries[:, None] - cells, axis=2) if metric == "l2" else queries @ cells.T
    assert np.array_equal(np.argsort(found, axis=1), np.argsort(-goodness, axis=1))


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    part = segment(clustered(1500, 16))
    indexed(part, tmp_path)
    path = tmp_path / "index.bin"
    whole = path.read_bytes()

    for altered in (b"", whole[:10], whole[:200], b"x" * 500, whole[: len(whole) // 2], whole[:40] + b"\0" * 60):
        path.write_bytes(altered)
        with pytest.raises(ValueError):
            index.open_index(path)


def test_lists_that_name_rows_the_segment_has_not_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever fetches the rows does not look again."""
    part = segment(clustered(12_000, 64))
    opened = indexed(part, tmp_path)
    query = Query.of(part.matrix[7], "cosine")
    everything = Selection(PartView(part, part.rows, None), None)
    asked = {"k": 1, "recall": 0.9, "selection": everything}
    assert 7 in opened.propose(query, **asked)

    for row, is_there in ((part.rows - 1, True), (part.rows, False), (1 << 40, False)):
        monkeypatch.setattr(opened._scanner, "scan", lambda *_, row=row, **__: np.array([[row, 7, -1]], dtype=np.int64))
        proposed = opened.propose(query, **asked)
        assert (proposed is not None) is is_there


def test_without_faiss_nothing_is_built_and_nothing_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = segment(clustered(1500, 16))
    indexed(part, tmp_path)
    monkeypatch.setattr("vectors.engine.index.building.available", lambda: False)
    monkeypatch.setattr("vectors.engine.index.segment_index.available", lambda: False)

    assert index.build(part, metric="cosine", recall_target=0.95, queries=None, threads=1) is None
    with pytest.raises(ValueError, match="faiss is not installed"):
        index.open_index(tmp_path / "index.bin")
