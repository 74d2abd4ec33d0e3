"""What a node does when a coordinator tells it that it is one of its shards, and that it is none any more."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test import Client

from cluster.models import Assignment, ClusterEvent, Placement, Replica, Topology
from cluster.selectors import node_status
from cluster.services import sharding_taking
from cluster.services.candidates import Cycle, Incompatible, OtherNode, OwnUrl, WrongCluster
from cluster.services.namespace_errands import NamespaceChange, changes_take
from cluster.services.registry import replication_enable
from cluster.services.sharding import CannotCoordinate, sharding_enable
from cluster.services.sharding_candidates import AlreadyShard, ShardLost
from cluster.services.sharding_sweep import sharding_switch_on
from cluster.services.sharding_taking import assignment_release, assignment_take
from cluster.services.taking import StaleEpoch, placement_take
from cluster.sharding.assignment import AssignmentDocument
from cluster.topology import topology, topology_forget
from tests.cluster.members import placement_document
from vectors.engine.ids import key_of
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import InvalidInput, MLVectorDBError, NotEmpty, NotPrimary
from vectors.models import Namespace, ShardHead
from vectors.query_processor import LocalQueryProcessor, VectorBatch
from vectors.query_processor.moving import MovingCopy
from vectors.services import namespace_put
from vectors.store.slots import slots_now

COORDINATOR = "a" * 32
CLUSTER = "c" * 32
SHARD = "5" * 32
URL = "http://coordinator.test:8000"
SOME = SlotSet.of(range(1000))


def document(epoch: int = 7, owned: SlotSet = NO_SLOTS, **changed: Any) -> dict[str, Any]:
    told = AssignmentDocument(CLUSTER, epoch, SHARD, "shard_r", COORDINATOR, URL, "", owned, joins=True)
    return {**told.to_document(), **changed}


def released(epoch: int = 9) -> dict[str, Any]:
    return document(epoch, released=True)


def own_copy() -> ShardHead:
    return ShardHead.objects.get(uid=SHARD)


def write(count: int) -> None:
    """Have rows in the shard's copy, as a move brings them."""
    copy = MovingCopy(own_copy().pk)
    copy.set_slots(8, ALL_SLOTS)
    copy.namespace_adopt(NamespaceSpec("7" * 32, "books", 2, "l2", 0.99))
    keys = [key_of(number) for number in range(count)]
    batch = VectorBatch(keys, np.ones((count, 2), dtype=np.float32), [b"{}"] * count)
    LocalQueryProcessor(own_copy().pk).upsert_many(batch, namespace="books")


def test_an_empty_node_takes_an_assignment_and_is_that_shard(head: ShardHead) -> None:
    assignment_take(document(), sender=COORDINATOR)

    copy = own_copy()
    assert (copy.label, copy.is_primary) == ("shard_r", True)
    assert not ShardHead.objects.filter(pk=head.pk).exists()
    now = slots_now(copy.pk)
    assert now is not None
    assert (now.epoch, now.writable) == (7, NO_SLOTS)
    told = topology().assignment
    assert told is not None
    assert (told.uid, told.label, told.cluster, told.epoch) == (SHARD, "shard_r", CLUSTER, 7)
    assert (told.coordinator_node, told.coordinator_url, told.slots) == (COORDINATOR, URL, NO_SLOTS)
    assert not topology().is_single
    event = ClusterEvent.objects.get(action="assignment_taken")
    assert event.actor == f"node {COORDINATOR}"


def test_it_keeps_a_registry_of_its_own_for_its_replicas(head: ShardHead) -> None:
    assignment_take(document())

    row = Topology.objects.get()
    assert (row.is_owner, row.replication_enabled, row.sharding_enabled) == (True, True, False)
    assert row.cluster != CLUSTER


def test_the_same_assignment_again_changes_nothing(head: ShardHead) -> None:
    assignment_take(document())
    copy = own_copy()

    assignment_take(document())

    assert own_copy() == copy
    assert ClusterEvent.objects.filter(action="assignment_taken").count() == 1


def test_a_newer_assignment_replaces_the_older_and_an_older_one_is_refused(head: ShardHead) -> None:
    assignment_take(document(7))
    assignment_take(document(9, SOME))
    assert topology().assignment.slots == SOME  # type: ignore[union-attr]

    with pytest.raises(StaleEpoch) as refused:
        assignment_take(document(8))

    assert refused.value.detail["epoch"] == 9
    assert topology().assignment.epoch == 9  # type: ignore[union-attr]


