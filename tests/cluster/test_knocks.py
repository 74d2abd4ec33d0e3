"""Knocks: what they cost while the broker is away."""

from __future__ import annotations

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

    assert 1 <= len(taken_back) <= 4
