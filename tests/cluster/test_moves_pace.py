"""The pace of a move: full pages while nobody else is there, small ones and rests beside clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from cluster.moves.pace import Pace
from mlvdb_site.http.metrics import requests_counted


class Node:
    """Requests that were counted, the time, and how long the move rested."""

    def __init__(self) -> None:
        self.now, self.requests = 100.0, 0.0
        self.rests: list[float] = []

    def pass_s(self, seconds: float, *, requests: int) -> None:
        self.now += seconds
        self.requests += requests


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Node:
    settings.MLVDB_MOVE_SLICE_BYTES = 1 << 20
    node = Node()
    monkeypatch.setattr(Pace, "timer", staticmethod(lambda: node.now))
    monkeypatch.setattr(Pace, "sleep", staticmethod(node.rests.append))
    monkeypatch.setattr(Pace, "_requests", staticmethod(lambda: node.requests))
    return node


def test_a_move_that_is_alone_takes_full_pages_and_does_not_rest(node: Node) -> None:
    pace = Pace()
    node.pass_s(1.0, requests=4)

    assert pace.page_bytes() == 1 << 20
    pace.rest(0.2)
    assert node.rests == []


def test_beside_clients_pages_are_small_and_it_rests_as_long_as_it_works(node: Node) -> None:
    pace = Pace()
    node.pass_s(1.0, requests=5)

    assert pace.page_bytes() == 1 << 15
    pace.rest(0.2)
    pace.rest(30.0)
    assert node.rests == [0.2, 0.5]


def test_clients_are_taken_to_be_there_until_it_has_been_looked_for_them(node: Node) -> None:
    pace = Pace()
    assert pace.is_gentle

    node.pass_s(0.1, requests=0)

    assert not pace.is_gentle


def test_it_goes_on_at_full_speed_when_the_clients_have_gone(node: Node) -> None:
    pace = Pace()
    node.pass_s(0.5, requests=50)
    assert pace.is_gentle

    node.pass_s(0.5, requests=0)

    assert pace.page_bytes() == 1 << 20


def test_a_count_that_falls_is_no_client(node: Node) -> None:
    """As when the counts of a process that has died are being folded."""
    pace = Pace()
    node.pass_s(0.5, requests=-40)

    assert not pace.is_gentle


def test_a_page_is_never_made_larger_than_is_set(node: Node, settings: Any) -> None:
    settings.MLVDB_MOVE_SLICE_BYTES = 100
    pace = Pace()
    node.pass_s(0.5, requests=50)

    assert pace.page_bytes() == 100


def test_requests_are_counted_over_all_processes_by_the_beginning_of_their_route(tmp_path: Path) -> None:
    for process, count in (("7", 3.0), ("archive", 4.0)):
        counts = MmapedDict(str(tmp_path / f"counter_{process}.db"))
        for route in ("search", "vectors/batch", "cluster/node/alive", "none"):
            labels = ("method", "route", "status")
            key = mmap_key("mlvdb_http_requests", "mlvdb_http_requests_total", labels, ("GET", route, "200"), "")
            counts.write_value(key, count, 0.0)
        counts.write_value(mmap_key("other", "other_total", (), (), ""), 9.0, 0.0)
        counts.close()
    (tmp_path / "counter_8.db").write_bytes(b"torn")

    assert requests_counted(tmp_path, routes=("search", "vectors")) == 14.0
    assert requests_counted(tmp_path / "none", routes=("search",)) == 0.0
