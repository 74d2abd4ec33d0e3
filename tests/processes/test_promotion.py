"""Promotions by hand on real nodes: sent to a replica, from the owner, several at once, and cut short.

What a promotion must never lose is proven at the end of each test by the history of all writes and reads. Divergent
tails and cut networks are in `test_replication_partitions`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import requests

from tests.processes.clients import Clients, Recorder
from tests.processes.cluster import ReplicationCluster, freeze, frozen, kill_all, thaw
from tests.processes.history import History, Outcome
from tests.processes.node import wait_for

QUICK = {"MLVDB_LEASE_S": "1"}

seeds = count(1)


@pytest.fixture(scope="module")
def three() -> Iterator[ReplicationCluster]:
    """Three copies; after each test all are up and equal, and any of them may be the primary."""
    with ReplicationCluster(2, **QUICK) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: ReplicationCluster) -> Iterator[ReplicationCluster]:
    """The cluster of three, well again after the test."""
    three.wait_until_members()
    yield three
    three.heal()


@pytest.fixture
def recorder(cluster: ReplicationCluster, history: History) -> Recorder:
    """What sends single requests."""
    return Recorder(cluster.nodes, history)


def load(recorder: Recorder, **options: Any) -> Clients:
    """Return clients that write to whichever node takes it."""
    names = list(recorder.nodes)
    return Clients(recorder, write_to=names, read_from=names, levels=("one", "quorum"), seed=next(seeds), **options)


def hand_over(cluster: ReplicationCluster, name: str) -> requests.Response:
    """Ask the primary to make a replica the primary."""
    replicas = cluster.primary.get("/replication/info").json()["replicas"]
    [known] = [key for key, replica in replicas.items() if replica["url"] == cluster.url(name)]
    answer = cluster.primary.post(f"/replication/replicas/{known}/promote", timeout=60)
    if answer.ok:
        cluster.head = name
    return answer


def roles(cluster: ReplicationCluster) -> dict[str, str]:
    return {name: cluster.shard(name)["role"] for name in cluster.names}


# -- from the owner ----------------------------------------------------------------------------------------------


def test_the_owner_hands_over_and_gets_it_back_in_the_midst_of_writes_and_nothing_at_all_is_lost(cluster, recorder):
    first, second = cluster.head, cluster.replicas[0]
    with load(recorder) as clients:
        clients.wait_for(30)
        for to in (second, first):
            answer = hand_over(cluster, to)
            assert answer.status_code == 200, answer.text
            assert answer.json()["term"] == cluster.shard(to)["term"]
            clients.wait_for(30, "quorum")
            cluster.wait_until_members()
    cluster.prove(recorder.history)
    # Not even writes of level one: who hands over has sent everything before.
    assert not cluster.set_aside()
    assert sorted(roles(cluster).values()) == ["primary", "replica", "replica"]


def test_a_handover_to_a_replica_that_does_not_answer_is_refused_and_writes_go_on(cluster, recorder):
    head, other = cluster.head, cluster.replicas[0]
    with frozen(cluster[other]):
        answer = hand_over(cluster, other)

        assert answer.status_code == 409, answer.text
        assert recorder.write(head, ["after a refusal"], level="quorum").outcome is Outcome.ACKNOWLEDGED
    assert cluster.shard(head)["role"] == "primary"
    cluster.prove(recorder.history)


def test_a_replica_that_stops_in_the_middle_of_a_handover_leaves_a_primary_that_takes_writes(cluster, recorder):
    head, other = cluster.head, cluster.replicas[0]
    answers: list[requests.Response] = []
    with load(recorder) as clients:
        clients.wait_for(20)
        asking = threading.Thread(target=lambda: answers.append(hand_over(cluster, other)))
        asking.start()
        # Anywhere between the first look and the last vote.
        wait_for(lambda: cluster.shard(head)["promised_term"] > cluster.shard(head)["term"], timeout_s=20)
        freeze(cluster[other])
        try:
            asking.join(60)
            if answers and answers[0].ok:
                pytest.skip("it was over before the replica could be stopped")
            cluster.head = head
            clients.wait_for(20, "quorum")
        finally:
            thaw(cluster[other])
        wait_for(lambda: sorted(roles(cluster).values()) == ["primary", "replica", "replica"], timeout_s=40)
        cluster.head = next(name for name, role in roles(cluster).items() if role == "primary")
        cluster.wait_until_members()
    cluster.prove(recorder.history)


def test_a_primary_killed_in_the_middle_of_a_handover_comes_back_and_somebody_takes_writes(cluster, recorder):
    head, other = cluster.head, cluster.replicas[0]

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            hand_over(cluster, other)

    with load(recorder) as clients:
        clients.wait_for(20)
        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: cluster.shard(head)["promised_term"] > cluster.shard(head)["term"], timeout_s=20)
        kill_all(cluster[head])
        asking.join(60)
        cluster[head].start()
        clients.wait_for(20, "quorum", timeout_s=60)
    wait_for(lambda: sorted(roles(cluster).values()) == ["primary", "replica", "replica"], timeout_s=40)
    cluster.head = next(name for name, role in roles(cluster).items() if role == "primary")
    cluster.wait_until_members()
    cluster.prove(recorder.history)


# -- sent to a replica -------------------------------------------------------------------------------------------


def test_of_two_candidates_at_once_one_becomes_the_primary(cluster, recorder):
    old, candidates = cluster.head, cluster.replicas
    with load(recorder) as clients:
        clients.wait_for(30)
        kill_all(cluster[old])
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda name: cluster[name].post("/replication/promote", timeout=60), candidates))
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert any(answer.ok for answer in answers), [answer.text for answer in answers]
        wait_for(
            lambda: sorted(cluster.shard(name)["role"] for name in candidates) == ["primary", "replica"],
            timeout_s=30,
            what="one primary",
        )
        [cluster.head] = [name for name in candidates if cluster.shard(name)["role"] == "primary"]
        clients.wait_for(20, "quorum")
        cluster[old].start()
        cluster.wait_until_members()
    cluster.prove(recorder.history)


def test_a_refused_promotion_names_the_copy_that_has_more(cluster, recorder):
    old, (behind, ahead) = cluster.head, cluster.replicas
    with frozen(cluster[behind]):
        assert recorder.write(old, ["only here and there"], level="quorum").outcome is Outcome.ACKNOWLEDGED
        kill_all(cluster[old])
    refused = cluster[behind].post("/replication/promote", timeout=30)

    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], error["detail"]["url"]) == ("more_caught_up", cluster.url(ahead))
    cluster.promote(ahead)
    cluster[old].start()
    cluster.wait_until_members()
    cluster.prove(recorder.history)


def test_asking_the_new_primary_again_changes_nothing(cluster, recorder):
    new = cluster.replicas[0]
    recorder.write(cluster.head, ["before"], level="all")
    kill_all(cluster.primary)
    cluster.promote(new)
    before = cluster.shard(new)

    again = cluster[new].post("/replication/promote", timeout=30)

    assert again.status_code == 200
    assert cluster.shard(new)["term"] == before["term"]


# -- two copies --------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[ReplicationCluster]:
    """A primary and one replica."""
    with ReplicationCluster(1, **QUICK) as cluster:
        yield cluster


def test_the_one_replica_replaces_a_killed_primary_by_the_command_and_that_comes_back_as_its_replica(pair):
    recorder = Recorder(pair.nodes, History())
    for number in range(10):
        recorder.write("primary", [f"row-{number}"], level="quorum")
    pair["primary"].kill()

    refused = pair["replica_1"].post("/vectors", {"id": "x", "values": [0.0] * 8})
    promoted = pair["replica_1"].manage("promote")

    assert refused.status_code == 409
    assert promoted.returncode == 0, promoted.stderr
    assert "term 2" in promoted.stdout
    pair.head = "replica_1"
    assert recorder.write("replica_1", ["after"]).outcome is Outcome.ACKNOWLEDGED
    pair["primary"].start()
    wait_for(lambda: roles(pair) == {"primary": "replica", "replica_1": "primary"}, timeout_s=30)
    events = pair["primary"].manage(
        "shell", "-c", "from cluster.models import ClusterEvent as E; print(E.objects.filter(action='demoted').count())"
    )
    assert events.stdout.strip().endswith("1")
    assert recorder.write("replica_1", ["both"], level="all").outcome is Outcome.ACKNOWLEDGED
    pair.prove(recorder.history)


def test_a_removed_replica_becomes_a_cluster_of_its_own_only_by_force(pair):
    recorder = Recorder(pair.nodes, History())
    recorder.write("primary", ["shared"], level="all")
    assert pair["primary"].session.delete(pair["primary"].base_url + "/replication/replicas/replica_1").ok
    wait_for(lambda: pair.shard("replica_1")["role"] == "detached", timeout_s=20, what="the removal")

    refused = pair["replica_1"].post("/replication/promote")
    forced = pair["replica_1"].post("/replication/promote?force=true")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "detached")
    assert forced.status_code == 200, forced.text
    assert "cluster of its own" in forced.json()["warning"]
    assert pair["replica_1"].post("/vectors", {"id": "mine", "values": [0.0] * 8}).status_code == 201
    assert pair["primary"].get("/vectors/mine").status_code == 404
    assert pair["replica_1"].get("/vectors/shared").status_code == 200
    assert pair.status("primary")["cluster"] != pair.status("replica_1")["cluster"]
