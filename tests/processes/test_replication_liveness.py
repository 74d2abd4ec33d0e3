"""A node has room for what others ask of it: no silent peer, and no circle of waits, takes all its threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import requests

from tests.processes.at_work import AtWork
from tests.processes.clients import Recorder
from tests.processes.cluster import ReplicationCluster, frozen
from tests.processes.history import History, Outcome
from tests.processes.node import wait_for
from tests.processes.writers import values_of

WORKERS = 2
ROUNDS = 30
HEALTH_DEADLINE_S, POINT_READ_DEADLINE_S = 0.2, 1.0
# The machine may be busy with other tests. One of two worker processes without a free thread would miss half of all.
MISSES = ROUNDS // 4

pytestmark = pytest.mark.timeout(300)
Request = Callable[[requests.Session], requests.Response]


@pytest.fixture(scope="module")
def running() -> Iterator[ReplicationCluster]:
    """A primary and a replica, with the threads that a node has by default."""
    with ReplicationCluster(MLVDB_WORKERS=str(WORKERS)) as cluster:
        yield cluster


@pytest.fixture
def recorder(cluster: ReplicationCluster, history: History) -> Recorder:
    """What sends single requests, and has written a row that can be read."""
    recorder = Recorder(cluster.nodes, history, timeout_s=5.0)
    # Each worker of the primary finds out for itself that a replica which was stopped before answers again.
    wait_for(lambda: recorder.write("primary", ["known"], level="all").outcome is Outcome.ACKNOWLEDGED, timeout_s=30)
    return recorder


class InFlight(AtWork):
    """Requests that are sent again and again, each from a thread of its own, until the context ends."""

    def __init__(self, *requests_: tuple[int, Request]) -> None:
        self.statuses: list[int] = []
        jobs = [partial(self._run, request) for many, request in requests_ for _ in range(many)]
        super().__init__(jobs, ends_within_s=20)

    def _run(self, request: Request) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                answer = request(session)
                self.statuses.append(answer.status_code)
                if not answer.ok:
                    self._stop.wait(0.1)


def search(cluster: ReplicationCluster, name: str, **query: str) -> Request:
    """Return a search that asks other copies."""
    body = {"query": values_of("known", 1), "top_k": 5}
    url = cluster[name].base_url + "/search"
    return lambda session: session.post(url, json=body, params={"timeout": "3", **query}, timeout=10)


def write(recorder: Recorder, name: str, level: str) -> Request:
    """Return a write of a new row at a level."""

    def send(session: requests.Session) -> requests.Response:
        made = recorder.write(name, [f"flight-{next(recorder.history.versions)}"], level=level)
        if made.outcome is Outcome.UNKNOWN:
            raise requests.ConnectionError(made.answer)
        answer = requests.Response()
        answer.status_code = 200 if made.outcome is Outcome.ACKNOWLEDGED else 503
        return answer

    return send


def missed(url: str, *, deadline_s: float) -> int:
    """Return how many of some requests, each on a connection of its own, were not answered well in time."""
    misses = 0
    for _ in range(ROUNDS):
        try:
            misses += requests.get(url, timeout=deadline_s).status_code != 200
        except requests.Timeout:
            misses += 1
    return misses


def test_with_a_peer_stopped_and_many_requests_waiting_for_it_the_node_answers_at_once(cluster, recorder):
    node = cluster["primary"]
    waiting = [
        (2 * WORKERS, search(cluster, "primary", read_preference="replica")),
        (2 * WORKERS, search(cluster, "primary", consistency="all")),
        (4 * WORKERS, write(recorder, "primary", "all")),
    ]
    for _ in range(2):
        with frozen(cluster["replica_1"]), InFlight(*waiting) as flight:
            assert missed(f"{node.base_url}/healthz", deadline_s=HEALTH_DEADLINE_S) <= MISSES
            assert missed(f"{node.base_url}/vectors/known", deadline_s=POINT_READ_DEADLINE_S) <= MISSES
            assert missed(f"{node.base_url}/healthz", deadline_s=HEALTH_DEADLINE_S) <= MISSES
        assert set(flight.statuses) <= {200, 503}
        wait_for(lambda: recorder.write("primary", ["back"], level="all").outcome is Outcome.ACKNOWLEDGED, timeout_s=30)
    cluster.prove(recorder.history)


def test_a_replica_whose_primary_is_stopped_answers_its_own_reads(cluster, recorder):
    node = cluster["replica_1"]
    waiting = [
        (4 * WORKERS, search(cluster, "replica_1", consistency="quorum")),
        (4 * WORKERS, search(cluster, "replica_1", consistency="all")),
    ]
    with frozen(cluster["primary"]), InFlight(*waiting) as flight:
        assert missed(f"{node.base_url}/healthz", deadline_s=HEALTH_DEADLINE_S) <= MISSES
        assert missed(f"{node.base_url}/vectors/known", deadline_s=POINT_READ_DEADLINE_S) <= MISSES
    assert set(flight.statuses) <= {200, 503}
    cluster.prove(recorder.history)


def test_two_nodes_that_wait_for_each_other_do_not_lock_up(cluster, recorder):
    answered = {"writes": 0, "reads": 0}

    def counted(kind: str, request: Request) -> Request:
        def send(session: requests.Session) -> requests.Response:
            answer = request(session)
            answered[kind] += answer.ok
            return answer

        return send

    # More of each than a node has threads: the primary waits for the replica, and the replica for the primary.
    both = [
        (8 * WORKERS, counted("writes", write(recorder, "primary", "all"))),
        (8 * WORKERS, counted("reads", search(cluster, "replica_1", consistency="quorum"))),
        (4 * WORKERS, counted("reads", search(cluster, "primary", consistency="all"))),
    ]
    with InFlight(*both) as flight:
        wait_for(
            lambda: answered["writes"] > 200 and answered["reads"] > 200, timeout_s=30, what="answers on both sides"
        )
        with contextlib.suppress(requests.Timeout):
            assert cluster["replica_1"].get("/healthz", timeout=5).status_code == 200
    assert set(flight.statuses) <= {200, 503}
    cluster.prove(recorder.history)
