"""Lanes: whose answer counts for whom, and that no lane runs hot, twice, or for nobody."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from cluster.replication import lanes
from cluster.replication.sender import CopyPosition, Step, Target
from cluster.states import CopyState, Membership
from cluster.topology import CopyView, ShardView, TopologyView
from cluster.transport.errors import PeerRejected
from vectors.store.log import Position

URL = "http://replica-1.test:8000"
SHARD = "5" * 32
COPY = CopyView("replica_1", URL, "1" * 32, CopyState.FOLLOWING, Membership.MEMBER)


class Senders:
    """In the place of every sender: a step takes the copy to `position`, or raises `error`."""

    def __init__(self) -> None:
        self.position = Position(1, 0)
        self.error: Exception | None = None
        self.steps = 0

    def __call__(self, target: Target) -> _Sender:
        return _Sender(self)


class _Sender:
    def __init__(self, all_of_them: Senders) -> None:
        self.all = all_of_them
        self.known: Position | None = None

    def step(self, *, timeout_s: float) -> Step:
        self.all.steps += 1
        if self.all.error is not None:
            raise self.all.error
        self.known = self.all.position
        return Step.UP_TO_DATE

    def ask(self, *, timeout_s: float) -> CopyPosition:
        return CopyPosition(*self.all.position, 1, [], 0, 1, False)


class Connection:
    """In the place of a thread's connection to the database, which is not used here."""

    def close_if_unusable_or_obsolete(self) -> None:
        """There is none."""

    def close(self) -> None:
        """There is none."""


class Shard:
    """The topology of this process: one shard, of which this node is the primary, with one copy elsewhere."""

    def __init__(self) -> None:
        self.view = ShardView(SHARD, "shard_0", 1, is_local_primary=True, copies=(COPY,))

    def __call__(self) -> TopologyView:
        return TopologyView(is_single=False, shards={SHARD: self.view})


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> Senders:
    found = Senders()
    monkeypatch.setattr(lanes, "Sender", found)
    monkeypatch.setattr(lanes, "knock", lambda shard_uid: None)
    monkeypatch.setattr(lanes.Lane, "_is_far_behind", lambda self: False)
    monkeypatch.setattr(lanes, "connection", Connection())
    return found


@pytest.fixture
def shard(senders: Senders, monkeypatch: pytest.MonkeyPatch) -> Shard:
    found = Shard()
    monkeypatch.setattr(lanes, "topology", found)
    monkeypatch.setattr(lanes, "_lanes", lanes.Lanes())
    monkeypatch.setattr(lanes, "_IDLE_S", 0.05)
    return found


def wait_for(position: Position, *, within_s: float = 5.0) -> lanes.Acknowledged:
    return lanes.wait_for(SHARD, position, "quorum", deadline=time.monotonic() + within_s)


def test_a_copy_that_is_known_by_another_name_now_counts_under_that_name(shard: Shard, senders: Senders) -> None:
    """After a promotion and back, a node has another name at the same URL."""
    senders.position = Position(1, 5)
    assert wait_for(Position(1, 5)).reached

    shard.view = replace(shard.view, copies=(replace(COPY, name="node_11111111"),))
    senders.position = Position(3, 7)

    assert wait_for(Position(3, 7)).reached


def test_a_wait_for_a_write_of_a_term_that_is_over_does_not_run_hot(shard: Shard, senders: Senders) -> None:
    senders.position = Position(2, 8)

    assert not wait_for(Position(1, 5), within_s=0.5).reached

    assert senders.steps <= 15


def test_a_paused_copy_is_sent_nothing_and_not_waited_for(shard: Shard, senders: Senders) -> None:
    senders.position = Position(1, 5)
    shard.view = replace(shard.view, copies=(replace(COPY, paused=True),))

    outcome = wait_for(Position(1, 5))

    assert (outcome.reached, outcome.why, senders.steps) == (False, {"replica_1": "it is paused"}, 0)


def test_at_the_deadline_it_is_said_why_each_copy_does_not_count(shard: Shard, senders: Senders) -> None:
    behind = wait_for(Position(1, 5), within_s=0.2)
    senders.error = PeerRejected(url=URL, peer_status=401, peer_code="cluster_secret_mismatch", peer_message="unsigned")
    rejected = wait_for(Position(1, 5), within_s=0.2)

    assert behind.why == {"replica_1": "it has not answered in time"}
    assert "cluster_secret_mismatch" in rejected.why["replica_1"]


def test_nobody_acknowledges_for_a_primary_that_is_none_any_more(shard: Shard, senders: Senders) -> None:
    """Among the members that it was told of, `primary` is its successor."""
    shard.view = replace(shard.view, is_local_primary=False, copies=())

    assert not wait_for(Position(1, 5)).reached


def test_a_wait_that_comes_while_its_lane_gives_up_gets_a_thread_and_only_one(
    senders: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lanes.Lane(Target("replica_1", URL, SHARD, 1), takes_slices=True, clock=0.0)
    monkeypatch.setattr(lanes, "_IDLE_S", 0.05)
    gives_up, goes_on = threading.Event(), threading.Event()

    def close() -> None:
        gives_up.set()
        goes_on.wait(5)

    monkeypatch.setattr(lanes.connection, "close", close)
    first, second, third = (lanes.Wait(Position(9, 9)) for _ in range(3))
    lane.join(first)
    lane.leave(first)
    assert gives_up.wait(5)
    monkeypatch.setattr(lanes, "_IDLE_S", 5.0)
    lane.join(second)
    of_second = lane._thread
    goes_on.set()
    time.sleep(0.1)

    lane.join(third)

    of_third = lane._thread
    lane.leave(second)
    lane.leave(third)
    lane.stop()
    assert of_second is of_third is not None


def test_lanes_that_are_ended_have_no_threads_and_later_waits_get_others(shard: Shard, senders: Senders) -> None:
    senders.position = Position(1, 5)
    assert wait_for(Position(1, 5)).reached
    ended = lanes._lanes.lane(shard.view, COPY)

    lanes.reset()

    assert not [thread for thread in threading.enumerate() if thread.name == "lane-replica_1"]
    late = lanes.Wait(Position(9, 9))
    ended.join(late)
    assert late.failed == {"replica_1": "this process sends no more"}
    assert wait_for(Position(1, 5)).reached


def test_a_thread_that_cannot_be_started_fails_the_wait_and_leaves_nothing_behind(
    shard: Shard, senders: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

    outcome = wait_for(Position(1, 5))

    assert (outcome.reached, outcome.why) == (False, {"replica_1": "can't start new thread"})
    [lane] = lanes._lanes._lanes.values()
    assert lane._waits == []
