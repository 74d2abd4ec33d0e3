"""Rows on the move while writers, deleters and searchers go on: more shards, fewer, to and fro, paused, cancelled.

One cluster for the module: one local shard at first, and two empty nodes. The history of all tests is proven after
each: every row was there once at every moment, and is at the shard that owns its slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.processes.cluster import BUSY
from tests.processes.fault_proxy import Fault
from tests.processes.sharded_clients import FixedRows, ShardingClients, ShardingRecorder
from tests.processes.sharded_cluster import MOVED_WITHIN_S, ShardedCluster
from vectors.engine.ids import SLOT_COUNT

FIXED_ROWS = 3000
# Longer than it takes a step to begin, or to close, switch and clean.
LATE_S = 0.6

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


@pytest.fixture(scope="module")
def running() -> Iterator[ShardedCluster]:
    """The cluster of this module."""
    with ShardedCluster(local=1, remote=2, added=0, proxied=True, **BUSY) as cluster:
        yield cluster


@pytest.fixture
def clients(recorder: ShardingRecorder, fixed: FixedRows) -> Iterator[ShardingClients]:
    """Clients at work during the test."""
    with ShardingClients(recorder, fixed=fixed, seed=next(seeds)) as at_work:
        at_work.wait_for(writes=20, reads=20)
        yield at_work


def finish(cluster: ShardedCluster, clients: ShardingClients) -> None:
    """Let the clients do some more, end them, and prove the history."""
    clients.wait_for(writes=20, reads=20)
    clients.__exit__(None, None, None)
    cluster.prove(clients.history)


def test_one_shard_becomes_two_then_four_then_three_under_writers_deleters_and_searchers(cluster, clients):
    cluster.wait_for_move(cluster.add("shard_1"))
    assert set(cluster.slots().values()) == {SLOT_COUNT // 2}
    clients.wait_for(writes=20, reads=20)
    # Changes while a move runs are accepted and queued.
    moves = [cluster.add("shard_a"), cluster.add("shard_b")]
    for move in moves:
        cluster.wait_for_move(move)
    # A node that was slow to answer gets its share by a later move.
    cluster.wait(lambda: set(cluster.slots().values()) == {SLOT_COUNT // 4}, MOVED_WITHIN_S, "an even split over four")
    clients.wait_for(writes=20, reads=20)
    removed = cluster.remove("shard_1")
    assert removed.status_code == 202, removed.text
    cluster.wait_for_move(removed.json()["move"])
    cluster.wait_until_settled()
    slots = cluster.slots()
    assert slots.keys() == {"shard_0", "shard_a", "shard_b"}
    assert sum(slots.values()) == SLOT_COUNT
    finish(cluster, clients)


@pytest.mark.parametrize(("one", "other"), [("shard_0", "shard_a"), ("shard_a", "shard_b")])
def test_slots_go_from_one_shard_to_another_and_back(cluster, clients, one, other):
    before = cluster.slots()
    cluster.wait_for_move(cluster.redistribute(one, other))
    assert cluster.slots()[one] == 0
    clients.wait_for(writes=20, reads=20)
    cluster.wait_for_move(cluster.redistribute(other, one))
    assert cluster.slots()[other] == 0
    clients.wait_for(writes=20, reads=20)
    cluster.wait_for_move(cluster.rebalance())
    assert sorted(cluster.slots().values()) == sorted(before.values())
    finish(cluster, clients)


@pytest.mark.parametrize("requests", ["write", "read"])
def test_requests_that_were_sent_before_slots_change_and_arrive_afterwards_do_no_harm(cluster, clients, requests):
    with cluster.links["shard_a"].faulty(Fault.LATE, late_s=LATE_S, late=f"/{requests}?".encode()):
        for source, target in (("shard_a", "shard_0"), ("shard_0", "shard_a")):
            cluster.wait_for_move(cluster.redistribute(source, target))
            assert cluster.slots()[source] == 0
            clients.wait_for(writes=20, reads=20)
    cluster.wait_for_move(cluster.rebalance())
    finish(cluster, clients)


def test_a_plan_moves_nothing(cluster):
    before, moves = cluster.slots(), len(cluster.moves())
    answer = cluster.coordinator.post(
        "/cluster/moves", params={"kind": "redistribute", "source": "shard_0", "target": "shard_a", "dry_run": "true"}
    )
    assert answer.status_code == 200, answer.text
    assert (cluster.slots(), len(cluster.moves())) == (before, moves)


def test_a_paused_move_rests_and_goes_on_when_it_is_resumed(cluster, clients):
    owned = cluster.slots()["shard_0"]
    with cluster.links["shard_a"].faulty(Fault.SLOW, bytes_per_s=30_000):
        move = cluster.redistribute("shard_0", "shard_a")
        cluster.wait_for_phase(move, "copying", "following")
        assert cluster.control(move, "pause").ok
    clients.wait_for(writes=60, reads=60)
    assert cluster.slots()["shard_0"] == owned
    assert cluster.control(move, "resume").ok
    cluster.wait_for_move(move)
    assert cluster.slots()["shard_0"] == 0
    cluster.wait_for_move(cluster.rebalance())
    finish(cluster, clients)


def test_a_cancelled_move_leaves_everything_where_it_was(cluster, clients):
    before = cluster.slots()
    with cluster.links["shard_b"].faulty(Fault.SLOW, bytes_per_s=30_000):
        move = cluster.redistribute("shard_0", "shard_b")
        assert cluster.wait_for_phase(move, "copying", "following") != "over"
        answer = cluster.control(move, "cancel")
        assert answer.ok, answer.text
    cluster.wait_for_move(move, phase="cancelled")
    assert cluster.slots() == before
    finish(cluster, clients)


def test_the_last_shard_cannot_go(cluster, clients):
    for label in ("shard_a", "shard_b"):
        removed = cluster.remove(label)
        assert removed.status_code == 202, removed.text
    last = cluster.remove("shard_0")
    assert (last.status_code, last.json()["error"]["code"]) == (409, "last_shard"), last.text
    cluster.wait_until_settled()
    assert cluster.slots() == {"shard_0": SLOT_COUNT}
    last = cluster.remove("shard_0")
    assert (last.status_code, last.json()["error"]["code"]) == (409, "last_shard"), last.text
    finish(cluster, clients)


def test_after_all_that_every_record_and_file_is_whole(cluster, recorder):
    cluster.prove(recorder.history)
    cluster.verify()
