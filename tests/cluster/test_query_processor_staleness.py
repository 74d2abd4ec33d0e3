"""How a process knows for how long its copy's primary was not heard: by its own clock and by changes of a counter."""

from __future__ import annotations

import threading

import pytest

from cluster.models import Placement
from cluster.query_processor import staleness
from cluster.query_processor.staleness import Hearing
from tests.cluster.members import SHARD, become_replica, placement_document


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(head, settings) -> Clock:
    settings.MLVDB_STALE_AFTER_S = 15
    become_replica(placement_document())
    return Clock()


@pytest.fixture
def hearing(clock) -> Hearing:
    return Hearing(clock=clock, looks_on=False)


def heard(primary_seq: int = 10) -> None:
    placement = Placement.objects.get(shard=SHARD)
    Placement.objects.filter(pk=placement.pk).update(heard=placement.heard + 1, primary_seq=primary_seq)


def test_what_was_heard_before_the_first_look_may_be_old(hearing):
    heard()

    assert hearing.lag(SHARD, 10) is None


def test_a_change_between_two_looks_was_heard_no_earlier_than_the_first(hearing, clock):
    hearing.lag(SHARD, 10)
    heard(12)
    clock.now += 5

    assert hearing.lag(SHARD, 10) == 2
    clock.now += 9.9
    assert hearing.lag(SHARD, 10) == 2
    # 15 s after the look that did not see it yet: by then it may be that old.
    clock.now += 0.2
    assert hearing.lag(SHARD, 10) is None


def test_a_change_after_a_long_time_without_a_look_may_be_as_old_as_that(hearing, clock):
    hearing.lag(SHARD, 10)
    heard()
    clock.now += 3600

    assert hearing.lag(SHARD, 10) is None
    heard()
    clock.now += 1
    assert hearing.lag(SHARD, 10) == 0


def test_a_look_that_finds_nothing_new_makes_the_next_change_younger(hearing, clock):
    hearing.lag(SHARD, 10)
    clock.now += 3600
    hearing.lag(SHARD, 10)
    heard()
    clock.now += 1

    assert hearing.lag(SHARD, 10) == 0


def test_a_shard_without_a_placement_has_no_known_lag(hearing):
    assert hearing.lag("f" * 32, 10) is None


def test_its_thread_looks_on_between_reads_and_ends_when_it_is_told_to(clock, monkeypatch, wait_for):
    monkeypatch.setattr(staleness, "LOOK_EVERY_S", 0.01)
    hearing = Hearing(clock=clock)
    hearing.lag(SHARD, 10)
    clock.now += 5
    wait_for(lambda: hearing._heard[SHARD].looked_at == clock.now)

    hearing.stop()

    assert not [thread for thread in threading.enumerate() if thread.name == "hearing"]
