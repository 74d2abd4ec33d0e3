"""What `manage.py bench` measures with: queries apart from the rows, the wait for indexes, and the picture."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from vectors.bench import node_side
from vectors.bench.curve_picture import picture
from vectors.bench.data import BenchData, held_out
from vectors.bench.measures import Measure

SVG = "{http://www.w3.org/2000/svg}"


def _point(curve: str, recall: float, per_s: float) -> Measure:
    return Measure(f"{curve} at {recall}", per_s, "searches/s", 1.0, 2.0, recall, curve)


def _places(curve: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in curve.attrib["points"].split())]


def test_held_out_rows_are_queries_and_rows_no_more() -> None:
    rows = np.arange(400, dtype=np.float32).reshape(100, 4)

    left, queries = held_out(rows, queries=15)

    assert (len(left), len(queries)) == (85, 15)
    assert sorted(np.concatenate((left, queries))[:, 0].tolist()) == rows[:, 0].tolist()


def test_no_more_than_a_fifth_of_the_rows_is_held_out() -> None:
    left, queries = held_out(np.ones((10, 2), dtype=np.float32), queries=200)

    assert (len(left), len(queries)) == (8, 2)


def test_a_single_row_is_its_own_query() -> None:
    left, queries = held_out(np.ones((1, 2), dtype=np.float32), queries=5)

    assert (len(left), len(queries)) == (1, 1)


def test_the_oracle_counts_what_is_not_among_the_nearest() -> None:
    rows = np.eye(20, dtype=np.float32) + 0.1
    data = BenchData(rows, rows[:1] + np.linspace(0.5, 0, 20, dtype=np.float32))

    assert data.recall([list(range(10))]) == 1.0
    assert data.recall([[*range(8), 18, 19]]) == 0.8


def test_a_picture_has_a_line_for_each_curve_and_better_is_up_and_right() -> None:
    svg = picture(
        [
            Measure("rows applied", 1e6, "rows/s"),
            _point("engine", 0.99, 2000.0),
            _point("engine", 0.9, 5000.0),
            _point("engine", 1.0, 80.0),
            _point("HTTP", 0.95, 1000.0),
            _point("HTTP", 0.999, 300.0),
        ],
        title="a < b & c",
    )

    root = ElementTree.fromstring(svg)
    engine, http = root.findall(f"{SVG}polyline")
    assert (len(_places(engine)), len(_places(http))) == (3, 2)
    across = [x for x, _y in _places(engine)]
    heights = [y for _x, y in _places(engine)]
    assert across == sorted(across)
    assert heights == sorted(heights)
    assert len(root.findall(f"{SVG}circle")) == 5
    assert root.find(f"{SVG}title").text == "a < b & c"
    texts = [item.text for item in root.findall(f"{SVG}text")]
    assert {"engine", "HTTP", "0.99", "1,000"} <= set(texts)


@pytest.mark.parametrize("recall", [0.0, 0.3, 0.9999, 1.0])
@pytest.mark.parametrize("rate", [0.02, 1.0, 3e6])
def test_every_point_lies_within_the_picture(recall: float, rate: float) -> None:
    root = ElementTree.fromstring(picture([_point("engine", recall, rate), _point("engine", 0.97, 50.0)], title="t"))

    _, _, width, height = map(float, root.attrib["viewBox"].split())
    places = _places(root.find(f"{SVG}polyline"))
    places += [(float(text.attrib["x"]), float(text.attrib["y"])) for text in root.findall(f"{SVG}text")]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_no_picture_is_made_of_nothing() -> None:
    with pytest.raises(ValueError, match="no points"):
        picture([Measure("rows applied", 1e6, "rows/s")], title="t")


def _info(**values: Any) -> dict[str, Any]:
    return {"count": 30_000, "segments": 3, "indexed_rows": 0, "tail_rows": 0} | values


def test_rows_are_indexed_when_only_segments_too_small_for_an_index_are_left(monkeypatch) -> None:
    seen = iter(
        [
            _info(count=12_000, tail_rows=12_000),
            _info(),
            _info(indexed_rows=20_000),
            _info(indexed_rows=24_000),
            *itertools.repeat(_info(indexed_rows=30_000, segments=1), 10),
        ]
    )
    _count_the_looks(monkeypatch)

    indexed_at = node_side.wait_indexed(lambda: next(seen), min_rows=10_000, quiet_s=3.0)

    assert indexed_at == 3.0


def test_a_node_that_makes_no_indexes_is_not_waited_for_until_the_end(monkeypatch) -> None:
    clock = _count_the_looks(monkeypatch)

    assert node_side.wait_indexed(_info, min_rows=10_000, quiet_s=3.0) is None
    assert clock[0] < node_side.LONGEST_WAIT_S


def _count_the_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let every look at the node take a second."""
    clock = [0.0]

    def sleep(_seconds: float) -> None:
        clock[0] += 1.0

    monkeypatch.setattr(node_side, "time", SimpleNamespace(sleep=sleep, perf_counter=lambda: clock[0]))
    return clock
