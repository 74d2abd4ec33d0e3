"""Replicas of shards on other nodes: added from the coordinator, told whose shard they copy, and promoted as that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from django.test import Client

from cluster.admin.cluster_truth import cluster_now
from cluster.admin.shard_panels import shard_part
from cluster.models import Assignment, ClusterEvent, PlacementPush, Replica, Shard, ShardCopy, Topology
from cluster.query_processor import ClusterQueryProcessor
from cluster.replication.placements import PlacementDocument
from cluster.selectors import node_status
from cluster.services import shard_replicas
from cluster.services.candidates import NodeHoldsRows
from cluster.services.promotion import promote, shard_promote
from cluster.services.registry import ReplicaExists, ReplicaNotFound, replica_add, replication_enable
from cluster.services.removal import MembersBehind
from cluster.services.shard_replicas import copies_lagging, copies_note, copies_read, copy_add, copy_remove
from cluster.services.sharding import shard_add, sharding_enable
from cluster.services.sharding_taking import assignment_release, assignment_take
from cluster.services.taking import placement_take
from cluster.sharding.assignment import AssignmentDocument
from cluster.topology import topology
from cluster.transport import wire
from cluster.transport.errors import PeerError
from tests.cluster.members import CLUSTER as COPIES
from tests.cluster.members import PRIMARY_NODE, SHARD, Members, become_replica, placement_document
from tests.cluster.standin_node import StandInNode
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import NotPrimary, NotReady
from vectors.models import ShardHead
from vectors.query_processor import VectorBatch

CLUSTER = "b" * 32
COORDINATOR = "a1" * 16
URL = "http://coordinator.test:8000"
NODE = {"X-MLVDB-Node": COORDINATOR}
COPY_URL = "http://copy.test:8000"

TOLD: dict[str, Any] = {
    "name": "copy_1", "url": COPY_URL, "node": "e" * 32, "state": "following", "membership": "member",
    "health": "alive", "term": 1, "seq": 5, "last_error": "",
}  # fmt: skip


def assignment(epoch: int = 7, owned: SlotSet = ALL_SLOTS, **changed: Any) -> AssignmentDocument:
    told = AssignmentDocument(CLUSTER, epoch, SHARD, "shard_r", COORDINATOR, URL, "", owned, joins=True)
    return replace(told, **changed)


# -- the coordinator ---------------------------------------------------------------------------------------------


@pytest.fixture
def node(head: ShardHead, nodes: Callable[..., StandInNode], monkeypatch: pytest.MonkeyPatch) -> StandInNode:
    """The node of the shard `away` of this coordinator; it knows of one copy once it was asked to add it."""
    for module in ("moves.control", "services.sharding_assignments", "health.shards", "replication.knocks"):
        monkeypatch.setattr(f"cluster.{module}.publish", lambda *_arguments: True)
    assert replication_enable(actor="test")
    assert sharding_enable(strategy="hash", shards=1, actor="test")
    made = nodes()
    shard_add(label="away", url=made.url, rebalance=False, actor="test")
    made.on_order = lambda: tells(made, TOLD)
    return made


def tells(node: StandInNode, *copies: dict[str, Any]) -> None:
    """Have a shard's node know of these copies."""
    node.status["shards"] = [{**node.status["shards"][0], "copies": list(copies)}]


def away() -> Shard:
    return Shard.objects.get(label="away")


def test_a_replica_of_a_remote_shard_is_registered_with_the_shards_node(node: StandInNode) -> None:
    given = {"replica_id": "copy_1", "replica_url": COPY_URL, "shard_id": "away"}

    answer = Client().post("/replication/replicas", given, content_type="application/json")

    assert answer.status_code == 200, answer.content
    [(order, body)] = node.orders
    assert order == "PUT replicas"
    assert (body["name"], body["url"], body["cluster"]) == ("copy_1", COPY_URL, Topology.objects.get().cluster)
    copy = ShardCopy.objects.get()
    assert (copy.shard, copy.name, copy.url, copy.membership, copy.seq) == (away(), "copy_1", COPY_URL, "member", 5)
    assert not Replica.objects.exists()
    assert ClusterEvent.objects.filter(action="shard_replica_added", subject="copy_1").exists()


