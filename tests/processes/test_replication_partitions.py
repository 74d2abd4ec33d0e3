"""Cut networks, killed primaries and promotions by hand under writes: what a quorum has acknowledged is never lost.

One cluster of three for the module, in which each node may be the primary when a test begins; after every test all
copies are equal in full, and the history of all tests is proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from tests.processes.clients import Clients, Recorder
from tests.processes.cluster import BUSY, ReplicationCluster, frozen, kill_all
from tests.processes.fault_proxy import Fault
from tests.processes.history import History, Outcome, Write
from tests.processes.node import wait_for

SECRET = {"MLVDB_CLUSTER_SECRET": "what the nodes of this test share"}

pytestmark = pytest.mark.timeout(300)
seeds = count(1)


@pytest.fixture(scope="module")
def running() -> Iterator[ReplicationCluster]:
    """The cluster of this module: three copies, a quorum is two; its nodes sign what they say to each other."""
    with ReplicationCluster(2, proxied=True, **BUSY, **SECRET) as cluster:
        yield cluster


@pytest.fixture
def recorder(cluster: ReplicationCluster, history: History) -> Recorder:
    """What sends single requests."""
    return Recorder(cluster.nodes, history, timeout_s=2.0)


def load(recorder: Recorder, *write_to: str, read_from: Sequence[str] = (), **options: int) -> Clients:
    """Return clients that write to nodes at both levels, and read from any node or those named."""
    return Clients(
        recorder,
        write_to=write_to,
        read_from=read_from or list(recorder.nodes),
        levels=("one", "quorum"),
        seed=next(seeds),
        **options,
    )


def survives(recorder: Recorder, name: str, write: Write) -> bool:
    """Return whether a node answers a read after a write; it may not be ready to, but must not call it lost."""
    answer = recorder.read(name, write.ids[0], after=write)
    assert answer.status_code in (200, 503), f"{name}: {answer.text}"
    return answer.ok


@pytest.mark.parametrize("fault", [Fault.CUT_REQUESTS, Fault.CUT_ANSWERS])
def test_a_link_cut_in_one_direction_leaves_a_quorum_and_heals_without_a_trace(cluster, recorder, fault):
    victim, other = cluster.replicas
    with load(recorder, cluster.head, read_from=[cluster.head, other]) as clients:
        clients.wait_for(30)
        with cluster.links[victim].faulty(fault):
            clients.wait_for(40, "quorum")
            assert recorder.write(cluster.head, ["to-all"], level="all").outcome is Outcome.COMMITTED
        clients.wait_for(30)
    cluster.prove(recorder.history)


def test_a_promotion_between_divergent_tails_keeps_every_quorum_write_and_reports_the_others(cluster, recorder):
    old, (new, third) = cluster.head, cluster.replicas
    with load(recorder, old) as clients:
        clients.wait_for(60)
    cluster.wait_until_equal()
    cluster.cut_off(old)
    # On this side of the cut a primary that does not know better goes on, alone.
    with load(recorder, old, read_from=[old]) as stranded:
        stranded.wait_for(30, "one")
        lost = stranded.acknowledged[-1]
        new = cluster.promote(new)
        with load(recorder, new, read_from=[new, third]) as clients:
            clients.wait_for(40, "quorum")
            stranded.wait_for(20, "one")
    assert not [write for write in stranded.acknowledged if write.level == "quorum"]
    cluster.heal()
    cluster.wait_until_members(old)
    cluster.prove(recorder.history)
    assert lost.position in cluster.set_aside()
    for name in cluster.names:
        answer = recorder.read(name, lost.ids[0], after=lost)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "token_lost"), answer.text


def test_tokens_of_quorum_writes_survive_a_promotion(cluster, recorder):
    new, third = cluster.replicas
    before = [recorder.write(cluster.head, [f"token-{number}"], level="quorum") for number in range(5)]
    cluster.wait_until_equal()
    with frozen(cluster.primary):
        assert cluster.promote(new) == new
        for write in before:
            for name in (new, third):
                wait_for(lambda name=name, write=write: survives(recorder, name, write), what=f"{write} on {name}")
    cluster.wait_until_members()
    cluster.prove(recorder.history)


def test_a_promotion_in_the_midst_of_writes_loses_no_quorum_write_and_clients_find_the_new_primary(cluster, recorder):
    old, (new, _third) = cluster.head, cluster.replicas
    with load(recorder, *cluster.names, writers=3) as clients:
        clients.wait_for(60, "quorum")
        kill_all(cluster[old])
        cluster.promote(new)
        clients.wait_for(60, "quorum")
        cluster[old].start()
        cluster.wait_until_members(old)
        clients.wait_for(30, "quorum")
    cluster.prove(recorder.history)


def test_two_promotions_in_a_row_leave_one_history(cluster, recorder):
    terms = len(cluster.shard(cluster.head)["terms"])
    with load(recorder, *cluster.names, writers=3) as clients:
        clients.wait_for(30, "quorum")
        for _ in range(2):
            # The one that was cut off before is back when the next one goes.
            cluster.heal()
            cluster.wait_until_members()
            cluster.cut_off(cluster.head)
            cluster.promote(cluster.replicas[1])
            clients.wait_for(30, "quorum")
        cluster.heal()
        cluster.wait_until_members()
        clients.wait_for(20, "quorum")
    cluster.prove(recorder.history)
    assert len(cluster.shard(cluster.head)["terms"]) == terms + 2


def test_the_old_primary_is_fenced_and_comes_back_as_a_replica(cluster, recorder):
    old, (new, _third) = cluster.head, cluster.replicas
    recorder.write(old, ["fenced"], level="all")
    cluster.wait_until_equal()
    with frozen(cluster[old]):
        assert cluster.promote(new) == new
        wait_for(lambda: recorder.write(new, ["fenced"], level="quorum").outcome is Outcome.ACKNOWLEDGED, timeout_s=20)
    # It wakes up believing that nothing has happened: at a quorum nobody answers it, and soon it knows.
    stale = recorder.write(old, ["stale"], level="quorum")
    assert stale.outcome in (Outcome.COMMITTED, Outcome.REFUSED)
    wait_for(lambda: cluster.shard(old)["role"] == "replica", timeout_s=20, what="the end of its time as primary")
    refused = cluster[old].post("/vectors", {"id": "direct", "values": [0.0] * 8})
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "not_primary"
    assert error["detail"]["primary_url"] == cluster.url(new)
    cluster.wait_until_members(old)
    cluster.prove(recorder.history)


def test_both_killed_at_once_lose_nothing_acknowledged(cluster, recorder):
    head, other = cluster.head, cluster.replicas[0]
    with load(recorder, head, read_from=[head, other]) as clients:
        clients.wait_for(60)
        kill_all(cluster[head])
        kill_all(cluster[other])
        cluster[head].start()
        cluster[other].start()
        clients.wait_for(30, "quorum")
    cluster.prove(recorder.history)


def test_a_minority_promotes_nobody(cluster, recorder):
    lonely = cluster.replicas[0]
    with load(recorder, cluster.head, read_from=[cluster.head]) as clients:
        clients.wait_for(20)
        cluster.cut_off(lonely)
        refused = cluster[lonely].post("/replication/promote", timeout=30)
        assert refused.status_code in (409, 503), refused.text
        assert cluster.shard(lonely)["role"] == "replica"
        clients.wait_for(20, "quorum")
        cluster.heal()
        # Its vote for itself must not have shut it out, nor the primary.
        clients.wait_for(20, "quorum")
    cluster.prove(recorder.history)


def test_a_primary_that_is_alive_is_not_replaced_without_force(cluster, recorder):
    new = cluster.replicas[0]
    refused = cluster[new].post("/replication/promote", timeout=30)
    assert refused.status_code == 409, refused.text
    with load(recorder, *cluster.names) as clients:
        clients.wait_for(20, "quorum")
        cluster.promote(new, force=True)
        clients.wait_for(30, "quorum")
        cluster.wait_until_members()
    cluster.prove(recorder.history)


def test_after_all_that_every_record_and_file_is_whole(cluster, history):
    cluster.prove(history)
    cluster.verify()
