"""A move of slots of which something dies in every phase: it goes on or back by itself, and no row is lost or doubled.

One cluster for the module, a local shard and a remote one; rows go to and fro between them while clients are at work,
and in the end over four shards.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from tests.processes.cluster import BUSY, kill_all
from tests.processes.fault_proxy import Fault
from tests.processes.node import NodeProcess, wait_for
from tests.processes.redis_server import RedisServer
from tests.processes.sharded_clients import ShardingClients
from tests.processes.sharded_cluster import MOVED_WITHIN_S, ShardedCluster
from vectors.engine.ids import SLOT_COUNT

FIXED_ROWS = 2000
# Slow enough for every phase to be seen, as each takes some requests; fast enough for it to end.
LINK_BYTES_PER_S = 400_000

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


@pytest.fixture(scope="module")
def running(broker: RedisServer) -> Iterator[ShardedCluster]:
    """The cluster of this module."""
    settings = {"coordinator": {"MLVDB_BROKER_URL": broker.url}}
    with ShardedCluster(local=1, remote=2, added=1, proxied=True, settings_of=settings, **BUSY) as cluster:
        yield cluster


def kill_and_start(node: NodeProcess) -> None:
    """Kill all of a node, as a power cut does, and start it again."""
    kill_all(node)
    node.start()


def kill_supervisor(node: NodeProcess) -> None:
    """Kill `serve` alone, which takes everything down, and start the node again."""
    node.kill()
    node.start()


def kill_worker(node: NodeProcess) -> None:
    """Kill the Celery worker that moves the rows, and wait until `serve` has started another."""
    worker = node.child("replication")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: node.record["processes"].get("replication", worker) != worker, timeout_s=20, what="a new worker")


# Every phase and every victim; those where both sides hold a part of the truth with two victims.
CRASHES = [
    ("copying", "source"),
    ("following", "target"),
    pytest.param("following", "worker", marks=pytest.mark.long),
    ("closing", "coordinator"),
    pytest.param("closing", "target", marks=pytest.mark.long),
    ("switching", "source"),
    pytest.param("switching", "worker", marks=pytest.mark.long),
    ("cleaning", "broker"),
]


@pytest.mark.parametrize(("phase", "victim"), CRASHES)
def test_a_move_survives_a_crash_in_any_phase(cluster, recorder, fixed, broker, phase, victim):
    slots = cluster.slots()
    # The remote shard is the one that dies; where neither is to, the one with more gives to the other.
    remote_gives = slots["shard_a"] >= slots["shard_0"] if victim not in {"source", "target"} else victim == "source"
    source, target = ("shard_a", "shard_0") if remote_gives else ("shard_0", "shard_a")
    if not slots[source]:
        cluster.wait_for_move(cluster.redistribute(target, source))
    with ShardingClients(recorder, fixed=fixed, readers=1, seed=next(seeds)) as clients:
        clients.wait_for(writes=10)
        with cluster.links["shard_a"].faulty(Fault.SLOW, bytes_per_s=LINK_BYTES_PER_S):
            move = cluster.redistribute(source, target)
            seen = cluster.wait_for_phase(move, phase)
            if victim == "worker":
                kill_worker(cluster.coordinator)
            elif victim == "coordinator":
                kill_supervisor(cluster.coordinator)
            elif victim == "broker":
                with broker.down():
                    clients.wait_for(writes=20, reads=5)
            else:
                kill_and_start(cluster["shard_a"])
        assert seen == phase, f"the move was {seen} before {phase} could be seen"
        cluster.wait_for_move(move)
        clients.wait_for(writes=10, reads=10)
    slots = cluster.slots()
    assert (slots[source], slots[target]) == (0, SLOT_COUNT)
    cluster.prove(recorder.history)


def change(cluster: ShardedCluster, what: str) -> int:
    """Add or remove a shard; return the move."""
    verb, label = what.split()
    before = cluster.moves()[0]["id"]
    if verb == "add":
        cluster.add(label)
    else:
        removed = cluster.remove(label)
        assert removed.status_code == 202, removed.text
    # At once; where the node was slow to answer, by the next sweep.
    return int(wait_for(lambda: next((move["id"] for move in cluster.moves() if move["id"] > before), 0)))


def is_spread(cluster: ShardedCluster, changes: list[str]) -> bool:
    """Return whether changes were made and the slots are spread over the shards that are left."""
    slots = cluster.slots()
    made = all((what.split()[1] in slots) == what.startswith("add") for what in changes)
    return made and max(slots.values()) - min(slots.values()) <= 1


@pytest.mark.long
@pytest.mark.slow
def test_one_shard_becomes_two_then_four_then_three_and_something_dies_on_every_way(cluster, recorder, fixed):
    ways = [
        (["remove shard_a"], "copying", lambda: kill_and_start(cluster["shard_a"])),
        (["add shard_a"], "following", lambda: kill_worker(cluster.coordinator)),
        (["add shard_b", "add shard_1"], "switching", lambda: kill_supervisor(cluster.coordinator)),
        (["remove shard_1"], "closing", lambda: kill_and_start(cluster["shard_b"])),
    ]
    if not cluster.slots()["shard_a"]:
        cluster.wait_for_move(cluster.redistribute("shard_0", "shard_a"))
    for changes, phase, crash in ways:
        with ShardingClients(recorder, fixed=fixed, readers=1, seed=next(seeds)) as clients:
            clients.wait_for(writes=10)
            with contextlib.ExitStack() as slow:
                for link in cluster.links.values():
                    slow.enter_context(link.faulty(Fault.SLOW, bytes_per_s=LINK_BYTES_PER_S))
                moves = [change(cluster, what) for what in changes]
                assert cluster.wait_for_phase(moves[0], phase) == phase
                crash()
            cluster.wait(partial(is_spread, cluster, changes), MOVED_WITHIN_S, f"an even split after {changes}")
            clients.wait_for(writes=10, reads=10)
        cluster.prove(recorder.history)
        assert sum(cluster.slots().values()) == SLOT_COUNT
    assert cluster.slots().keys() == {"shard_0", "shard_a", "shard_b"}


def test_after_all_that_every_record_and_file_is_whole(cluster, recorder):
    cluster.prove(recorder.history)
    cluster.verify()