def test_it_is_shown_where_replicas_are(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    shown = Client().get("/replication/info").json()["replicas"]["copy_1"]
    assert (shown["url"], shown["is_healthy"], shown["member"], shown["applied_seq"]) == (COPY_URL, True, True, 5)
    assert list(shown["shards"]) == ["away"]
    assert Client().get("/sharding/info").json()["shards"]["away"]["replicas"] == ["copy_1"]
    [copy] = Client().get("/cluster/topology").json()["shards"]["away"]["copies"]
    assert (copy["name"], copy["url"], copy["state"], copy["seq"]) == ("copy_1", COPY_URL, "following", 5)


def test_the_admin_shows_it_beside_its_shard(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")
    copies_lagging(away().uid, ["copy_1"])

    [copy] = next(box for box in cluster_now().shards if box.label == "away").copies
    assert (copy.name, copy.tone) == ("copy_1", "good")
    assert "out of sync" in copy.words
    assert "too far behind to take its place" in shard_part(away())


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(409, "not_empty", NodeHoldsRows), (409, "replica_exists", ReplicaExists)]
)
def test_what_the_shards_node_refuses_is_refused_here_with_the_same_code(
    node: StandInNode, status: int, code: str, kind: type[Exception]
) -> None:
    node.on_order = lambda: (status, code, {"rows": 3})

    with pytest.raises(kind) as raised:
        copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    assert getattr(raised.value, "detail", None) == {"rows": 3}
    assert not ShardCopy.objects.exists()


def test_a_node_that_cannot_be_reached_changes_nothing(node: StandInNode) -> None:
    node.close()

    with pytest.raises(PeerError) as raised:
        copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    assert raised.value.status == 503
    assert not ShardCopy.objects.exists()


def test_a_node_that_is_the_primary_no_more_is_tried_again_later(node: StandInNode) -> None:
    node.on_order = lambda: (409, "not_primary", {})

    with pytest.raises(NotReady, match="becoming the primary"):
        copy_add(away(), name="copy_1", url=COPY_URL, actor="test")


def test_ids_and_urls_are_taken_across_all_shards(node: StandInNode, nodes: Callable[..., StandInNode]) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    with pytest.raises(ReplicaExists):
        replica_add(name="copy_1", url="http://other.test:8000", actor="test")
    with pytest.raises(ReplicaExists):
        replica_add(name="other", url=COPY_URL, shard="shard_0", actor="test")
    with pytest.raises(ReplicaExists):
        copy_add(away(), name="other", url=COPY_URL, actor="test")
    with pytest.raises(ReplicaExists):
        copy_add(away(), name="other", url=node.url, actor="test")


def test_a_replica_of_all_shards_may_keep_this_one_under_its_own_name(node: StandInNode) -> None:
    Replica.objects.create(name="copy_1", url=COPY_URL)

    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    assert ShardCopy.objects.filter(name="copy_1").exists()
    assert shard_replicas.copies_of_one_shard() == []
    assert shard_replicas.copy_of("copy_1") is None


