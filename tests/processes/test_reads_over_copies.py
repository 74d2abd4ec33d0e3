"""Reads over real copies: who answers, at which level, with which tokens, and what is said when copies are away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.processes.cluster import ReplicationCluster, frozen
from tests.processes.node import NodeProcess, wait_for

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SEARCH = {"query": [1, 2]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ReplicationCluster]:
    with ReplicationCluster(
        replicas=2, MLVDB_STALE_AFTER_S="6", MLVDB_WORKERS="1", MLVDB_HEDGE_AFTER_S="0.5"
    ) as cluster:
        answer = cluster.primary.post("/vectors?consistency=all", {"id": 1, "values": [1, 2], "metadata": {"n": 1}})
        assert answer.status_code == 201, answer.text
        yield cluster


def copy_of(node: NodeProcess, query: str) -> str:
    """Which copy answered a search."""
    answer = node.post(f"/search?explain=1&{query}", SEARCH)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["shards"][0]["copy"])


def error_of(answer: requests.Response) -> dict[str, object]:
    return dict(answer.json()["error"])


def stale_of(node: NodeProcess) -> str | None:
    return node.get("/vectors/1").headers.get("X-MLVDB-Stale")


def test_each_node_answers_itself_unless_another_copy_is_asked_for(cluster):
    primary, replica = cluster["primary"], cluster["replica_1"]

    assert copy_of(primary, "") == "primary"
    assert copy_of(replica, "") == "replica_1"
    assert copy_of(replica, "read_preference=nearest") == "replica_1"
    assert copy_of(replica, "read_preference=primary") == "primary"
    assert {copy_of(primary, "read_preference=replica") for _ in range(4)} == {"replica_1", "replica_2"}


@pytest.mark.parametrize("name", ["primary", "replica_1", "replica_2"])
@pytest.mark.parametrize("level", ["quorum", "all"])
def test_a_write_at_quorum_is_in_every_read_at_quorum_whoever_is_asked(cluster, name, level):
    row = f"{name}-{level}"
    for version in range(5):
        write = cluster.primary.post(
            "/vectors?consistency=quorum", {"id": row, "values": [1, 2], "metadata": {"n": version}}
        )
        assert write.status_code == 201, write.text

        read = cluster[name].get(f"/vectors/{row}?consistency={level}")
        found = cluster[name].post(f"/search?consistency={level}", {**SEARCH, "top_k": 100, "filter": {"id": row}})

        assert read.json()["metadata"] == {"n": version}
        assert [hit["metadata"] for hit in found.json()] == [{"n": version}]
        assert "X-MLVDB-Stale" not in read.headers


def test_a_session_reads_its_writes_on_every_node(cluster):
    for version in range(20):
        write = cluster.primary.post("/vectors", {"id": "session", "values": [1, 2], "metadata": {"n": version}})
        token = {"X-MLVDB-Min-Seq": f"shard_0:{write.json()['seq']['shard_0']}"}

        for name in ("replica_1", "replica_2"):
            assert cluster[name].get("/vectors/session", headers=token).json()["metadata"] == {"n": version}


def test_a_token_that_the_primary_never_gave_is_lost_on_every_node(cluster):
    term_and_seq = cluster.primary.post("/vectors", {"id": 2, "values": [1, 2]}).json()["seq"]["shard_0"]
    never = f"shard_0:{term_and_seq.rpartition('.')[0]}.999999"

    for name in ("primary", "replica_1"):
        answer = cluster[name].get(f"/vectors/2?min_seq={never}")
        assert answer.status_code == 409
        assert (error_of(answer)["code"], error_of(answer)["field"]) == ("token_lost", "min_seq")


def test_what_is_not_there_is_not_there_through_another_node_as_well(cluster):
    answer = cluster["replica_1"].get("/vectors/nowhere?read_preference=primary")

    assert answer.status_code == 404
    assert (error_of(answer)["code"], error_of(answer)["field"]) == ("vector_not_found", "id")


def test_a_replica_whose_primary_falls_silent_answers_on_and_says_that_its_lag_is_unknown(cluster):
    replica = cluster["replica_1"]
    wait_for(lambda: stale_of(replica) is None, timeout_s=20, what="a known lag")

    with frozen(cluster.primary):
        wait_for(lambda: stale_of(replica) == "shard_0:unknown", timeout_s=20, what="an unknown lag")
        began = time.monotonic()
        search = replica.post("/search?read_preference=primary", SEARCH)
        assert search.status_code == 200
        assert search.headers["X-MLVDB-Stale"] == "shard_0:unknown"
        assert time.monotonic() - began < 2
        read = replica.get("/vectors/1?read_preference=primary")
        assert (read.status_code, error_of(read)["code"]) == (503, "shard_unavailable")
        # Two of three members are a quorum; all of them are not there.
        assert replica.get("/vectors/1?consistency=quorum").status_code == 200
        every = replica.get("/vectors/1?consistency=all")
        assert (every.status_code, error_of(every)["code"]) == (503, "not_enough_copies")
        detail = error_of(every)["detail"]
        assert (detail["acknowledged"], detail["required"]) == (2, 3)

    wait_for(lambda: stale_of(replica) is None, timeout_s=30, what="a known lag again")


def test_a_read_for_replicas_passes_a_stopped_one_by(cluster):
    with frozen(cluster["replica_1"]):
        for _ in range(6):
            began = time.monotonic()
            answer = cluster.primary.get("/vectors/1?read_preference=replica")
            assert answer.status_code == 200
            assert time.monotonic() - began < 1
        write = cluster.primary.post("/vectors?consistency=all&timeout=1", {"values": [1, 2]})
        assert (write.status_code, error_of(write)["code"]) == (503, "not_enough_copies")
        detail = error_of(write)["detail"]
        assert detail["required"] == 3
        # The id that was made is in the answer, and with it the write can be repeated.
        [made] = detail["ids"]
        again = cluster.primary.post("/vectors?consistency=quorum", {"id": made, "values": [1, 2]})
        assert again.status_code == 201, again.text


def test_two_nodes_that_send_each_other_their_reads_and_have_few_threads_do_not_lock_up():
    """Each has two threads that may wait; eight clients of each node want the other's copy."""
    settings = {"MLVDB_WORKERS": "1", "MLVDB_THREADS": "4", "MLVDB_HEDGE_AFTER_S": "5"}
    with ReplicationCluster(replicas=1, **settings) as cluster:
        assert cluster.primary.post("/vectors?consistency=all", {"id": 1, "values": [1, 2]}).status_code == 201
        ways = [("primary", "replica"), ("replica_1", "primary")]
        until = time.monotonic() + 4

        def read_on(node: NodeProcess, preference: str) -> list[int]:
            statuses = []
            with requests.Session() as session:
                while time.monotonic() < until:
                    url = f"{node.base_url}/vectors/1?read_preference={preference}&partial=false"
                    answer = session.get(url, timeout=10)
                    if answer.status_code == 503:
                        assert answer.json()["error"]["code"] in ("busy", "shard_unavailable"), answer.text
                        assert answer.headers["Retry-After"] == "1"
                    statuses.append(answer.status_code)
            return statuses

        with ThreadPoolExecutor(16) as pool:
            reads = [pool.submit(read_on, cluster[name], preference) for name, preference in ways * 8]
            statuses = [status for read in reads for status in read.result()]

        assert set(statuses) <= {200, 503}
        assert statuses.count(200) > 50
        for name in ("primary", "replica_1"):
            assert cluster[name].get("/vectors/1", timeout=2).status_code == 200
