"""One look at the markers answers for the topology too, and only for the request it is part of."""

from __future__ import annotations

from typing import Any

import pytest

from mlvdb_site import markers
from mlvdb_site.markers import markers_read, shared_look, topology_changed, topology_marker


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch, transactional_db: None) -> list[str]:
    """What is asked of the table of markers."""
    asked: list[str] = []
    original = markers.connections

    class Noting:
        def __getitem__(self, alias: str) -> Any:
            asked.append(alias)
            return original[alias]

    monkeypatch.setattr(markers, "connections", Noting())
    return asked


def test_the_first_question_for_the_topology_is_answered_by_the_look_at_the_markers(statements: list[str]) -> None:
    topology_changed()
    with shared_look():
        seen = markers_read().topology
        assert topology_marker() == seen
        assert len(statements) == 1


def test_a_second_question_for_the_topology_sees_what_has_changed_since(statements: list[str]) -> None:
    topology_changed()
    with shared_look():
        markers_read()
        first = topology_marker()
        topology_changed()
        assert topology_marker() != first


def test_outside_of_a_shared_look_the_topology_is_always_asked_for(statements: list[str]) -> None:
    topology_changed()
    with shared_look():
        markers_read()
    before = topology_marker()
    markers_read()
    topology_changed()
    assert topology_marker() != before