def test_removing_asks_the_shards_node_and_forgets_it(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")
    node.on_order = lambda: tells(node)

    assert Client().delete("/replication/replicas/copy_1").status_code == 200

    assert node.orders[-1][0] == "DELETE replicas"
    assert not ShardCopy.objects.exists()


def test_a_removal_that_is_refused_leaves_it_there(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")
    node.on_order = lambda: (409, "members_behind", {})

    with pytest.raises(MembersBehind):
        copy_remove(away(), name="copy_1", force=False, actor="test")

    assert ShardCopy.objects.exists()


def test_one_that_was_removed_at_the_node_itself_is_forgotten_here(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")
    node.on_order = lambda: (404, "replica_not_found", {})

    copy_remove(away(), name="copy_1", force=False, actor="test")

    assert not ShardCopy.objects.exists()
    with pytest.raises(ReplicaNotFound):
        copy_remove(away(), name="copy_1", force=False, actor="test")


def test_syncs_and_checks_are_the_shards_nodes(node: StandInNode) -> None:
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")
    node.on_order = lambda: None
    node.status |= {"move": 12, "kind": "catch-up", "is_healthy": True}

    synced = Client().post("/replication/replicas/copy_1/sync", {}, content_type="application/json")

    assert (synced.status_code, synced.json()["move"], synced.json()["move_at"]) == (200, 12, node.url)
    assert Client().get("/replication/replicas/copy_1/health").json()["is_healthy"] is True
    assert Client().get("/replication/replicas/health").json()["replicas_health"] == {"copy_1": True}


def test_a_promotion_is_the_shards_nodes_and_followed_at_once(
    node: StandInNode, nodes: Callable[..., StandInNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.services.failover.publish", lambda *_arguments: True)
    copy = nodes()
    node.on_order = lambda: tells(node, {**TOLD, "url": copy.url})
    copy_add(away(), name="copy_1", url=copy.url, actor="test")
    now = {"uid": away().uid, "seq": 5, "promised_term": 2, "term": 2}
    copy.status["shards"] = [{**now, "role": "primary"}]
    node.status |= {"shards": [{**now, "role": "replica"}], "term": 2, "seq": 5, "epoch": 9}
    node.on_order = lambda: None

    answer = Client().post("/replication/replicas/copy_1/promote", {}, content_type="application/json")

    assert (answer.status_code, answer.json()["term"]) == (200, 2), answer.content
    assert node.orders[-1][1]["operation"] == "promote"
    assert away().url == copy.url


def test_a_copy_that_has_caught_up_is_in_sync_again(node: StandInNode, settings: Any) -> None:
    settings.MLVDB_FAILOVER_MAX_LAG = 10
    copy_add(away(), name="copy_1", url=COPY_URL, actor="test")

    copies_lagging(away().uid, ["copy_1"])
    assert topology().sharding.by_label["away"].lagging == {"copy_1"}
    copies_note(away(), copies_read([TOLD]), head_seq=16)
    assert not ShardCopy.objects.get().in_sync
    copies_note(away(), copies_read([TOLD]), head_seq=15)
    assert ShardCopy.objects.get().in_sync


@pytest.mark.parametrize("told", [None, [{}], [{**TOLD, "seq": -1}], [{**TOLD, "state": "odd"}], ["x"]])
def test_what_is_no_copy_is_not_taken_for_one(told: Any) -> None:
    with pytest.raises(ValueError, match=r"list|copy|valid"):
        copies_read(told)


# -- the shard's node --------------------------------------------------------------------------------------------


def route(client: Client, method: str, body: dict[str, Any], uid: str = SHARD) -> Any:
    return getattr(client, method)(
        f"/cluster/node/shards/{uid}/replicas", body, content_type="application/json", headers=NODE
    )


@pytest.fixture
def shard(head: ShardHead, sent: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This node as a coordinator's shard; the tasks it would have published."""
    tasks: list[str] = []
    monkeypatch.setattr("cluster.services.sharding_taking.publish", lambda task, *_args: not tasks.append(str(task)))
    assignment_take(assignment().to_document(), sender=COORDINATOR)
    return tasks


def test_the_route_adds_a_replica_to_the_nodes_own_registry(
    shard: list[str], node_client: Client, nodes: Callable[..., StandInNode]
) -> None:
    copy = nodes()
    body = {"cluster": CLUSTER, "name": "copy_1", "url": copy.url, "actor": "ada"}

    answer = route(node_client, "put", body)

    assert answer.status_code == 200, answer.content
    assert [told["name"] for told in answer.json()["copies"]] == ["copy_1"]
    assert Replica.objects.get().url == copy.url
    # Its coordinator is told of it by every status.
    assert [told["name"] for told in node_status()["shards"][0]["copies"]] == ["copy_1"]
    # And the replica is told whose shard it copies.
    told = PlacementDocument.of(PlacementPush.objects.get().document).assignment
    assert told is not None
    assert (told.cluster, told.epoch, told.coordinator_url, told.slots) == (CLUSTER, 7, URL, ALL_SLOTS)


def test_only_its_own_coordinator_may_change_its_replicas(shard: list[str], node_client: Client) -> None:
    body = {"name": "copy_1", "url": COPY_URL, "actor": "ada"}

    other = route(node_client, "put", {"cluster": "f" * 32, **body})

    assert (other.status_code, other.json()["error"]["code"]) == (409, "wrong_cluster")
    assert route(node_client, "put", {"cluster": CLUSTER, **body}, uid="9" * 32).status_code == 409
    assert route(node_client, "post", {"cluster": CLUSTER, "name": "x", "operation": "no"}).status_code == 400
    assert route(node_client, "delete", {"cluster": CLUSTER}).status_code == 400
    assert not Replica.objects.exists()


def test_a_new_assignment_is_passed_on_to_the_replicas(shard: list[str], nodes: Callable[..., StandInNode]) -> None:
    replica_add(name="copy_1", url=nodes().url, actor="test")
    epoch = Topology.objects.get().epoch

    assignment_take(assignment(8, NO_SLOTS).to_document(), sender=COORDINATOR)

    pushed = PlacementPush.objects.get()
    told = PlacementDocument.of(pushed.document).assignment
    assert told is not None
    assert (told.epoch, told.slots) == (8, NO_SLOTS)
    assert pushed.epoch == epoch + 1 == Topology.objects.get().epoch
    assert shard == ["cluster.tasks.replication_push"]
    assignment_release(assignment(9, released=True).to_document(), sender=COORDINATOR)
    assert PlacementDocument.of(PlacementPush.objects.get().document).assignment is None


# -- a replica of a shard ----------------------------------------------------------------------------------------


def told_of_a_shard(epoch: int = 3, **changes: Any) -> PlacementDocument:
    return placement_document(epoch=epoch, assignment=assignment(**changes))


def test_a_replica_of_a_shard_names_the_coordinator_to_those_who_write(members: Members) -> None:
    become_replica(told_of_a_shard())
    batch = VectorBatch([None], np.ones((1, 2), dtype=np.float32), [b"{}"])

    with pytest.raises(NotPrimary) as raised:
        ClusterQueryProcessor().upsert_many(batch, namespace="books")

    assert raised.value.detail["primary_url"] == URL


def test_a_replica_of_a_shard_goes_by_the_newest_slots_it_was_told(members: Members) -> None:
    become_replica(told_of_a_shard(owned=ALL_SLOTS))

    placement_take(told_of_a_shard(epoch=4, owned=NO_SLOTS).to_document(), sender=PRIMARY_NODE)

    told = topology().assignment_of(topology().shards[SHARD])
    assert told is not None
    assert told.slots == NO_SLOTS


def test_who_is_promoted_is_the_shard_of_that_coordinator(members: Members) -> None:
    become_replica(told_of_a_shard(), entries=3)
    assert topology().assignment is None

    promote(actor="test")

    own = topology().assignment
    assert own is not None
    assert (own.uid, own.cluster, own.epoch, own.coordinator_url) == (SHARD, CLUSTER, 7, URL)
    # What was the primary learns of it by its placement, and the coordinator's newer assignment is taken.
    assert PlacementDocument.of(PlacementPush.objects.get().document).assignment is not None
    assignment_take(assignment(8).to_document(), sender=COORDINATOR)
    assert topology().assignment.epoch == 8


def test_who_was_replaced_is_nobodys_shard(members: Members) -> None:
    become_replica(told_of_a_shard(), entries=3)
    promote(actor="test")
    successor = placement_document("replica_2", epoch=9, term=5, assignment=assignment(8))

    placement_take(successor.to_document(), sender=PRIMARY_NODE)

    assert not Assignment.objects.exists()
    assert topology().assignment is None
    assert topology().assignment_of(topology().shards[SHARD]).epoch == 8


def test_a_coordinator_has_a_replica_of_its_shard_stand_for_election(members: Members, node_client: Client) -> None:
    become_replica(told_of_a_shard(), entries=3)
    path = f"/cluster/node/shards/{SHARD}/promote"

    refused = node_client.post(path, {"cluster": COPIES}, content_type="application/json", headers=NODE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "wrong_cluster")
    order = {"cluster": CLUSTER, "actor": "x"}
    for _ in range(2):
        # The order may be repeated: its answer was lost.
        answer = node_client.post(path, order, content_type="application/json", headers=NODE)
        assert (answer.status_code, answer.json()["term"]) == (200, 2), answer.content
    assert topology().shards[SHARD].is_local_primary


def test_an_order_is_no_force(members: Members) -> None:
    become_replica(told_of_a_shard(), entries=3)
    members.alive("primary", role="primary", seq=3)

    with pytest.raises(Exception, match="alive"):
        shard_promote(SHARD, actor="test")


def test_a_demoted_node_tells_its_coordinator_so(members: Members, node_client: Client) -> None:
    become_replica(told_of_a_shard(), entries=3)

    answer = node_client.post(
        f"/cluster/node/shards/{SHARD}/write?cluster={CLUSTER}",
        wire.read_request("delete", {"namespace": "books", "keys": []}),
        content_type="application/msgpack",
        headers=NODE,
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_primary")
    assert answer.json()["error"]["detail"]["primary_url"] == "http://primary.test:8000"