def test_a_coordinator_that_has_replaced_another_is_believed_whatever_its_epoch(head: ShardHead) -> None:
    successor = {"node": "b" * 32, "url": "http://successor.test:8000"}
    assignment_take(document(9))

    assignment_take(document(3, reign=1, coordinator=successor), sender="b" * 32)

    assert topology().assignment.coordinator_url == successor["url"]  # type: ignore[union-attr]
    for late in (document(50), document(50, released=True)):
        with pytest.raises(StaleEpoch) as refused:
            assignment_take(late)
        assert refused.value.detail == {"epoch": 3, "reign": 1, "coordinator_url": successor["url"]}


def test_of_two_coordinators_of_one_age_the_first_stays(head: ShardHead) -> None:
    assignment_take(document(9))

    with pytest.raises(StaleEpoch):
        assignment_take(document(9, coordinator={"node": "b" * 32, "url": URL}), sender="b" * 32)


def test_a_coordinator_that_is_reached_elsewhere_now_says_so_in_the_same_epoch(head: ShardHead) -> None:
    assignment_take(document())

    assignment_take(document(coordinator={"node": COORDINATOR, "url": "http://moved.test:9000"}))

    assert topology().assignment.coordinator_url == "http://moved.test:9000"  # type: ignore[union-attr]


