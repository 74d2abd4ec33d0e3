"""What the cluster's pages write and draw: pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from cluster.admin.chart import Bar, health_chart
from cluster.admin.history import short
from cluster.admin.progress import Progress
from cluster.admin.wording import admin_link, badge, counted, duration, share, shortened
from cluster.models import Move
from cluster.states import CopyState, MovePhase, PeerHealth, ShardState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")],
)
def test_a_duration_is_written_in_its_largest_sensible_unit(seconds: float, words: str):
    assert duration(seconds) == words


def test_every_state_has_a_word_and_a_colour():
    for states in (CopyState, MovePhase, PeerHealth, ShardState):
        for state in states:
            assert re.search(r"badge-(good|busy|warn|bad|quiet)\">\w+", badge(state))


def test_a_share_of_nothing_is_nothing():
    assert (share(1, 3), share(0, 3), share(0, 0)) == ("33.3 %", "0.0 %", "–")


def test_one_is_counted_in_the_singular():
    assert (counted(1, "row"), counted(0, "row"), counted(1234, "row")) == ("1 row", "0 rows", "1,234 rows")


def test_a_text_is_shortened_at_its_end_and_never_longer_than_asked():
    assert (shortened("shard_1", 7), shortened("shard_10", 7)) == ("shard_1", "shard_…")


def test_states_of_different_kinds_that_have_one_word_have_their_own_colours():
    assert "badge-good" in badge(CopyState.FOLLOWING)
    assert "badge-busy" in badge(MovePhase.FOLLOWING)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", ""])
def test_only_an_url_of_http_becomes_a_link(url: str):
    assert "<a" not in admin_link(url)


def test_a_chart_has_its_newest_probe_at_the_right_edge_and_a_failed_one_at_full_height():
    bars = [Bar(NOW + timedelta(seconds=5 * number), number != 1, "alive", 30.0, "refused") for number in range(3)]
    chart = health_chart(bars, room=10, width=100)
    assert '<path class="probe probe-alive" d="M7 24v-12h.8v12M9 24v-12h.8v12"/>' in chart
    assert '<path class="probe probe-failed" d="M8 24v-24h.8v24"/>' in chart
    assert "3 probes from 2026-01-02 03:04:05 to 2026-01-02 03:04:15, 1 failed" in chart


def test_a_chart_without_probes_says_so():
    assert "no probe yet" in health_chart([], room=10, width=100)


@pytest.mark.parametrize(("took_ms", "height"), [(0.0, 3), (1.0, 3), (1000.0, 21), (60_000.0, 21), (float("inf"), 21)])
def test_a_bar_stays_inside_the_chart(took_ms: float, height: int):
    assert f"M9 24v-{height}h.8" in health_chart([Bar(NOW, True, "alive", took_ms)], room=10, width=100)


def move(**fields: object) -> Progress:
    return Progress(Move(started_at=NOW, **fields), NOW + timedelta(seconds=30))


def test_a_move_is_as_far_as_its_bytes():
    progress = move(kind="full_sync", rows_done=1, rows_total=2, bytes_done=1000, bytes_total=4000, work_s=2.0)
    assert (progress.percent, progress.rate, progress.left) == ("25 %", "500\xa0bytes/s", "about 6.0 s left")


def test_a_move_of_slots_is_as_far_as_its_rows_and_whole_when_it_is_done():
    amounts = {"rows_done": 3, "rows_total": 4, "bytes_done": 10, "bytes_total": 1000}
    assert move(kind="rebalance", phase="following", **amounts).percent == "75 %"
    assert move(kind="rebalance", phase="done", **amounts).percent == "100 %"


def test_a_move_of_unknown_size_has_neither_part_nor_rate_nor_end():
    progress = move(kind="full_sync", phase="planned")
    assert (progress.fraction, progress.percent, progress.rate, progress.left) == (None, "", "", "")


def test_a_move_that_is_over_has_no_time_left():
    progress = move(kind="catch_up", phase="done", rows_done=0, rows_total=0)
    assert (progress.percent, progress.left) == ("100 %", "")


def test_uids_are_shortened_and_nothing_else_is():
    assert short("shard " + "ab" * 16 + " at seq 1234567890") == "shard abababab at seq 1234567890"
