"""Filters: columns of a segment come from its file, select what built ones do, and take no memory of the process."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.segment_columns import columns_of_segment, file_of, sorted_ids, stored, written
from tests.engine.test_filter_masks import FILTERS, ROWS
from vectors.engine.filters import ColumnBudget, Columns, mask, matches, parse_filter
from vectors.engine.filters.sections import MAGIC
from vectors.engine.filters.stored import StoredColumns, write_columns
from vectors.engine.filters.text_runs import TextRuns
from vectors.engine.ids import key_of

COUNT = 4000
DOCUMENTS = [
    {
        "n": row,
        "price": row / 7,
        "color": ("red", "green", "blue")[row % 3],
        "sku": f"sku-{row * 7919 % COUNT:06}-é",
        "tags": [f"t{row % 5}", row % 4],
        "author": {"country": "DE" if row % 2 else "FR", "awards": [{"year": 1990 + row % 30}]},
        **({"rare": True} if row % 1000 == 0 else {}),
    }
    for row in range(COUNT)
]
METADATA = [orjson.dumps(document) for document in DOCUMENTS]
KEYS = sorted(key_of(row if row % 2 else f"row {row}") for row in range(COUNT))
OBJECTS: list[dict[str, Any]] = [
    {"n__range": [100, 300]},
    {"price__lt": 100, "color": "red"},
    {"color__in": ["blue", "green", "none"]},
    {"sku": "sku-000077-é"},
    {"sku__range": ["sku-001000", "sku-002000"]},
    {"sku__startswith": "sku-0019"},
    {"sku__contains": "77"},
    {"sku__endswith": "9-é"},
    {"sku__icontains": "-É"},
    {"sku__in": [f"sku-{row:06}-é" for row in range(0, 9000, 30)]},
    {"tags__contains": 3, "tags": "t2"},
    {"author.country__ne": "DE"},
    {"author.awards.year__gte": 2015},
    {"author__isnull": False, "rare__isnull": True},
    {"rare": True},
    {"nobody": 1},
    {"nobody.has.this__isnull": True},
]


def unreadable(start: int, stop: int) -> Sequence[bytes]:
    raise AssertionError("rows were read")


def expected(obj: dict[str, Any], metadata: Sequence[bytes] = METADATA) -> list[bool]:
    parsed = parse_filter(obj)
    return [matches(parsed, *row) for row in zip(metadata, KEYS, strict=False)]


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, filters=st.lists(FILTERS, min_size=1, max_size=4), data=st.data())
def test_columns_of_a_file_select_what_the_reference_does(
    rows: list[tuple[dict[str, Any], int | str]], filters: list[dict[str, Any]], data: st.DataObject
) -> None:
    by_key = {key_of(row_id): orjson.dumps(document) for document, row_id in rows}
    keys = sorted(by_key)
    metadata = [by_key[key] for key in keys]
    columns_file = file_of(
        metadata,
        max_paths=data.draw(st.sampled_from([64, 3, 1, 0])),
        build_bytes=data.draw(st.sampled_from([1 << 20, 400, 0])),
    )
    columns = columns_of_segment(
        metadata, keys, columns=columns_file, budget=data.draw(st.just(None) | st.builds(lambda: ColumnBudget(0)))
    )
    for n in data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=3)):
        for obj in filters:
            parsed = parse_filter(obj)
            rows_of_n = list(zip(metadata[:n], keys[:n], strict=True))
            assert mask(parsed, columns, len(rows_of_n)).tolist() == [matches(parsed, *row) for row in rows_of_n]


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: repr(obj)[:60])
def test_a_filter_on_columns_of_a_file_reads_no_row(tmp_path: Path, obj: dict[str, Any]) -> None:
    columns = Columns(unreadable, unreadable, stored=written(tmp_path / "columns.bin", METADATA))
    assert mask(parse_filter(obj), columns, COUNT).tolist() == expected(obj)


def test_ids_in_order_need_no_column() -> None:
    columns = Columns(unreadable, unreadable, sorted_ids=sorted_ids(KEYS))
    for obj in (
        {"id__lt": 101},
        {"id__in": [*range(0, 2 * COUNT, 3), *(f"row {row}" for row in range(0, COUNT, 5))]},
        {"id__startswith": "row 2"},
        {"NOT": {"id__range": ["row 1", "row 5"]}},
    ):
        found = mask(parse_filter(obj), columns, COUNT)
        assert 0 < found.sum() < COUNT
        assert found.tolist() == expected(obj)
        assert mask(parse_filter({"OR": [obj]}), columns, 10).tolist() == expected(obj)[:10]


def test_mapped_columns_take_nothing_of_the_budget(tmp_path: Path) -> None:
    budget = ColumnBudget(None)
    columns = Columns(unreadable, unreadable, budget=budget, stored=written(tmp_path / "columns.bin", METADATA))
    for obj in OBJECTS:
        mask(parse_filter(obj), columns, COUNT)
    assert budget.nbytes == sum(COUNT + parse_filter(obj).size_bytes for obj in OBJECTS)


def test_a_file_that_was_removed_is_read_on_by_those_who_have_it(tmp_path: Path) -> None:
    path = tmp_path / "columns.bin"
    columns = written(path, METADATA)
    assert columns.nbytes == path.stat().st_size > 128 * 1024  # mapped, not read
    path.unlink()
    for obj in OBJECTS:
        found = mask(parse_filter(obj), Columns(unreadable, unreadable, stored=columns), COUNT)
        assert found.tolist() == expected(obj)


def test_the_most_frequent_paths_get_columns_and_the_others_are_built() -> None:
    documents = [{f"k{number}": row for number in range(100) if row % (number + 1) == 0} for row in range(200)]
    metadata = [orjson.dumps(document) for document in documents]
    read = 0

    def metadata_of(start: int, stop: int) -> Sequence[bytes]:
        nonlocal read
        read += stop - start
        return metadata[start:stop]

    file = stored(file_of(metadata, max_paths=10))
    assert sorted(file.paths) == sorted(f"k{number}" for number in range(10))
    columns = Columns(metadata_of, unreadable, stored=file)
    for number, reads in ((9, 0), (10, 200), (99, 400), (100, 400)):
        obj = {f"k{number}__gte": 50}
        assert mask(parse_filter(obj), columns, 200).tolist() == expected(obj, metadata)
        assert read == reads, number
    both = {"k9__gte": 50, "k11__isnull": False}
    assert mask(parse_filter(both), columns, 200).tolist() == expected(both, metadata)


def test_more_paths_than_can_be_counted_are_answered_from_metadata() -> None:
    rows = 4096  # with "n" one path too many, at the last row
    metadata = [orjson.dumps({f"user {row}": row, "n": row}) for row in range(rows)]
    data = file_of(metadata)
    assert "n" in stored(data).paths
    columns = columns_of_segment(metadata, [key_of(row) for row in range(rows)], columns=data)
    for row in range(0, rows, 500):
        assert np.flatnonzero(mask(parse_filter({f"user {row}": row}), columns, rows)).tolist() == [row]
    assert mask(parse_filter({"n__lt": 5, "nobody__isnull": True}), columns, rows).sum() == 5


def test_paths_that_no_filter_can_name_get_no_column() -> None:
    deep: dict[str, Any] = {"end": 1}
    for _ in range(40):
        deep = {"x": deep}
    file = stored(file_of([orjson.dumps({"id": 7, "": 1, "a": 1, "long" * 300: 1, "deep": deep})]))
    assert {"a", "deep", "deep.x.x"} <= set(file.paths)
    assert max(path.count(".") for path in file.paths) == 31
    assert not {"id", "", "long" * 300} & set(file.paths)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9])
def test_files_of_few_rows_and_of_none(rows: int) -> None:
    columns = columns_of_segment(METADATA[:rows], KEYS[:rows])
    for obj in OBJECTS:
        assert mask(parse_filter(obj), columns, rows).tolist() == expected(obj, METADATA[:rows])


def test_no_other_file_is_taken_for_columns(tmp_path: Path) -> None:
    whole = file_of(METADATA[:300])
    path = tmp_path / "columns.bin"
    other_format = MAGIC.replace(b"1", b"2")
    directory = whole.index(b'{"rows"')
    altered = [
        b"",
        b"{}",
        MAGIC,
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b" ",
        other_format + whole[len(MAGIC) :],
        whole[: -len(MAGIC)] + other_format,
        whole[:directory] + whole[directory:].replace(b'"rows"', b'"Rows"', 1),
        whole[:directory] + whole[directory:].replace(b"<f8", b"<i8"),
        whole[:directory] + whole[directory:].replace(b'"price"', b'"prize"'),
    ]
    for data in altered:
        path.write_bytes(data)
        with pytest.raises(ValueError):
            StoredColumns.open(path)
    path.write_bytes(whole)
    assert StoredColumns.open(path).rows == 300
    with pytest.raises(OSError):
        StoredColumns.open(tmp_path / "missing.bin")


@pytest.mark.parametrize("run_strings", [1, 2, 7, 1000])
def test_strings_sorted_in_runs_are_the_strings_sorted_at_once(run_strings: int) -> None:
    random = np.random.default_rng(run_strings)
    texts = ["".join(random.choice(list("aé😀\x00z"), size=random.integers(0, 4))) for _ in range(500)]
    runs = TextRuns(run_strings=run_strings)
    for start in range(0, 500, 3):
        runs.extend_texts(range(start, min(start + 3, 500)), texts[start : start + 3])
    buffer, offsets = runs.merge()
    distinct = sorted(set(texts))
    assert bytes(buffer) == b"".join(text.encode() + b"\xff" for text in distinct)
    assert [distinct[place] for place in runs.values.view.tolist()] == texts
    assert offsets.tolist() == np.cumsum([0, *(len(text.encode()) + 1 for text in distinct)]).tolist()


def test_memory_for_building_is_bounded_whatever_the_strings_are() -> None:
    build_bytes = 6 * 1024 * 1024
    metadata = [
        orjson.dumps({"short": row % 7, "long": f"{row:06}" * 100, "sku": f"{row:06}", "other": {"deep": f"{row}"}})
        for row in range(20_000)
    ]
    tracemalloc.start()
    try:
        data = [bytes(piece) for piece in write_columns(metadata, build_bytes=build_bytes)]
        kept = sum(map(len, data))
        peak = tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()
    file = stored(b"".join(data))
    # The long texts do not fit, and are left out; each of the others fits alone.
    assert sorted(file.paths) == ["other", "other.deep", "short", "sku"]
    assert file.column("long") is None
    assert peak < 2 * build_bytes, f"{peak / build_bytes:.1f} times the memory"
    columns = columns_of_segment(metadata, [key_of(row) for row in range(20_000)], columns=b"".join(data))
    assert np.flatnonzero(
        mask(parse_filter({"long__startswith": "00777", "sku__gte": "007775"}), columns, 20_000)
    ).tolist() == list(range(7775, 7780))


def test_threads_share_the_columns_of_a_file(tmp_path: Path) -> None:
    columns = Columns(
        unreadable, unreadable, stored=written(tmp_path / "columns.bin", METADATA), budget=ColumnBudget(0)
    )
    truth = [expected(obj) for obj in OBJECTS]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for which in np.random.default_rng(seed).permutation(len(OBJECTS)).tolist():
            try:
                if mask(parse_filter(OBJECTS[which]), columns, COUNT).tolist() != truth[which]:
                    wrong.append(which)
            except Exception:
                wrong.append(which)
                raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