def test_a_crash_between_copy_and_assignment_is_completed_by_the_next_push(
    head: ShardHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_told: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(sharding_taking, "_store", crash)
        with pytest.raises(SystemExit):
            assignment_take(document())
    assert topology().assignment is None

    assignment_take(document(8))

    assert topology().assignment.epoch == 8  # type: ignore[union-attr]
    assert ShardHead.objects.count() == 1


def test_a_node_with_data_is_not_taken(head: ShardHead) -> None:
    namespace_put(head.pk, "books", dimension=3)

    with pytest.raises(NotEmpty):
        assignment_take(document())

    assert not Assignment.objects.exists()
    assert ShardHead.objects.get() == head


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"node": "b" * 32}, OtherNode),
        ({"format": 2}, Incompatible),
        ({"epoch": -1}, InvalidInput),
        ({"epoch": True}, InvalidInput),
        ({"slots": "00"}, InvalidInput),
        ({"slots": 7}, InvalidInput),
        ({"slots": "zz" * 2048}, InvalidInput),
        ({"shard": {"uid": "../../etc", "label": "shard_r"}}, InvalidInput),
        ({"shard": {"uid": SHARD, "label": "a b"}}, InvalidInput),
        ({"coordinator": None}, InvalidInput),
        ({"released": "no"}, InvalidInput),
    ],
)
def test_an_assignment_that_is_not_for_this_node_or_makes_no_sense_is_refused(
    head: ShardHead, changed: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        assignment_take(document(**changed))

    assert ShardHead.objects.get() == head
    assert not Assignment.objects.exists()


@pytest.mark.parametrize("body", [None, [], "text", 7, {}])
def test_what_is_no_assignment_is_refused(head: ShardHead, body: object) -> None:
    with pytest.raises(InvalidInput):
        assignment_take(body)


def test_an_assignment_from_somebody_else_or_itself_is_refused(head: ShardHead, settings: Any) -> None:
    with pytest.raises(WrongCluster):
        assignment_take(document(), sender="b" * 32)
    with pytest.raises(OwnUrl):
        assignment_take(document(coordinator={"node": settings.MLVDB_NODE_ID, "url": URL}))


def test_a_shard_is_not_taken_by_another_coordinator_nor_as_another_shard(head: ShardHead) -> None:
    assignment_take(document())

    with pytest.raises(WrongCluster):
        assignment_take(document(50, cluster="d" * 32))
    with pytest.raises(AlreadyShard):
        assignment_take(document(50, shard={"uid": "6" * 32, "label": "shard_s"}))


def test_a_coordinator_a_replica_and_a_primary_with_replicas_are_no_shards(head: ShardHead, settings: Any) -> None:
    replication_enable(actor="test")
    replica = Replica.objects.create(name="replica_1", url="http://replica.test:1")
    with pytest.raises(Cycle):
        assignment_take(document())
    replica.delete()
    sharding_enable(strategy="hash", shards=1, actor="test")
    with pytest.raises(Cycle):
        assignment_take(document())
    Topology.objects.all().delete()
    Placement.objects.create(
        shard="9" * 32, cluster="d" * 32, epoch=1, role="replica", term=1, document={"primary": {"url": ""}}
    )
    with pytest.raises(WrongCluster):
        assignment_take(document())

    assert not Assignment.objects.exists()


def test_a_shard_is_no_replica_of_somebody_else_and_no_coordinator(head: ShardHead, settings: Any) -> None:
    assignment_take(document())
    settings.MLVDB_ENABLE_SHARDING = True

    assert not sharding_switch_on()
    with pytest.raises(CannotCoordinate):
        sharding_enable(strategy="hash", shards=1, actor="test")
    with pytest.raises(WrongCluster):
        placement_take(placement_document().to_document())


def test_a_coordinator_becomes_no_replica(head: ShardHead) -> None:
    sharding_enable(strategy="hash", shards=2, actor="test")

    with pytest.raises(Cycle):
        placement_take(placement_document().to_document())


def test_a_copy_that_is_no_primary_any_more_says_who_is(head: ShardHead) -> None:
    assignment_take(document())
    ShardHead.objects.filter(uid=SHARD).update(is_primary=False)
    Placement.objects.create(
        shard=SHARD, cluster="d" * 32, epoch=1, role="replica", term=2, document={"primary": {"url": "http://new:1"}}
    )

    with pytest.raises(NotPrimary) as refused:
        assignment_take(document(8))

    assert refused.value.detail["primary_url"] == "http://new:1"


def test_a_shard_whose_data_was_lost_says_so_and_does_not_begin_anew(head: ShardHead) -> None:
    assignment_take(document())
    ShardHead.objects.all().delete()

    with pytest.raises(ShardLost, match="lost"):
        assignment_take(document(8))

    assert not ShardHead.objects.exists()


def test_a_node_without_its_data_gets_no_empty_copy_of_a_shard_that_was_there_before(head: ShardHead) -> None:
    with pytest.raises(ShardLost, match="lost"):
        assignment_take(document(8, SOME, joins=False))

    assert list(ShardHead.objects.all()) == [head]
    assert not Assignment.objects.exists()


def test_a_shard_that_has_its_copy_only_is_told_again_whose_it_is(head: ShardHead) -> None:
    assignment_take(document())
    Assignment.objects.all().delete()

    assignment_take(document(8, SOME, joins=False))

    assert (Assignment.objects.get().epoch, own_copy().is_primary) == (8, True)


def test_a_released_shard_without_rows_is_an_empty_plain_node_again(head: ShardHead) -> None:
    assignment_take(document())
    changes_take(own_copy().pk, [NamespaceChange(NamespaceSpec("7" * 32, "books", 2, "l2", 0.99), has_ended=False)])

    assignment_take(released(), sender=COORDINATOR)
    assignment_release(released(), sender=COORDINATOR)

    assert topology().assignment is None
    head = ShardHead.objects.get()
    assert (head.label, head.uid != SHARD, head.slots_seq) == ("shard_0", True, 0)
    status = node_status()
    assert (status["empty"], status["assignment"], status["replicas"]) == (True, None, 0)
    assert ClusterEvent.objects.filter(action="assignment_ended").count() == 1
    assignment_take(document(20, shard={"uid": "6" * 32, "label": "shard_s"}))


def test_a_released_shard_with_rows_keeps_them_and_takes_writes_of_its_own(head: ShardHead) -> None:
    assignment_take(document())
    write(20)

    assignment_take(released())

    assert topology().assignment is None
    now = slots_now(own_copy().pk)
    assert now is not None
    assert now.writable == ALL_SLOTS
    assert LocalQueryProcessor().count(namespace="books").value == 20


def test_a_release_that_is_older_than_the_assignment_is_refused(head: ShardHead) -> None:
    assignment_take(document(20))

    with pytest.raises(StaleEpoch):
        assignment_take(released(19))

    assert topology().assignment is not None


def test_the_release_of_a_shard_that_is_not_here_changes_nothing(head: ShardHead) -> None:
    assignment_take(released())

    assert ShardHead.objects.get() == head
    assert not ClusterEvent.objects.exists()


def test_a_document_that_ends_nothing_is_no_release(head: ShardHead) -> None:
    with pytest.raises(InvalidInput):
        assignment_release(document())


def test_the_status_says_what_a_shard_holds(head: ShardHead) -> None:
    assignment_take(document(owned=SOME))
    write(20)
    LocalQueryProcessor(own_copy().pk).count(namespace="books")

    status = node_status()

    assert (status["rows"], status["is_coordinator"], status["sharding"]) == (20, False, None)
    [shard] = status["shards"]
    assert (shard["uid"], shard["rows"]) == (SHARD, 20)
    assert shard["size_bytes"] > 0
    told = status["assignment"]
    assert (told["shard"], told["label"], told["cluster"], told["slots"]) == (SHARD, "shard_r", CLUSTER, len(SOME))


def test_a_namespace_that_has_ended_goes_with_its_rows(head: ShardHead) -> None:
    assignment_take(document())
    write(20)

    changes_take(own_copy().pk, [NamespaceChange(NamespaceSpec("7" * 32, "books", 2, "l2", 0.99), has_ended=True)])

    assert not Namespace.objects.filter(dropped_at__isnull=True).exists()
    assert LocalQueryProcessor(own_copy().pk).count(namespace="books").value == 0


def put(client: Client, path: str, body: object) -> Any:
    return client.put(path, body, content_type="application/json", headers={"X-MLVDB-Node": COORDINATOR})


def test_the_route_takes_an_assignment_and_answers_what_this_node_is_then(head: ShardHead, node_client: Client) -> None:
    answer = put(node_client, "/cluster/node/assignment", document())

    assert answer.status_code == 200, answer.content
    assert answer.json()["assignment"]["shard"] == SHARD
    assert answer.json()["shards"][0]["uid"] == SHARD
    refused = put(node_client, "/cluster/node/assignment", document(6))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "stale_epoch")
    assert refused.json()["error"]["detail"] == {"epoch": 7, "reign": 0, "coordinator_url": URL}


