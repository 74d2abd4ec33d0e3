"""The checker itself: it must find what it is there to find."""

from __future__ import annotations

import pytest

from tests.processes.writers import Attempt, History


@pytest.mark.parametrize(
    ("attempts", "allowed"),
    [
        ([Attempt(1, True)], {1}),
        ([Attempt(1, True), Attempt(2, False)], {1, 2}),
        ([Attempt(1, False)], {None, 1}),
        ([Attempt(1, True), Attempt(None, True)], {None}),
        ([Attempt(1, True), Attempt(None, False), Attempt(3, False)], {1, None, 3}),
        ([Attempt(1, False), Attempt(2, True)], {2}),
    ],
)
def test_a_history_allows_the_last_acknowledged_version_and_those_tried_since(attempts, allowed):
    assert History({"row": attempts}).possible("row") == allowed
