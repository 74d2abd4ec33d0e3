"""Knocks: what they cost while the broker is away."""

from __future__ import annotations

import threading
import time

import pytest

from cluster.replication import knocks
from tests.cluster.registry import Registry


def test_while_the_broker_is_away_writes_are_not_each_followed_by_another_commit(
    owner: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.replica("a")
    taken_back: list[int] = []
    monkeypatch.setattr(knocks, "publish", lambda task, *args: False)
    monkeypatch.setattr(knocks.log, "knock_clear", taken_back.append)
    monkeypatch.setattr(knocks, "_BROKER_AWAY_S", 0.2)
    knocker = knocks.Knocker()

    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        knocker.knock(owner.head.uid)
        time.sleep(0.005)
    knocker.stop()

    assert 1 <= len(taken_back) <= 4


def test_a_thread_that_is_ended_waits_for_no_broker_and_publishes_nothing_more(
    owner: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.replica("a")
    asked: list[object] = []
    is_waiting = threading.Event()
    monkeypatch.setattr(knocks, "publish", lambda *task: asked.append(task) or is_waiting.set() or False)
    monkeypatch.setattr(knocks, "_BROKER_AWAY_S", 60.0)
    knocks.knock(owner.head.uid)
    assert is_waiting.wait(10)

    began = time.monotonic()
    knocks.reset()

    assert time.monotonic() - began < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "knocks"]
    assert len(asked) == 1