@pytest.mark.parametrize("body", [[], "text", {"format": 1}])
def test_the_route_refuses_what_is_no_assignment(head: ShardHead, node_client: Client, body: object) -> None:
    answer = put(node_client, "/cluster/node/assignment", body)

    assert (answer.status_code, set(answer.json())) == (400, {"error", "request_id"})


def test_only_the_coordinator_of_a_shard_changes_its_namespaces(head: ShardHead, node_client: Client) -> None:
    change = NamespaceChange(NamespaceSpec("7" * 32, "books", 2, "l2", 0.99), has_ended=False).to_document()
    path, body = f"/cluster/node/shards/{SHARD}/namespaces", {"cluster": CLUSTER, "changes": [change]}
    before = put(node_client, path, body)
    assert (before.status_code, before.json()["error"]["code"]) == (409, "need_placement")
    assignment_take(document())

    assert put(node_client, path, body).status_code == 200
    other = put(node_client, path, {**body, "cluster": "d" * 32})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "wrong_cluster")
    former = node_client.put(path, body, content_type="application/json", headers={"X-MLVDB-Node": "b" * 32})
    assert (former.status_code, former.json()["error"]["code"]) == (409, "wrong_cluster")
    assert put(node_client, path, {**body, "changes": "all"}).status_code == 400
    assert put(node_client, path, {**body, "changes": [{"uid": 7}]}).status_code == 400

    row = Namespace.objects.get(dropped_at__isnull=True)
    assert (row.uid, row.name, row.dimension) == ("7" * 32, "books", 2)
    ShardHead.objects.filter(uid=SHARD).update(is_primary=False)
    topology_forget()
    assert put(node_client, path, body).json()["error"]["code"] == "not_primary"


def test_of_two_coordinators_at_once_one_has_the_node_and_its_copy(head: ShardHead) -> None:
    together = threading.Barrier(2)
    outcomes: dict[str, object] = {}

    def ask(cluster: str, uid: str) -> None:
        together.wait(10)
        try:
            assignment_take(document(cluster=cluster, shard={"uid": uid, "label": "shard_r"}))
            outcomes[uid] = "taken"
        except MLVectorDBError as error:
            outcomes[uid] = error.code
        finally:
            connection.close()

    askers = [threading.Thread(target=ask, args=(letter * 32, number * 32)) for letter, number in ("d1", "e2")]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(30)

    assert sorted(map(str, outcomes.values())) == ["taken", "wrong_cluster"]
    [winner] = [uid for uid, outcome in outcomes.items() if outcome == "taken"]
    assert ShardHead.objects.get().uid == winner
    assert Assignment.objects.get().shard == winner
