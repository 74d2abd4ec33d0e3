"""The registry: adding, pausing, syncing replicas; what goes out to their nodes and what comes back."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
from django.db import OperationalError

from cluster.models import ClusterEvent, Move, PlacementPush, Replica, ReplicaCopy, Topology
from cluster.replication import moves
from cluster.services import joining, registry
from cluster.services.candidates import (
    AlreadyReplica,
    Cycle,
    Incompatible,
    NodeHoldsRows,
    NotANode,
    OwnUrl,
    WrongCluster,
)
from cluster.services.changes import NotOwner
from cluster.services.copies import copies_of, copy_refuse, copy_state_set
from cluster.services.placements import placement_push_now, placements_push, placements_push_pending
from cluster.services.registry import ReplicaExists, ReplicationNotEnabled, replica_add
from cluster.states import CopyState, PeerHealth
from cluster.topology import TopologyView, cache, topology
from cluster.transport import PROTOCOL
from cluster.transport.errors import PeerRejected
from mlvdb_site.markers import topology_marker
from tests.cluster.scripted_peer import ScriptedPeer
from tests.cluster.standin_node import StandInNode
from vectors.errors import Conflict, InvalidInput
from vectors.models import ShardHead
from vectors.store import log

Nodes = Callable[..., StandInNode]


def add(node: StandInNode, name: str = "replica_1", **more: str) -> Replica:
    return replica_add(name=name, url=node.url, actor="user ann", **more)[0]


def copy_of(name: str = "replica_1") -> ReplicaCopy:
    return ReplicaCopy.objects.get(replica__name=name)


def test_replication_is_enabled_once(head: ShardHead) -> None:
    assert registry.replication_enable(actor="settings")
    cluster = topology().cluster
    assert not registry.replication_enable(actor="settings")

    assert len(cluster) == 32
    assert topology().cluster == cluster
    assert topology().is_single
    assert ClusterEvent.objects.filter(action="replication_enabled").count() == 1


def test_a_node_where_it_is_not_enabled_takes_no_replica(head: ShardHead) -> None:
    with pytest.raises(ReplicationNotEnabled):
        replica_add(name="replica_1", url="http://127.0.0.1:1", actor="user ann")

    assert not Topology.objects.exists()


def test_an_added_replica_is_told_of_its_shard_at_once(primary: ShardHead, nodes: Nodes) -> None:
    node, marker, epoch = nodes(), topology_marker(), topology().epoch

    replica = add(node)

    assert (replica.node, replica.version, replica.last_error) == (node.node, "0.1.0", "")
    [placement] = node.placements
    assert placement["epoch"] == epoch + 1
    assert placement["shard"] == {"uid": primary.uid, "label": "shard_0", "term": 1}
    assert (placement["role"], placement["name"], placement["node"]) == ("replica", "replica_1", node.node)
    assert [copy["name"] for copy in placement["copies"]] == ["primary", "replica_1"]
    assert copy_of().state == CopyState.SYNCING
    assert PlacementPush.objects.get().acknowledged_epoch == epoch + 1
    assert topology_marker() != marker
    event = ClusterEvent.objects.get(action="replica_added")
    assert (event.actor, event.subject, event.epoch) == ("user ann", "replica_1", epoch + 1)


def test_the_topology_of_a_process_follows_without_a_restart(primary: ShardHead, nodes: Nodes) -> None:
    assert topology().is_single

    add(nodes())

    picture = topology()
    assert not picture.is_single
    [copy] = picture.shards[primary.uid].copies
    assert (copy.name, copy.state, copy.health) == ("replica_1", CopyState.SYNCING, PeerHealth.UNKNOWN)
    assert picture.shards[primary.uid].is_local_primary


def test_the_last_topology_stays_while_the_database_does_not_answer(
    primary: ShardHead, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(nodes())
    before = topology()

    def away() -> None:
        raise OperationalError("the database is away")

    monkeypatch.setattr(cache, "topology_marker", away)

    assert topology() == before


def test_progress_is_seen_a_moment_later_although_it_sets_no_marker(
    primary: ShardHead, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(nodes())
    assert topology().shards[primary.uid].copies[0].seq == 0
    ReplicaCopy.objects.update(term=1, seq=7)
    now = cache._cache.timer()

    monkeypatch.setattr(cache._cache, "timer", lambda: now + 60)

    assert topology().shards[primary.uid].copies[0].seq == 7


def test_a_replica_may_be_added_before_its_node_is_up(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.close()

    replica = add(node)

    assert replica.last_error.startswith("peer_refused")
    assert copy_of().state == CopyState.NEW
    assert PlacementPush.objects.get().acknowledged_epoch == 0


def test_a_node_that_comes_up_later_gets_its_placement_by_beat(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.silent = True
    add(node)
    assert copy_of().state == CopyState.NEW
    node.silent = False

    placement_push_now(url=node.url, shard=primary.uid)

    replica = Replica.objects.get()
    assert (replica.node, replica.last_error) == (node.node, "")
    assert copy_of().state == CopyState.SYNCING
    # The others are told which node it is, and so is it itself.
    assert node.placements[-1]["copies"][1]["node"] == node.node


def test_a_silent_node_costs_its_own_timeout_and_no_one_elses_placement(
    primary: ShardHead, nodes: Nodes, settings
) -> None:
    settings.MLVDB_PROBE_TIMEOUT_S = 0.2
    silent, other = nodes(), nodes()
    silent.silent = True
    add(silent, "a")

    add(other, "b")

    assert other.placements
    assert copy_of("a").state == CopyState.NEW
    assert "peer_silent" in PlacementPush.objects.get(url=silent.url).last_error


def test_the_same_replica_again_changes_nothing(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    first = add(node)
    epoch, marker, events = topology().epoch, topology_marker(), ClusterEvent.objects.count()

    again, is_new = replica_add(name="replica_1", url=node.url.upper() + "/", actor="user bob")

    assert (again.pk, is_new) == (first.pk, False)
    assert (topology().epoch, topology_marker(), ClusterEvent.objects.count()) == (epoch, marker, events)


def test_a_name_or_a_url_belongs_to_one_replica(primary: ShardHead, nodes: Nodes) -> None:
    node, other = nodes(), nodes()
    add(node)

    with pytest.raises(ReplicaExists, match="remove it first"):
        add(other)
    with pytest.raises(ReplicaExists, match="is the replica replica_1's"):
        add(node, "replica_2")
    with pytest.raises(ReplicaExists, match="keeps all shards"):
        add(node, shard="shard_0")
    assert other.placements == []


def test_one_node_is_one_replica_whatever_its_urls(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)

    with pytest.raises(AlreadyReplica, match="is the replica replica_1 already"):
        replica_add(name="other", url=node.url.replace("127.0.0.1", "localhost"), actor="user ann")


def test_a_node_found_later_to_be_another_replica_is_refused(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)
    node.silent = True
    replica_add(name="other", url=node.url.replace("127.0.0.1", "localhost"), actor="user ann")
    node.silent = False

    with pytest.raises(AlreadyReplica):
        placement_push_now(url=Replica.objects.get(name="other").url, shard=primary.uid)

    assert copy_of("other").state == CopyState.REFUSED
    assert Replica.objects.get(name="other").last_error.startswith("already_replica")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ({"protocol": PROTOCOL + 1, "version": "9.0"}, Incompatible),
        ({"empty": False, "rows": 12}, NodeHoldsRows),
        ({"replicas": 2, "cluster": "c" * 32, "is_owner": True}, Cycle),
        ({"cluster": "c" * 32, "shards": [{"uid": "u", "role": "replica"}]}, WrongCluster),
    ],
)
def test_a_node_that_cannot_be_a_replica_is_refused_with_the_reason(
    primary: ShardHead, nodes: Nodes, status: dict, error: type[Exception]
) -> None:
    node = nodes(**status)

    with pytest.raises(error):
        add(node)

    assert not Replica.objects.exists()
    assert node.placements == []


def test_a_node_found_later_to_hold_rows_is_refused_and_asked_again(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.silent = True
    add(node)
    node.silent, node.status["empty"], node.status["rows"] = False, False, 3

    with pytest.raises(NodeHoldsRows):
        placement_push_now(url=node.url, shard=primary.uid)
    assert copy_of().state == CopyState.REFUSED
    assert "3 rows" in Replica.objects.get().last_error
    node.status["empty"] = True
    placement_push_now(url=node.url, shard=primary.uid)

    assert copy_of().state == CopyState.SYNCING
    assert node.placements


def test_an_owner_without_replicas_or_rows_may_become_a_replica(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes(cluster="c" * 32, is_owner=True)

    add(node)

    assert node.placements


@pytest.mark.parametrize("url", ["http://0.0.0.0:8001", "http://[::]:8001", "http://%00:8001", "http://a b:8001"])
def test_what_others_cannot_reach_is_no_url_of_a_node(primary: ShardHead, url: str) -> None:
    with pytest.raises(InvalidInput, match="replica_url must be"):
        replica_add(name="replica_1", url=url, actor="user ann")


def test_the_node_itself_is_no_replica(primary: ShardHead, nodes: Nodes, settings) -> None:
    alias = nodes(node=settings.MLVDB_NODE_ID)

    with pytest.raises(OwnUrl, match="is this node itself"):
        add(alias)
    with pytest.raises(OwnUrl):
        replica_add(name="replica_1", url="http://127.0.0.1:8000/", actor="user ann")

    assert not Replica.objects.exists()


def test_something_else_that_answers_is_refused(primary: ShardHead) -> None:
    def website(connection) -> None:
        while connection.request() is not None:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")

    peer = ScriptedPeer(website)
    try:
        with pytest.raises(NotANode):
            replica_add(name="replica_1", url=peer.url, actor="user ann")
    finally:
        peer.close()

    assert not Replica.objects.exists()


def test_a_node_with_another_secret_is_added_and_its_error_shown(primary: ShardHead, nodes: Nodes) -> None:
    def closed(connection) -> None:
        while connection.request() is not None:
            error = {"code": "cluster_secret_mismatch", "message": "set MLVDB_CLUSTER_SECRET", "field": None}
            connection.answer(orjson.dumps({"error": {**error, "detail": {}}, "request_id": None}), status=401)

    peer = ScriptedPeer(closed)
    try:
        replica, _ = replica_add(name="replica_1", url=peer.url, actor="user ann")
    finally:
        peer.close()

    assert replica.last_error == "cluster_secret_mismatch: set MLVDB_CLUSTER_SECRET"
    assert copy_of().state == CopyState.NEW


@pytest.mark.parametrize("name", ["health", "primary", "", ".a", "a/b", "x" * 129])
def test_a_name_that_is_a_route_or_no_name_is_refused(primary: ShardHead, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replica_add(name=name, url="http://127.0.0.1:1", actor="user ann")

    assert caught.value.field == "replica_id"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8002", "ftp://a:1", "http://a:1/path", "http://u:p@a:1", "http://a:0", "http://a:x", "http://"],
)
def test_a_url_that_is_none_is_refused(primary: ShardHead, url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replica_add(name="replica_1", url=url, actor="user ann")

    assert caught.value.field == "replica_url"


def test_a_wildcard_address_needs_a_url_for_others(primary: ShardHead, nodes: Nodes, settings) -> None:
    settings.MLVDB_HOST = "0.0.0.0"
    node = nodes()

    with pytest.raises(InvalidInput, match="MLVDB_ADVERTISE_URL"):
        add(node)
    settings.MLVDB_ADVERTISE_URL = "http://10.0.0.1:8000"
    add(node)

    assert node.placements[0]["primary"]["url"] == "http://10.0.0.1:8000"


def test_a_replica_of_one_shard_is_told_of_that_shard(primary: ShardHead, nodes: Nodes) -> None:
    other = ShardHead.objects.create(label="shard_1")
    node = nodes()

    replica = add(node, shard="shard_1")

    assert replica.shard == other.uid
    assert {placement["shard"]["label"] for placement in node.placements} == {"shard_1"}


def test_a_new_shard_is_placed_with_the_replicas_of_all(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    replica = add(node)
    ShardHead.objects.create(label="shard_1")

    assert [head.label for _, head in copies_of(replica)] == ["shard_0", "shard_1"]
    assert "shard_1" in {placement["shard"]["label"] for placement in node.placements}


# -- states ------------------------------------------------------------------------------------------------------


def test_only_legal_transitions_are_made(primary: ShardHead, nodes: Nodes) -> None:
    add(nodes())
    copy = copy_of()
    assert copy_state_set(copy, CopyState.QUARANTINED)

    assert not copy_state_set(copy, CopyState.SYNCING)

    assert copy.state == copy_of().state == CopyState.QUARANTINED
    assert ClusterEvent.objects.get(action="copy_quarantined").alarm


def test_a_state_that_another_process_changed_is_looked_at_again(primary: ShardHead, nodes: Nodes) -> None:
    add(nodes())
    stale = copy_of()
    copy_state_set(copy_of(), CopyState.QUARANTINED)

    assert not copy_state_set(stale, CopyState.SYNCING)
    assert stale.state == CopyState.QUARANTINED


def test_the_epoch_is_raised_for_states_that_others_act_on(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)
    copy, epoch = copy_of(), topology().epoch

    copy_state_set(copy, CopyState.FOLLOWING)
    assert topology().epoch == epoch + 1
    assert node.placements[-1]["copies"][1]["state"] == "following"
    copy_state_set(copy, CopyState.FOLLOWING)
    assert topology().epoch == epoch + 1


def test_a_refused_copy_keeps_the_reason_and_raises_no_epoch_again(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.close()
    add(node)
    epoch = topology().epoch

    copy_refuse(copy_of(), reason="not_empty: 3 rows")
    copy_refuse(copy_of(), reason="not_empty: 4 rows")

    assert Replica.objects.get().last_error == "not_empty: 4 rows"
    assert topology().epoch == epoch


# -- the outbox --------------------------------------------------------------------------------------------------


def test_an_acknowledged_placement_is_not_sent_again(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)

    placements_push()
    placements_push_pending()

    assert len(node.placements) == 1


def test_the_position_in_an_acknowledgement_is_noted(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.has_applied(primary.uid, term=1, seq=5)

    add(node)

    assert (copy_of().term, copy_of().seq) == (1, 5)


def test_a_node_at_a_newer_epoch_of_an_older_term_is_outrun(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.refusal = (409, "stale_epoch", {"epoch": 40, "term": 1, "placement": {}})
    add(node)
    node.refusal = None

    placements_push()

    assert topology().epoch == 41
    assert node.epochs[-1] == 41
    assert ClusterEvent.objects.filter(action="epoch_outrun").exists()


def test_a_node_that_knows_a_newer_term_stops_this_primary(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    node.refusal = (409, "stale_term", {"promised_term": 9, "term": 1})

    add(node)

    head = log.read_head(primary.pk)
    assert head is not None
    assert not head.takes_writes
    assert ClusterEvent.objects.filter(action="deposed", alarm=True).count() == 1


def test_another_node_at_the_url_of_a_replica_is_refused(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)
    node.refusal = (409, "other_node", {})

    with pytest.raises(PeerRejected):
        placement_push_now(url=node.url, shard=primary.uid)

    assert copy_of().state == CopyState.REFUSED


def test_replicas_are_told_when_this_node_has_another_url(primary: ShardHead, nodes: Nodes, settings) -> None:
    node = nodes()
    add(node)
    settings.MLVDB_ADVERTISE_URL = "http://10.0.0.1:8000"

    joining.replication_look_after()
    joining.replication_look_after()

    assert [placement["owner"]["url"] for placement in node.placements] == [
        "http://127.0.0.1:8000",
        "http://10.0.0.1:8000",
    ]


def test_a_node_without_the_registry_changes_nothing(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node)
    copy = copy_of()
    Topology.objects.update(is_owner=False)

    with pytest.raises(NotOwner):
        copy_state_set(copy, CopyState.FOLLOWING)
    placements_push()

    assert copy_of().state == CopyState.SYNCING
    assert len(node.placements) == 1


# -- pause, check, sync ------------------------------------------------------------------------------------------


def test_a_replica_is_paused_and_resumed_with_its_author_in_the_history(primary: ShardHead, nodes: Nodes) -> None:
    add(nodes())

    registry.replica_pause(name="replica_1", actor="user ann")
    registry.replica_pause(name="replica_1", actor="user bob")
    assert topology().shards[primary.uid].copies[0].paused
    with pytest.raises(Conflict, match="paused"):
        registry.replica_sync(name="replica_1", actor="user ann")
    registry.replica_resume(name="replica_1", actor="user ann")

    assert not topology().shards[primary.uid].copies[0].paused
    events = ClusterEvent.objects.filter(action__in=["replica_paused", "replica_resumed"])
    assert [event.actor for event in events] == ["user ann", "user ann"]


def test_a_sync_of_a_following_copy_is_a_catch_up_that_ends_at_the_head(
    primary: ShardHead, nodes: Nodes, sent: list
) -> None:
    replica = add(nodes())
    copy_state_set(copy_of(), CopyState.FOLLOWING)
    ShardHead.objects.filter(pk=primary.pk).update(last_seq=9)
    ReplicaCopy.objects.update(term=1, seq=4)
    Replica.objects.update(sweeps_to_skip=7)

    move = registry.replica_sync(name="replica_1", namespace="default", actor="user ann")

    assert (move.kind, move.rows_total, move.plan["namespace"]) == (Move.Kind.CATCH_UP, 5, "default")
    assert Replica.objects.get().sweeps_to_skip == 0
    assert sent[-1][1] == (replica.pk,)
    ReplicaCopy.objects.update(seq=6)
    moves.catch_ups_settle()
    move.refresh_from_db()
    assert (move.phase, move.rows_done) == ("following", 2)
    ReplicaCopy.objects.update(seq=9)
    moves.catch_ups_settle()
    move.refresh_from_db()
    assert move.phase == "done"
    assert move.ended_at is not None


def test_a_sync_asked_for_twice_is_one_move(primary: ShardHead, nodes: Nodes) -> None:
    add(nodes())

    first = registry.replica_sync(name="replica_1", actor="user ann")
    second = registry.replica_sync(name="replica_1", actor="user ann")

    assert first.pk == second.pk
    assert first.kind == Move.Kind.FULL_SYNC


def test_an_unknown_topology_is_that_of_a_single_node() -> None:
    assert TopologyView().is_single
    assert TopologyView().placement is None
