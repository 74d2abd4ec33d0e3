"""`load_vectors` into a data dir: every form of input, and every input that is refused before anything is written."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from vectors.engine.ids import id_of, key_of
from vectors.transfer import loading, places
from vectors.transfer.progress import Progress

VALUES = np.random.default_rng(11).normal(size=(25, 4)).astype(np.float32)


@pytest.fixture
def load(shard):
    """Run the command in this process; return what it printed."""

    def run(*arguments: Any, **options: Any) -> str:
        out, error = io.StringIO(), io.StringIO()
        call_command("load_vectors", *map(str, arguments), stdout=out, stderr=error, **options)
        return error.getvalue() + out.getvalue()

    return run


@pytest.fixture
def rows(shard):
    """Return {id: (values, metadata)} of a namespace."""

    def read(namespace: str = "default") -> dict[Any, tuple[np.ndarray, dict[str, Any]]]:
        page = shard.queries.scroll(namespace=namespace, limit=100_000).value
        return {id_of(one.key): (one.values, json.loads(one.metadata)) for one in page.records}

    return read


def _npy(path: Path, values: np.ndarray = VALUES) -> Path:
    np.save(path, values)
    return path


def _json_lines(path: Path, lines: list[Any]) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# Good input.


def test_an_array_is_loaded_under_its_row_numbers(load, rows, tmp_path) -> None:
    text = load(_npy(tmp_path / "v.npy"))

    found = rows()
    assert list(found) == list(range(25))
    np.testing.assert_array_equal([values for values, _ in found.values()], VALUES)
    assert "Loaded 25 rows into namespace default of the data dir" in text
    assert "rows/s" in text


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "u2", "i8"])
def test_any_numbers_become_float32(load, rows, tmp_path, dtype) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)

    load(_npy(tmp_path / "v.npy", values))

    np.testing.assert_array_equal([values for values, _ in rows().values()], np.arange(12).reshape(3, 4))


def test_an_array_in_columns_is_loaded_row_by_row(load, rows, tmp_path) -> None:
    load(_npy(tmp_path / "v.npy", np.asfortranarray(VALUES)), batch=7)

    np.testing.assert_array_equal([values for values, _ in rows().values()], VALUES)


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_metadata_and_ids_lie_beside_the_array_line_by_line(load, rows, tmp_path, name) -> None:
    lines = [{"id": f"row {n}", "n": n, "nested": {"a": [n]}} for n in range(25)]

    load(_npy(tmp_path / "v.npy"), metadata=_json_lines(tmp_path / name, lines), id_field="id", batch=10)

    found = rows()
    assert found["row 7"][1] == {"n": 7, "nested": {"a": [7]}}
    np.testing.assert_array_equal(found["row 7"][0], VALUES[7])
    assert len(found) == 25


def test_metadata_beyond_the_last_row_is_not_used_and_said_so_or_refused(load, rows, tmp_path) -> None:
    metadata = _json_lines(tmp_path / "m.jsonl", [{"n": n} for n in range(30)])
    array = _npy(tmp_path / "v.npy")

    with pytest.raises(CommandError, match="5 lines more"):
        load(array, metadata=metadata, strict=True)
    assert rows() == {}
    assert "5 lines more" in load(array, metadata=metadata)
    assert rows()[24][1] == {"n": 24}


@pytest.mark.parametrize("form", ["npy-int", "npy-text", "txt", "jsonl", "jsonl-objects", "jsonl-gz"])
def test_ids_lie_beside_the_array(load, rows, tmp_path, form) -> None:
    ids: list[Any] = [f"r{n}" for n in range(24)] + ["0191e4a5-0000-7000-8000-00000000000a"]
    path = tmp_path / "ids.npy"
    options = {}
    if form == "npy-int":
        ids = [n - 10 for n in range(25)]
        np.save(path, np.array(ids))
    elif form == "npy-text":
        np.save(path, np.array(ids))
    elif form == "txt":
        ids[3] = 42
        path = tmp_path / "ids.txt"
        path.write_text("\n".join(map(str, ids)))
    elif form == "jsonl-objects":
        path = _json_lines(tmp_path / "ids.jsonl", [{"key": one, "x": 1} for one in ids])
        options = {"id_field": "key"}
    else:
        ids[3], ids[4] = 7, "7"
        path = _json_lines(
            tmp_path / ("ids.jsonl.gz" if form == "jsonl-gz" else "ids.jsonl"), list(map(json.dumps, ids))
        )

    load(_npy(tmp_path / "v.npy"), ids=path, **options)

    found = rows()
    assert set(found) == set(ids)
    np.testing.assert_array_equal(found[ids[3]][0], VALUES[3])


def test_digits_in_a_text_of_ids_can_be_strings(load, rows, tmp_path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(f"{n:04d}" for n in range(25)))

    load(_npy(tmp_path / "v.npy"), ids=tmp_path / "ids.txt", id_type="string")

    assert "0007" in rows()


def test_json_lines_hold_everything(load, rows, tmp_path) -> None:
    path = _json_lines(
        tmp_path / "v.jsonl.gz",
        [
            {"id": 1, "values": [1, 2], "metadata": {"a": 1}},
            {"id": "x", "values": [3.5, 4], "color": "red", "n": 2},
            {"id": 2, "values": [0, 0], "metadata": None},
        ],
    )

    load(path, namespace="lines")

    found = rows("lines")
    assert {row_id: metadata for row_id, (_, metadata) in found.items()} == {
        1: {"a": 1},
        "x": {"color": "red", "n": 2},
        2: {},
    }
    np.testing.assert_array_equal(found["x"][0], [3.5, 4])


def test_fields_of_json_lines_can_have_other_names(load, rows, tmp_path) -> None:
    path = _json_lines(tmp_path / "v.jsonl", [{"key": 1, "embedding": [1, 2], "id": "other"}])

    load(path, id_field="key", values_field="embedding")

    assert rows()[1][1] == {"id": "other"}


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        ({"values": VALUES}, {}),
        ({"anything": VALUES}, {}),
        ({"a": VALUES, "b": np.eye(3)}, {"values_field": "a"}),
        ({"embeddings": VALUES, "ids": np.arange(25)}, {}),
    ],
    ids=["values", "only-one", "named", "with-ids"],
)
def test_an_archive_of_arrays_is_loaded(load, rows, tmp_path, arrays, options) -> None:
    np.savez(tmp_path / "v.npz", **arrays)

    load(tmp_path / "v.npz", **options)

    np.testing.assert_array_equal([values for values, _ in rows().values()], VALUES)


def test_an_archive_holds_metadata_as_texts(load, rows, tmp_path) -> None:
    np.savez(tmp_path / "v.npz", values=VALUES, metadata=np.array([json.dumps({"n": n}) for n in range(25)]))

    load(tmp_path / "v.npz", batch=4)

    assert rows()[24][1] == {"n": 24}


def test_a_new_namespace_gets_the_metric(load, shard, tmp_path) -> None:
    load(_npy(tmp_path / "v.npy"), namespace="far", metric="l2")

    assert [info.metric for info in shard.queries.namespace_details().value] == ["l2"]


def test_a_load_over_the_tail_limits_makes_checkpoints_on_its_way(load, rows, shard, settings, tmp_path) -> None:
    settings.MLVDB_TAIL_SOFT_BYTES = 20_000
    settings.MLVDB_TAIL_HARD_BYTES = 60_000
    values = np.random.default_rng(2).normal(size=(4_000, 16)).astype(np.float32)

    load(_npy(tmp_path / "v.npy", values), batch=100)

    assert len(rows()) == 4_000
    shard.head.refresh_from_db()
    assert shard.head.manifest > 3


# Loading again.


def test_a_load_cut_short_goes_on_where_it_stopped(load, rows, shard, tmp_path, monkeypatch) -> None:
    path = _npy(tmp_path / "v.npy")
    written: list[int] = []
    write = places.DataDirPlace.write

    def failing(self, namespace, batch):
        if batch.start == 15 and 15 not in written:
            written.append(15)
            raise KeyboardInterrupt
        written.append(batch.start)
        write(self, namespace, batch)

    monkeypatch.setattr(places.DataDirPlace, "write", failing)
    with pytest.raises(CommandError, match="--resume goes on") as caught:
        load(path, batch=5)
    assert caught.value.returncode == 130
    assert len(rows()) == 15

    text = load(path, batch=5, resume=True)

    assert written == [0, 5, 10, 15, 15, 20]
    assert "Loaded 10 rows" in text
    assert "(15 were there already)" in text
    np.testing.assert_array_equal([values for values, _ in rows().values()], VALUES)
    assert "Loaded 0 rows" in load(path, batch=5, resume=True)


@pytest.mark.parametrize("form", ["jsonl", "metadata"])
def test_a_resumed_load_takes_the_right_lines(load, rows, shard, tmp_path, form) -> None:
    lines = [{"id": f"r{n}", "n": n} for n in range(25)]
    if form == "jsonl":
        path = _json_lines(
            tmp_path / "v.jsonl", [{**line, "values": VALUES[n].tolist()} for n, line in enumerate(lines)]
        )
        options: dict[str, Any] = {}
    else:
        path = _npy(tmp_path / "v.npy")
        options = {"metadata": _json_lines(tmp_path / "m.jsonl", lines), "id_field": "id"}
    load(path, batch=10, **options)
    shard.queries.delete(namespace="default", keys=[key_of("r13")])

    text = load(path, batch=10, resume=True, **options)

    assert "Loaded 15 rows" in text
    for n in range(25):
        values, metadata = rows()[f"r{n}"]
        assert metadata == {"n": n}
        np.testing.assert_array_equal(values, VALUES[n])


def test_row_numbers_do_not_replace_the_rows_of_another_file_unasked(load, rows, tmp_path) -> None:
    load(_npy(tmp_path / "a.npy"))
    other = _npy(tmp_path / "b.npy", VALUES + 1)

    with pytest.raises(CommandError, match="--replace"):
        load(other)
    np.testing.assert_array_equal(rows()[0][0], VALUES[0])
    load(other, replace=True)
    np.testing.assert_array_equal(rows()[0][0], VALUES[0] + 1)


def test_a_load_with_ids_of_its_own_adds_and_replaces(load, rows, tmp_path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(10, 35))
    load(_npy(tmp_path / "a.npy"))

    load(tmp_path / "a.npy", ids=tmp_path / "ids.npy")

    assert len(rows()) == 35


# Bad input: each is one line that names the place, and nothing is written.


def _bad_array(**change: Any):
    def make(tmp_path: Path) -> dict[str, Any]:
        values = VALUES.astype(change.get("dtype", "f8")).copy()
        for place, value in change.get("at", {}).items():
            values[place] = value
        return {"file": _npy(tmp_path / "v.npy", change["reshape"](values) if "reshape" in change else values)}

    return make


def _bad_lines(*lines: Any, name: str = "v.jsonl", **options: Any):
    return lambda tmp_path: {"file": _json_lines(tmp_path / name, list(lines)), **options}


def _beside(what: str, lines: list[Any], name: str = "beside.jsonl", **options: Any):
    return lambda tmp_path: {"file": _npy(tmp_path / "v.npy"), what: _json_lines(tmp_path / name, lines), **options}


def _file(name: str, content: bytes, **options: Any):
    def make(tmp_path: Path) -> dict[str, Any]:
        (tmp_path / name).write_bytes(content)
        return {"file": tmp_path / name, **options}

    return make


def _pickled(tmp_path: Path) -> dict[str, Any]:
    np.save(tmp_path / "v.npy", np.array([[object()]]), allow_pickle=True)
    return {"file": tmp_path / "v.npy"}


def _archive(**arrays: Any):
    def make(tmp_path: Path) -> dict[str, Any]:
        np.savez(tmp_path / "v.npz", **arrays)
        return {"file": tmp_path / "v.npz"}

    return make


def _bad_ids(ids: Any, **options: Any):
    def make(tmp_path: Path) -> dict[str, Any]:
        np.save(tmp_path / "ids.npy", ids)
        return {"file": _npy(tmp_path / "v.npy"), "ids": tmp_path / "ids.npy", **options}

    return make


BAD_INPUT = {
    "NaN": (_bad_array(at={(17, 2): np.nan}), "v.npy row 17 has nan at column 2"),
    "infinity": (_bad_array(at={(3, 0): -np.inf}), "row 3 has -inf at column 0"),
    "beyond float32": (_bad_array(at={(24, 3): 1e39}), r"row 24 has 1e\+39"),
    "one dimension": (_bad_array(reshape=np.ravel), r"shape \(rows, dimension\), got \(100,\)"),
    "three dimensions": (_bad_array(reshape=lambda v: v[None]), r"got \(1, 25, 4\)"),
    "no rows": (_bad_array(reshape=lambda v: v[:0]), r"got \(0, 4\)"),
    "complex": (_bad_array(dtype="c8"), "floats or integers, got complex64"),
    "booleans": (_bad_array(dtype="?"), "got bool"),
    "pickle": (_pickled, "cannot be read as an array"),
    "no array": (_file("v.npy", b"hello"), "cannot be read as an array"),
    "cut array": (_file("v.npy", b"\x93NUMPY\x01\x00"), "cannot be read as an array"),
    "other suffix": (_file("v.csv", b"1,2"), r"files are \.npy, \.npz, \.jsonl or \.jsonl\.gz"),
    "no archive": (_file("v.npz", b"PK\x03\x04 no"), "cannot be read as an archive"),
    "no gzip": (_file("v.jsonl.gz", b'{"values": [1]}'), "not a whole gzip file"),
    "cut gzip": (_file("v.jsonl.gz", gzip.compress(b'{"values": [1]}\n' * 9000)[:-20]), "not a whole gzip file"),
    "empty": (_file("v.jsonl", b""), "has no rows"),
    "archive of many": (_archive(a=VALUES, b=VALUES), "a, b: name the one"),
    "archive with pickle": (_archive(values=np.array([[object()]])), "cannot be read as an archive"),
    "archive ids": (_archive(values=VALUES, ids=np.arange(3)), "25 rows, but there are 3 ids"),
    "archive float ids": (_archive(values=VALUES, ids=np.ones(25)), "ids must be integers or text, got float64"),
    "archive metadata": (_archive(values=VALUES, metadata=np.array(["{}"] * 3)), "3 lines for the 25 rows"),
    "archive metadata text": (_archive(values=VALUES, metadata=np.array(["{"] * 25)), "metadata of row 0 is not valid"),
    "json": (_bad_lines({"values": [1]}, "{"), "line 2 is not valid JSON"),
    "json NaN": (_bad_lines('{"values": [NaN]}'), "line 1 is not valid JSON"),
    "json list": (_bad_lines([1, 2]), "line 1 must be an object"),
    "json no values": (_bad_lines({"id": 1}), "line 1: 'values' must be a list of numbers"),
    "json text": (_bad_lines({"values": ["1"]}), "line 1: 'values' must hold numbers"),
    "json null": (_bad_lines({"values": [1, None]}), "line 1: 'values' must hold numbers"),
    "json bool": (_bad_lines({"values": [True, 1]}), "not booleans"),
    "json beyond float32": (_bad_lines({"values": [1e39]}), "within float32"),
    "json lengths": (_bad_lines({"values": [1, 2]}, {"values": [1]}), "line 2: has 1 values, the lines before have 2"),
    "json empty line": (_bad_lines({"values": [1]}, "", {"values": [1]}), "line 2 is empty"),
    "json id missing": (_bad_lines({"id": 1, "values": [1]}, {"values": [1]}), "line 2 has no field 'id'"),
    "json id late": (_bad_lines({"values": [1]}, {"id": 1, "values": [1]}), "line 2 has an id, the first line has n"),
    "json id form": (_bad_lines({"id": 1.5, "values": [1]}), "line 1: an id is an integer or a string, got float"),
    "json id long": (_bad_lines({"id": "x" * 256, "values": [1]}), "at most 255 bytes"),
    "json id twice": (
        _bad_lines({"id": "a", "values": [1]}, {"id": "b", "values": [1]}, {"id": "a", "values": [1]}),
        "rows 0 and 2 have the same id 'a'",
    ),
    "json metadata": (_bad_lines({"values": [1], "metadata": [1]}), "'metadata' must be an object"),
    "json metadata large": (_bad_lines({"values": [1], "t": "x" * 70_000}), "row 0: metadata has at most"),
    "json with ids": (_bad_lines({"values": [1]}, ids="ids.npy"), "holds ids and metadata itself"),
    "metadata short": (_beside("metadata", [{}] * 24), "beside.jsonl has 24 lines for the 25 rows"),
    "metadata no json": (_beside("metadata", ["{}"] * 20 + ["{"] * 5), "beside.jsonl line 21 is not valid JSON"),
    "metadata no object": (_beside("metadata", [[]] * 25), "line 1 must be an object"),
    "metadata suffix": (_beside("metadata", [{}] * 25, name="m.csv"), "read from .jsonl"),
    "metadata no id": (_beside("metadata", [{"a": 1}] * 25, id_field="id"), "line 1 has no field 'id'"),
    "metadata id twice": (_beside("metadata", [{"id": 1}] * 25, id_field="id"), "rows 0 and 1 have the same id 1"),
    "metadata not there": (lambda tmp_path: {"file": _npy(tmp_path / "v.npy"), "metadata": tmp_path / "no.jsonl"},
                           "No such file"),
    "ids short": (_beside("ids", list(range(24))), "25 rows, but there are 24 ids"),
    "ids long": (_beside("ids", list(range(26))), "25 rows, but there are 26 ids"),
    "ids form": (_beside("ids", [None] * 25), "line 1: an id is an integer or a string"),
    "ids field": (_beside("ids", [{"a": 1}] * 25), "line 1 has no field 'id'"),
    "ids text empty": (_beside("ids", ["a", "", "b"], name="ids.txt"), "line 2 is empty"),
    "ids text large": (_beside("ids", ["9" * 30] * 25, name="ids.txt"), "64 bits"),
    "ids float": (_bad_ids(np.ones(25)), "ids must be integers or text, got float64"),
    "ids square": (_bad_ids(np.ones((5, 5), int)), r"ids must be of shape \(rows,\)"),
    "ids beyond 64 bits": (_bad_ids(np.full(25, 2**63, np.uint64)), "row 0: an integer id must fit in 64 bits"),
    "id field of nothing": (lambda tmp_path: {"file": _npy(tmp_path / "v.npy"), "id_field": "id"}, "none of them"),
    "not there": (lambda tmp_path: {"file": tmp_path / "none.npy"}, "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_by_name_and_nothing_is_written(load, shard, tmp_path, name) -> None:
    make, message = BAD_INPUT[name]
    options = make(tmp_path)

    with pytest.raises(CommandError, match=message):
        load(options.pop("file"), **options)

    assert shard.queries.list_namespaces().value == []


def test_another_dimension_or_metric_than_the_namespace_has_is_refused(load, rows, shard, tmp_path) -> None:
    load(_npy(tmp_path / "v.npy"))

    with pytest.raises(CommandError, match="dimension 4, which cannot change"):
        load(_npy(tmp_path / "w.npy", np.eye(3)), replace=True)
    with pytest.raises(CommandError, match="metric cosine, which cannot change"):
        load(tmp_path / "v.npy", replace=True, metric="l2")
    assert len(rows()) == 25


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--batch", "x"], ["--metric", "hamming"], ["--nope"]])
def test_options_that_are_none_are_refused(load, tmp_path, arguments) -> None:
    with pytest.raises(CommandError):
        load(_npy(tmp_path / "v.npy"), *arguments)


# What a person sees.


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _clocked(out: io.StringIO, *, step_s: float, total: int | None) -> str:
    times = iter(range(100))
    progress = Progress.__new__(Progress)
    progress.timer = lambda: next(times) * step_s  # type: ignore[method-assign]
    progress.__init__(out, "loaded", total=total)  # type: ignore[misc]
    for _ in range(4):
        progress.add(250)
    progress.finish()
    return out.getvalue()


def test_a_terminal_shows_a_bar_that_redraws_itself() -> None:
    text = _clocked(_Terminal(), step_s=1.0, total=1000)

    assert "[######" in text
    assert "(25 %)" in text
    assert "left" in text
    assert "\n" not in text
    assert text.endswith("\r")


def test_elsewhere_progress_is_a_plain_line_now_and_then() -> None:
    text = _clocked(io.StringIO(), step_s=3.0, total=1000)

    assert "\r" not in text
    assert 0 < len(text.splitlines()) < 4
    assert "500 of 1,000 rows (50 %)" in text


def test_rows_of_an_unknown_total_are_counted() -> None:
    assert "1,000 rows," in _clocked(io.StringIO(), step_s=6.0, total=None)


def test_repeated_ids_are_found_across_batches(tmp_path, monkeypatch, load) -> None:
    monkeypatch.setattr(loading, "CHECK_ROWS", 4)
    ids = [f"r{n}" for n in range(25)]
    ids[22] = "r3"
    np.save(tmp_path / "ids.npy", np.array(ids))

    with pytest.raises(CommandError, match="rows 3 and 22 have the same id 'r3'"):
        load(_npy(tmp_path / "v.npy"), ids=tmp_path / "ids.npy")
