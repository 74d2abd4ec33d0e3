"""What a remote shard or its link can do to a sharded cluster: searches are flagged and on time, writes say what became
of them, and everything is as before when it is back.

One cluster for the module: a local shard, a remote one behind a proxy, and an empty node; its history is proven.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import pytest

from tests.processes.cluster import BUSY, frozen, kill_all
from tests.processes.fault_proxy import Fault
from tests.processes.history import Outcome
from tests.processes.node import wait_for
from tests.processes.sharded_clients import SLACK_S, ShardingClients
from tests.processes.sharded_cluster import ShardedCluster
from tests.processes.writers import values_of

FIXED_ROWS = 1000
SEARCH_TIMEOUT_S = 1.0

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


@pytest.fixture(scope="module")
def running() -> Iterator[ShardedCluster]:
    """The cluster of this module."""
    with ShardedCluster(local=1, remote=2, added=1, proxied=True, **BUSY) as cluster:
        yield cluster


@contextlib.contextmanager
def killed(cluster: ShardedCluster) -> Iterator[None]:
    """Kill the remote shard with all its processes; start it again at the end."""
    kill_all(cluster["shard_a"])
    yield
    cluster["shard_a"].start()


def link(fault: Fault, **options: int) -> Callable[[ShardedCluster], AbstractContextManager[object]]:
    """Return a fault of the link to the remote shard."""
    return lambda cluster: cluster.links["shard_a"].faulty(fault, **options)


FAULTS = {
    "killed": killed,
    "stopped": lambda cluster: frozen(cluster["shard_a"]),
    "slow": link(Fault.SLOW, bytes_per_s=100),
    "answering garbage": link(Fault.GARBAGE),
    "resetting": link(Fault.RESET),
    "hearing, its answers lost": link(Fault.CUT_ANSWERS),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_remote_shard_that_is_away_leaves_searches_flagged_and_on_time_and_comes_back_by_itself(
    cluster, recorder, fixed, fault
):
    with ShardingClients(recorder, fixed=fixed, readers=1, seed=next(seeds)) as clients:
        clients.wait_for(writes=10, reads=20)
        with FAULTS[fault](cluster):
            for _ in range(3):
                began = time.monotonic()
                answer = recorder.search_fixed(fixed, 0, timeout=f"{SEARCH_TIMEOUT_S:g}")
                assert time.monotonic() - began < SEARCH_TIMEOUT_S + SLACK_S
                assert answer.status_code == 200, answer.text
                assert answer.headers["X-MLVDB-Complete"] == "false"
                assert answer.headers["X-MLVDB-Shards"] == "1/2"
                assert answer.headers["X-MLVDB-Failed"] == "shard_a"
            incomplete = clients.incomplete
            wait_for(lambda: clients.incomplete > incomplete + 3, what="answers meanwhile")
        clients.wait_for(writes=10, reads=20)
    cluster.wait_for_health("shard_a", "alive")
    cluster.prove(recorder.history)


def test_what_needs_the_dead_shard_is_refused_and_all_else_goes_on(cluster, recorder, fixed):
    owners = cluster.owners()
    here, there = [
        next(row_id for row_id in map("named-{}".format, count()) if owners(row_id) == label)
        for label in ("shard_0", "shard_a")
    ]
    writes, _token = recorder.write([here, there], "named")
    assert all(write.outcome is Outcome.ACKNOWLEDGED for write in writes)
    with killed(cluster):
        cluster.wait_for_health("shard_a", "dead")
        # Ids: of a live shard's rows everything works, of a dead one's nothing, and never is it called not found.
        assert recorder.get(here).status_code == 200
        for answer in (
            recorder.get(there),
            recorder.fetch([here, there]),
            cluster.coordinator.post("/vectors", {"id": there, "values": values_of(there, 0)}),
            cluster.coordinator.post("/count", {}),
            cluster.coordinator.get("/namespaces/vectors"),
        ):
            assert answer.status_code == 503, f"{answer.request.url}: {answer.text}"
            error = answer.json()["error"]
            assert error["code"] == "shard_unavailable", answer.text
            assert "shard_a" in answer.text
        refused = cluster.coordinator.post("/vectors", {"id": there, "values": values_of(there, 0)})
        assert int(refused.headers["Retry-After"]) >= 1
        # Of a batch that needs both, each row's fate is told.
        writes, _token = recorder.write([here, there], "named")
        assert [write.outcome is Outcome.ACKNOWLEDGED for write in writes] == [True, False], writes
        # What has no id yet goes where there is somebody.
        made = recorder.ask("PUT", "/vectors/batch", {"vectors": [{"values": [1.0] * 8}] * 50}, namespace="generated")
        assert made.ok, made.text
        assert {owners(row_id) for row_id in made.json()["ids"]} == {"shard_0"}
        assert recorder.fetch([here, there], partial=True).json()["missing"] == []
    cluster.wait_for_health("shard_a", "alive")
    again = recorder.get(there)
    assert again.status_code == 200
    cluster.prove(recorder.history)


def test_a_dead_target_never_takes_slots_and_gets_its_share_when_it_lives(cluster, recorder, fixed):
    before = cluster.slots()
    kill_all(cluster["shard_b"])
    move: Any = cluster.add("shard_b")
    with ShardingClients(recorder, fixed=fixed, readers=1, seed=next(seeds)) as clients:
        clients.wait_for(writes=60, reads=60)
        assert cluster.slots() == before | {"shard_b": 0}
        cluster["shard_b"].start()
        cluster.wait(lambda: cluster.slots()["shard_b"] > 0, 60, "slots for shard_b")
        cluster.wait_for_move(move)
        clients.wait_for(writes=10, reads=10)
    cluster.prove(recorder.history)


@pytest.mark.slow
def test_a_target_that_dies_during_the_copy_takes_no_slots_and_the_move_can_be_cancelled(cluster, recorder, fixed):
    before = cluster.slots()
    with ShardingClients(recorder, fixed=fixed, readers=1, seed=next(seeds)) as clients:
        with cluster.links["shard_b"].faulty(Fault.SLOW, bytes_per_s=20_000):
            move = cluster.redistribute("shard_0", "shard_b")
            assert cluster.wait_for_phase(move, "copying") == "copying"
            kill_all(cluster["shard_b"])
        cluster.wait_for_health("shard_b", "dead")
        assert cluster.slots() == before
        assert cluster.control(move, "cancel").ok
        cluster["shard_b"].start()
        cluster.wait_for_move(move, phase="cancelled")
        clients.wait_for(writes=10, reads=10)
    assert cluster.slots() == before
    cluster.prove(recorder.history)


def test_a_shard_out_of_reach_goes_only_by_force_and_its_loss_is_recorded(cluster, recorder):
    rows = cluster.info()["shards"]["shard_b"]["vector_count"]
    assert rows > 0
    kill_all(cluster["shard_b"])
    cluster.wait_for_health("shard_b", "dead")
    refused = cluster.remove("shard_b")
    assert refused.status_code == 409, refused.text
    assert refused.json()["error"]["code"] == "shard_unreachable"
    assert refused.json()["error"]["detail"]["rows"] == rows
    assert cluster.remove("shard_b", force="true").ok
    assert "shard_b" not in cluster.info()["shards"]
    answer = cluster.coordinator.post("/search", {"query": [1.0] * 8, "top_k": 5})
    assert answer.headers["X-MLVDB-Complete"] == "true"
    assert cluster.coordinator.post("/count", {}).ok
    assert cluster.remove("shard_b").status_code == 404
