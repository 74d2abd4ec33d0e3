"""How much better than it is asked for a setting has to be on the sample it is tuned on."""

from __future__ import annotations

import pytest

from vectors.engine.index.building import _margin


@pytest.mark.parametrize("recall", [0.99, 0.993, 0.999, 0.99999])
def test_of_few_misses_half_are_allowed(recall: float) -> None:
    assert _margin(recall) == pytest.approx(0.5)


def test_the_more_may_be_missed_the_smaller_is_the_share_left_out() -> None:
    shares = [_margin(recall) for recall in (0.99, 0.98, 0.95, 0.9, 0.8)]

    assert shares == sorted(shares, reverse=True)
    assert 0.2 < _margin(0.95) < 0.3
    assert all(recall + _margin(recall) * (1 - recall) > recall for recall in (0.5, 0.8, 0.9, 0.95))
