"""The health monitor on a real database, with peers that answer what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cluster.health.probe import NodeStatus, Probe, ShardStatus
from cluster.health.rounds import ReplicaPatient, Round, probe_now, question_now, run_round
from cluster.health.samples import refusal_record, sample_record
from cluster.models import HealthCheck, Replica, ReplicaCopy
from cluster.replication.knocks import SHIP_TASK
from cluster.states import CopyState, PeerHealth
from cluster.tasks import health_replicas
from cluster.topology import topology
from cluster.transport import PROTOCOL
from mlvdb_site.markers import topology_marker
from tests.cluster.registry import Registry
from vectors.store import log

Peers = dict[str, Callable[[], Probe]]


@pytest.fixture
def peers(monkeypatch) -> Peers:
    """What each replica, by name, makes of a probe; a replica that is not here is alive."""
    answers: Peers = {}

    def probe(patient: ReplicaPatient) -> Probe:
        return answers.get(patient.row.name, lambda: good(patient.row.node))()

    monkeypatch.setattr(ReplicaPatient, "probe", probe)
    monkeypatch.setattr(Round, "pause", staticmethod(lambda pause_s: None))
    return answers


def good(node: str, **shards: ShardStatus) -> Probe:
    return Probe(True, 1.0, NodeStatus(node, "0.1.0", 1, "", 0, False, shards))


def bad(code: str = "peer_silent") -> Probe:
    return Probe(False, 800.0, error=f"it failed: {code}", code=code)


def health_of(name: str) -> PeerHealth:
    return PeerHealth(Replica.objects.get(name=name).health)


@pytest.mark.parametrize("number", [2**63, -1, "7", None])
def test_a_status_with_a_number_that_no_column_holds_is_none(number: object) -> None:
    """One such answer must not end the round of all others."""
    shard = {"uid": "5" * 32, "role": "replica", "term": 1, "seq": 1, "promised_term": number}
    status = {"node": "a", "version": "1", "protocol": PROTOCOL, "cluster": "", "epoch": 0, "is_owner": False}

    with pytest.raises(ValueError, match="not a node's status"):
        NodeStatus.of({**status, "shards": [shard]})


def test_a_round_finds_a_new_replica_alive_and_has_it_sent_to(owner: Registry, peers: Peers) -> None:
    replica = owner.replica("a", health=PeerHealth.UNKNOWN, successes=0, sweeps_to_skip=7, send_failures=3)

    health_replicas()

    replica.refresh_from_db()
    assert (replica.health, replica.sweeps_to_skip, replica.send_failures) == (PeerHealth.ALIVE, 0, 0)
    assert owner.sent == [(SHIP_TASK, (replica.pk,))]


def test_one_round_is_enough_to_find_a_silent_replica_dead(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    peers["a"] = bad

    run_round()

    assert health_of("a") is PeerHealth.DEAD
    assert HealthCheck.objects.filter(ok=False).count() == 3
    assert "peer_silent" in Replica.objects.get().last_error


def test_a_probe_that_fails_once_is_repeated_and_forgiven(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    outcomes = [bad(), good("")]
    peers["a"] = lambda: outcomes.pop(0)

    run_round()

    assert health_of("a") is PeerHealth.ALIVE
    assert list(HealthCheck.objects.order_by("id").values_list("ok", flat=True)) == [False, True]


def test_a_dead_replica_that_answers_twice_is_back_within_one_round(owner: Registry, peers: Peers) -> None:
    replica = owner.replica("a", health=PeerHealth.DEAD, failures=8, successes=0, last_error="gone")

    run_round()

    assert health_of("a") is PeerHealth.ALIVE
    assert Replica.objects.get().last_error == ""
    assert owner.sent == [(SHIP_TASK, (replica.pk,))]


def test_a_dead_replica_is_asked_once_a_round(owner: Registry, peers: Peers) -> None:
    owner.replica("a", health=PeerHealth.DEAD, failures=8, successes=0)
    peers["a"] = bad

    run_round()

    assert HealthCheck.objects.count() == 1


def test_all_replicas_are_probed_at_once(owner: Registry, peers: Peers) -> None:
    together = threading.Barrier(4, timeout=10)
    for name in "abcd":
        owner.replica(name)

        def meet() -> Probe:
            together.wait()
            return good("")

        peers[name] = meet

    run_round()

    assert HealthCheck.objects.filter(ok=True).count() == 4


def test_a_silent_replica_does_not_delay_what_is_known_of_the_others(owner: Registry, peers: Peers, wait_for) -> None:
    released = threading.Event()
    owner.replica("slow")
    owner.replica("quick", health=PeerHealth.UNKNOWN, successes=0)

    def slow() -> Probe:
        released.wait(10)
        return good("")

    peers["slow"] = slow

    def run() -> None:
        try:
            run_round()
        finally:
            connection.close()

    running = threading.Thread(target=run)
    running.start()
    try:
        wait_for(lambda: health_of("quick") is PeerHealth.ALIVE)
    finally:
        released.set()
        running.join()


def test_a_quiet_round_writes_no_replica_s_health_and_changes_no_topology(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    marker = topology_marker()

    with CaptureQueriesContext(
        connection,
    ) as queries:
        run_round()

    assert topology_marker() == marker
    assert not [query for query in queries if "SET" in query["sql"] and '"health"' in query["sql"]]
    assert HealthCheck.objects.count() == 1


def test_a_change_of_health_is_seen_by_the_topology_of_every_process(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    assert topology().shards[owner.head.uid].copies[0].health is PeerHealth.ALIVE
    peers["a"] = bad

    run_round()

    assert topology().shards[owner.head.uid].copies[0].health is PeerHealth.DEAD


def test_overlapping_rounds_count_every_sample_once(owner: Registry) -> None:
    replica = owner.replica("a")

    for ok in (False, True, False, False):
        sample_record(replica.pk, ok=ok)

    replica.refresh_from_db()
    assert (replica.health, replica.failures) == (PeerHealth.SUSPECT, 2)


def test_two_rounds_at_the_same_time_are_harmless(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    peers["a"] = bad

    def run() -> None:
        try:
            run_round()
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert health_of("a") is PeerHealth.DEAD
    assert 3 <= HealthCheck.objects.count() <= 6


def test_a_refused_connection_takes_routing_away_and_is_written_once(owner: Registry) -> None:
    replica = owner.replica("a")

    refusal_record(replica.url)
    with CaptureQueriesContext(connection) as queries:
        refusal_record(replica.url)

    assert health_of("a") is PeerHealth.SUSPECT
    assert not topology().shards[owner.head.uid].copies[0].health.is_routable
    assert not [query for query in queries if query["sql"].startswith("UPDATE")]


def test_a_refusal_of_an_unknown_url_changes_nothing(owner: Registry) -> None:
    owner.replica("a")

    refusal_record("http://127.0.0.1:65000")

    assert health_of("a") is PeerHealth.ALIVE


def test_a_probe_s_own_refusal_is_one_sample_not_two(owner: Registry, monkeypatch) -> None:
    replica = owner.replica("a")

    def probe(patient: ReplicaPatient) -> Probe:
        refusal_record(patient.row.url)
        return bad("peer_refused")

    monkeypatch.setattr(ReplicaPatient, "probe", probe)

    assert probe_now([replica]) == {"a": False}

    replica.refresh_from_db()
    assert replica.failures == 1


@pytest.mark.parametrize("code", ["other_node", "wrong_cluster", "incompatible", "own_url", "not_empty"])
def test_a_node_that_is_not_the_replica_is_refused_with_the_reason(owner: Registry, peers: Peers, code: str) -> None:
    owner.replica("a")
    peers["a"] = lambda: bad(code)

    run_round()

    assert ReplicaCopy.objects.get().state == CopyState.REFUSED
    assert code in Replica.objects.get().last_error


def test_garbage_is_a_failed_probe_but_no_reason_to_refuse_the_copy(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    peers["a"] = lambda: bad("peer_garbled")

    run_round()

    assert health_of("a") is PeerHealth.DEAD
    assert ReplicaCopy.objects.get().state == CopyState.FOLLOWING


def test_a_damaged_copy_is_quarantined(owner: Registry, peers: Peers) -> None:
    owner.replica("a")
    damaged = ShardStatus("replica", 1, 0, 1, damage=True, quarantined=False)
    peers["a"] = lambda: good("", **{owner.head.uid: damaged})

    run_round()

    assert ReplicaCopy.objects.get().state == CopyState.QUARANTINED


def test_a_replica_that_promised_a_newer_term_takes_the_primary_its_right_to_write(
    owner: Registry, peers: Peers
) -> None:
    owner.replica("a")
    promised = ShardStatus("replica", 1, 0, 5, damage=False, quarantined=False)
    peers["a"] = lambda: good("", **{owner.head.uid: promised})

    run_round()

    after = log.read_head(owner.head.pk)
    assert after is not None
    assert (after.promised_term, after.takes_writes) == (5, False)


def test_the_history_is_cut_to_its_limit_for_each_replica(owner: Registry, peers: Peers, settings) -> None:
    settings.MLVDB_HEALTH_HISTORY = 10
    for name in "ab":
        owner.replica(name)

    for _ in range(13):
        run_round()

    for replica in Replica.objects.all():
        kept = list(HealthCheck.objects.filter(replica=replica).order_by("id").values_list("id", flat=True))
        assert len(kept) == 10
        assert kept[-1] == max(kept)


def test_a_replica_that_is_removed_during_a_round_is_forgotten(owner: Registry, peers: Peers) -> None:
    replica = owner.replica("a")

    def removed() -> Probe:
        return bad()

    peers["a"] = removed
    whole = Round([ReplicaPatient(replica, question_now())])
    Replica.objects.all().delete()

    whole.run()

    assert not HealthCheck.objects.exists()


def test_a_jump_of_the_wall_clock_changes_nothing(owner: Registry, peers: Peers, monkeypatch) -> None:
    owner.replica("a")
    run_round()
    long_ago = Replica.objects.get().created_at.replace(year=1999)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr("django.utils.timezone.now", lambda: long_ago)

    run_round()

    assert health_of("a") is PeerHealth.ALIVE


def test_a_node_without_replicas_probes_nobody(head, peers: Peers) -> None:
    health_replicas()

    assert not HealthCheck.objects.exists()
