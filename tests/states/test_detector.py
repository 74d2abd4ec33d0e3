"""The failure detector, sample by sample; pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.health.detector import ALIVE_AFTER, DEAD_AFTER, Detection, detect, is_settled
from cluster.states import HEALTH_TRANSITIONS, PeerHealth, allowed

STARTS = st.builds(
    Detection, st.sampled_from(PeerHealth), st.integers(min_value=0, max_value=5), st.integers(min_value=0, max_value=2)
)
SAMPLES = st.lists(st.booleans(), max_size=40)


def after(before: Detection, *samples: bool) -> Detection:
    for ok in samples:
        before = detect(before, ok=ok)
    return before


@pytest.mark.parametrize("health", [PeerHealth.UNKNOWN, PeerHealth.ALIVE])
def test_the_first_failed_sample_makes_a_node_suspect(health: PeerHealth) -> None:
    assert after(Detection(health), False).health is PeerHealth.SUSPECT


@pytest.mark.parametrize("health", [PeerHealth.UNKNOWN, PeerHealth.ALIVE])
def test_three_failed_samples_in_a_row_make_it_dead_and_two_do_not(health: PeerHealth) -> None:
    assert after(Detection(health), False, False).health is PeerHealth.SUSPECT
    assert after(Detection(health), False, False, False).health is PeerHealth.DEAD


def test_a_good_sample_in_between_starts_the_count_anew() -> None:
    assert after(Detection(PeerHealth.ALIVE), False, False, True, False, False).health is PeerHealth.SUSPECT


def test_one_good_sample_brings_a_suspect_back() -> None:
    assert after(Detection(PeerHealth.SUSPECT, failures=2), True).health is PeerHealth.ALIVE


def test_a_dead_node_has_to_answer_twice_in_a_row() -> None:
    dead = Detection(PeerHealth.DEAD, failures=9)

    assert after(dead, True).health is PeerHealth.DEAD
    assert after(dead, True, False, True).health is PeerHealth.DEAD
    assert after(dead, True, True).health is PeerHealth.ALIVE


def test_a_node_that_stays_alive_stays_the_same_so_that_nothing_is_written() -> None:
    settled = after(Detection(PeerHealth.ALIVE), True, True)

    assert detect(settled, ok=True) == settled


@given(STARTS, SAMPLES)
def test_every_change_is_in_the_table_of_transitions(before: Detection, samples: list[bool]) -> None:
    for ok in samples:
        later = detect(before, ok=ok)
        assert allowed(HEALTH_TRANSITIONS, before.health, later.health)
        before = later


@given(STARTS)
def test_certainty_comes_within_three_samples_of_a_kind(before: Detection) -> None:
    for ok, within in ((False, DEAD_AFTER), (True, ALIVE_AFTER)):
        detection = before
        for _ in range(within):
            detection = detect(detection, ok=ok)
        assert is_settled(detection, ok=ok)
        assert is_settled(detect(detection, ok=ok), ok=ok)


@given(STARTS, SAMPLES)
def test_only_an_alive_node_is_routed_to_and_never_after_a_failed_sample(
    before: Detection, samples: list[bool]
) -> None:
    for ok in samples:
        before = detect(before, ok=ok)
        assert not (before.health.is_routable and not ok)
