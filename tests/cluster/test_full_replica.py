"""A replica of all shards of a coordinator: what it believes of whom, and how it becomes the coordinator itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from django.test import Client
from django.utils import timezone

from cluster.models import Placement, Replica, Shard, ShardCopy, ShardedNamespace, Topology
from cluster.query_processor import ClusterQueryProcessor
from cluster.replication.election import NotElected
from cluster.replication.placements import NodeAddress, PlacedCopy, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.services.accession import registry_document
from cluster.services.candidates import Cycle, Host, WrongCluster, check_candidate
from cluster.services.eligibility import Unfit
from cluster.services.promotion import promote
from cluster.services.taking import ShardNotTold, StaleEpoch, placement_take
from cluster.sharding.placed import PlacedShard, PlacedShards
from cluster.sharding.table import SlotTable
from cluster.states import CopyState, Membership, ShardState
from cluster.topology import topology
from cluster.transport import PROTOCOL
from tests.cluster.members import CLUSTER, NAME, Members, node_of, placement_document, url_of, with_own
from tests.vectors.paper_logs import PaperLog
from vectors.engine import ids
from vectors.engine.operations import SetSlots
from vectors.engine.slots import SlotSet
from vectors.errors import NotReady
from vectors.models import Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.store.log import Position
from vectors.store.receive import receive
from vectors.store.slots import slots_now

OWN = {"shard_0": "0" * 31 + "1", "shard_1": "0" * 31 + "2"}
APART = "0" * 31 + "3"
"""The shard on another node, which has number 3 there and is a cluster of its own."""
APART_CLUSTER = "d" * 32
APART_NODE, APART_URL = "e" * 32, "http://127.0.0.1:9"
TABLE = SlotTable((np.arange(ids.SLOT_COUNT) % 3 + 1).astype("<u2"))


def told(label: str = "shard_0", *, epoch: int = 3, apart: bool = True, node: str = APART_NODE) -> PlacementDocument:
    """What the coordinator says of one of its shards, and of all."""
    active = ShardState.ACTIVE
    shards = [PlacedShard(number, name, OWN[name], "", "", active, False) for number, name in enumerate(OWN, 1)]
    if apart:
        shards.append(PlacedShard(3, "shard_r", APART, APART_URL, node, active, False, 2.0))
    table = TABLE if apart else SlotTable(np.where(TABLE.owners == 3, 1, TABLE.owners).astype("<u2"))
    placed = PlacedShards("hash", table, tuple(shards), reign=4)
    return placement_document(epoch=epoch, shard=OWN[label], label=label, sharding=placed)


def told_apart(*, epoch: int = 40, owner: str = APART_NODE, term: int = 1) -> PlacementDocument:
    """What the primary of the other shard says of its copies."""
    address = NodeAddress(owner, APART_URL)
    copies = (
        PlacedCopy(PRIMARY, owner, APART_URL, Membership.MEMBER, CopyState.FOLLOWING),
        PlacedCopy(NAME, node_of(NAME), url_of(NAME), Membership.MEMBER, CopyState.FOLLOWING),
    )
    return PlacementDocument(
        APART_CLUSTER, epoch, APART, "shard_r", term, "replica", NAME, node_of(NAME), address, address, copies
    )


def take(*documents: PlacementDocument) -> None:
    for document in documents:
        placement_take(document.to_document())


@pytest.fixture
def full(members: Members, monkeypatch) -> Members:
    """This node as a replica of all three shards."""
    monkeypatch.setattr("cluster.services.sharding_assignments.publish", lambda *_args: True)
    take(told("shard_0"), told("shard_1"), told_apart())
    return members


def test_a_shard_that_the_coordinator_has_not_told_of_waits_until_it_has(members: Members) -> None:
    take(told("shard_0", apart=False))
    with pytest.raises(ShardNotTold):
        take(told_apart())
    assert not ShardHead.objects.filter(uid=APART).exists()

    take(told("shard_0", epoch=4), told_apart())

    assert Placement.objects.get(shard=APART).cluster == APART_CLUSTER


def test_another_node_than_the_coordinator_has_told_of_is_not_believed(members: Members) -> None:
    take(told("shard_0"))
    with pytest.raises(ShardNotTold):
        take(told_apart(owner="f" * 32))


def test_a_plain_replica_takes_no_placement_of_another_cluster(members: Members) -> None:
    take(placement_document())
    with pytest.raises(WrongCluster):
        take(told_apart())


def test_whoever_the_copies_of_a_shard_have_elected_is_believed_without_the_coordinator(full: Members) -> None:
    take(told_apart(epoch=41, owner="f" * 32, term=2))

    assert topology().shards[APART].primary_node == "f" * 32


def test_the_epochs_of_the_clusters_are_apart(full: Members) -> None:
    take(told_apart(epoch=50), told("shard_0", epoch=5), told("shard_1", epoch=5))

    picture = topology()
    assert (picture.cluster, picture.epoch, picture.is_owner) == (CLUSTER, 5, False)
    assert {uid: picture.epoch_of(shard) for uid, shard in picture.shards.items()} == {
        OWN["shard_0"]: 5,
        OWN["shard_1"]: 5,
        APART: 50,
    }
    assert picture.cluster_of(picture.shards[APART]) == APART_CLUSTER
    with pytest.raises(StaleEpoch):
        take(told_apart(epoch=49))


def test_what_the_node_is_it_is_by_the_coordinator(full: Members) -> None:
    placement = topology().placement

    assert placement is not None
    assert (placement.cluster, placement.primary_url) == (CLUSTER, url_of(PRIMARY))


def test_who_asks_it_for_the_shards_learns_where_their_coordinator_is(full: Members) -> None:
    placement = topology().placement
    assert placement is not None

    read, change = Client().get("/sharding/info"), Client().post("/sharding/shards/redistribute-all")

    assert (read.status_code, change.status_code) == (200, 400)
    assert read.json() == {"message": "Sharding is not enabled", "coordinator_url": placement.owner_url}
    assert change.json()["error"]["detail"] == {"coordinator_url": placement.owner_url}


def test_every_shard_is_read_from_the_copy_here(full: Members) -> None:
    routes = topology().placed_sharding

    assert routes is not None
    assert {member.label: member.is_local for member in routes.members} == dict.fromkeys((*OWN, "shard_r"), True)


def test_a_shard_whose_copy_here_is_not_whole_is_read_at_its_node(full: Members) -> None:
    take(with_own(told_apart(epoch=41), state=CopyState.SYNCING))

    routes = topology().placed_sharding
    assert routes is not None
    assert (routes.by_label["shard_r"].url, routes.by_label["shard_r"].shard_id) == (APART_URL, None)


# -- becoming the coordinator ------------------------------------------------------------------------------------


def namespace(label: str, name: str, uid: str, **fields: Any) -> None:
    uids = {**OWN, "shard_r": APART}
    head = ShardHead.objects.get(uid=uids[label])
    Namespace.objects.create(shard=head, name=name, uid=uid, dimension=3, metric="l2", **fields)


def test_a_promoted_replica_has_all_shards_and_keeps_their_registry(full: Members) -> None:
    namespace("shard_0", "books", "b" * 32)
    namespace("shard_r", "books", "b" * 32)

    promoted = promote(actor="test")

    assert promoted.term == 2
    heads = dict(ShardHead.objects.values_list("uid", "is_primary"))
    assert heads == {OWN["shard_0"]: True, OWN["shard_1"]: True, APART: False}
    row = Topology.objects.get()
    assert (row.cluster, row.is_owner, row.sharding_enabled, row.strategy, row.reign) == (
        CLUSTER,
        True,
        True,
        "hash",
        5,
    )
    assert bytes(row.slots or b"") == TABLE.to_bytes()
    known = {(shard.pk, shard.label, shard.uid, shard.url, shard.weight) for shard in Shard.objects.all()}
    assert known == {
        (1, "shard_0", OWN["shard_0"], "", 1.0),
        (2, "shard_1", OWN["shard_1"], "", 1.0),
        (3, "shard_r", APART, APART_URL, 2.0),
    }
    assert [(space.name, space.uid, space.dimension) for space in ShardedNamespace.objects.all()] == [
        ("books", "b" * 32, 3)
    ]
    assert list(Placement.objects.values_list("shard", flat=True)) == [APART]
    copies = ShardCopy.objects.values_list("shard__label", "shard__copies_cluster", "name", "membership")
    assert list(copies) == [("shard_r", APART_CLUSTER, NAME, "member")]
    former = Replica.objects.get()
    assert sorted(former.copies.values_list("shard", flat=True)) == sorted(OWN.values())


def test_it_still_believes_the_shards_that_are_clusters_of_their_own(full: Members) -> None:
    promote(actor="test")

    take(told_apart(epoch=60))

    assert Placement.objects.get(shard=APART).epoch == 60
    row = Topology.objects.get()
    assert (row.cluster, row.is_owner, row.sharding_enabled) == (CLUSTER, True, True)


def test_a_shard_that_has_not_said_what_it_writes_is_not_used_and_what_it_may_have_is_not_denied(full: Members) -> None:
    namespace("shard_0", "books", "b" * 32)
    promote(actor="test")
    queries = ClusterQueryProcessor()

    found = queries.find_similar(_search(), namespace="books")

    assert found.failed == ["shard_r"]
    assert list(Shard.objects.filter(recheck_due=True).values_list("label", flat=True)) == ["shard_r"]
    for ask in (
        lambda: queries.count(namespace="unheard_of"),
        lambda: queries.list_namespaces(),
        lambda: queries.namespace_put("another", dimension=3),
    ):
        with pytest.raises(NotReady):
            ask()


def test_a_namespace_that_has_ended_in_any_copy_here_has_ended_everywhere(full: Members) -> None:

    namespace("shard_0", "b" * 32, "b" * 32, dropped_at=timezone.now())
    namespace("shard_r", "books", "b" * 32)

    promote(actor="test")

    [row] = ShardedNamespace.objects.all()
    assert (row.uid, row.dropped_at is not None) == ("b" * 32, True)
    assert row.errands.filter(shard__label="shard_r").exists()


def test_a_shard_that_has_not_heard_a_change_of_a_namespace_is_told_by_the_next_coordinator(full: Members) -> None:
    namespace("shard_r", "books", "b" * 32, recall_target=0.99)
    namespace("shard_0", "books", "b" * 32, recall_target=0.9)

    promote(actor="test")

    [row] = ShardedNamespace.objects.all()
    assert row.recall_target == 0.9
    assert list(row.errands.values_list("shard__label", flat=True)) == ["shard_r"]


def test_slots_that_were_given_away_unheard_are_where_the_shards_say_and_former_gates_are_over(
    members: Members,
) -> None:
    take(told("shard_0", apart=False), told("shard_1", apart=False))
    first, second = TABLE.owned_by(1) | TABLE.owned_by(3), TABLE.owned_by(2)
    given, closed = SlotSet.of(first.numbers[:50]), SlotSet.of(second.numbers[:50])
    gates("shard_0", (2, first), (7, first - given))
    gates("shard_1", (2, second), (6, second | given), (9, (second | given) - closed))

    promote(actor="test")

    table = SlotTable.of_bytes(bytes(Topology.objects.get().slots or b""))
    assert (table.owned_by(1), table.owned_by(2)) == (first - given, second | given)
    assert not Shard.objects.filter(recheck_due=True).exists()
    for label, owned in (("shard_0", first - given), ("shard_1", second | given)):
        now = slots_now(ShardHead.objects.get(uid=OWN[label]).pk)
        assert now is not None
        assert (now.writable, now.epoch > 9) == (owned, True)
    assert Shard.objects.filter(has_foreign=True).count() == 2


def gates(label: str, *changes: tuple[int, SlotSet]) -> None:
    """Have a copy here receive what its primary was told of slots."""
    log = PaperLog()
    for epoch, writable in changes:
        log.add(SetSlots(epoch, writable.packed))
    copy = ShardHead.objects.get(uid=OWN[label])
    receive(copy.pk, term=1, before=Position(copy.term, copy.last_seq), entries=log.entries)


def test_no_shard_is_taken_where_one_of_them_cannot_be_won(full: Members) -> None:
    def vote(ballot: dict[str, Any]) -> dict[str, Any]:
        return {"node": node_of("replica_2"), "term": 9, "seq": 9}

    three = [replace(told(label, epoch=4), copies=(*told(label).copies, _sibling())) for label in OWN]
    take(*three)
    full.votes[url_of("replica_2")] = vote

    with pytest.raises(NotElected):
        promote(actor="test")

    assert not ShardHead.objects.filter(is_primary=True).exists()
    assert not Shard.objects.exists()


def test_a_replica_of_one_shard_cannot_take_the_place_of_a_coordinator(members: Members) -> None:
    take(told("shard_0"))

    with pytest.raises(Unfit) as refusal:
        promote(force=True, actor="test")

    assert refusal.value.detail["missing"] == ["shard_1"]
    assert topology().is_owner is False


def test_a_coordinator_that_was_replaced_is_a_replica_and_coordinates_nothing(full: Members) -> None:
    promote(actor="test")
    document = registry_document(OWN["shard_0"])
    assert document.sharding is not None
    next_one = NodeAddress("9" * 32, "http://next.test:8000")
    mine = PlacedCopy("node_mine", node_of(NAME), url_of(NAME), Membership.MEMBER, CopyState.FOLLOWING)
    successor = replace(
        document,
        epoch=document.epoch + 10,
        term=document.term + 1,
        name="node_mine",
        node=node_of(NAME),
        owner=next_one,
        primary=next_one,
        copies=(PlacedCopy(PRIMARY, *next_one, Membership.MEMBER, CopyState.FOLLOWING), mine),
        sharding=replace(document.sharding, reign=6),
    )

    take(successor)

    row = Topology.objects.get()
    assert (row.is_owner, row.sharding_enabled, row.slots) == (False, False, None)
    assert not Shard.objects.exists()
    assert not ShardHead.objects.filter(is_primary=True).exists()
    take(replace(successor, shard=OWN["shard_1"], label="shard_1"))
    assert topology().placed_sharding is not None


def _sibling() -> PlacedCopy:
    return PlacedCopy("replica_2", node_of("replica_2"), url_of("replica_2"), Membership.MEMBER, CopyState.FOLLOWING)


def _search() -> Any:

    return SearchRequest(query=np.ones(3, "f4"), top_k=10)


# -- as a candidate ----------------------------------------------------------------------------------------------

HOST = Host("f" * 32, APART_CLUSTER, {}, coordinator=CLUSTER)


def status(**fields: Any) -> dict[str, Any]:
    held = {"uid": OWN["shard_0"], "role": "replica", "cluster": CLUSTER}
    return {"node": "1" * 32, "protocol": PROTOCOL, "cluster": CLUSTER, "is_owner": False, "shards": [held], **fields}


def test_a_shard_s_node_takes_a_replica_of_its_coordinator_as_one_of_its_own() -> None:
    check_candidate(HOST, APART_URL, status(), name="full")
    with pytest.raises(WrongCluster):
        check_candidate(HOST._replace(coordinator=""), APART_URL, status(), name="full")


def test_a_shard_s_node_keeps_a_replica_that_has_become_the_coordinator_but_adds_none() -> None:
    coordinator = status(is_owner=True, is_coordinator=True)
    with pytest.raises(Cycle):
        check_candidate(HOST, APART_URL, coordinator, name="full")

    held = {"uid": APART, "role": "replica", "cluster": APART_CLUSTER}
    check_candidate(HOST, APART_URL, {**coordinator, "shards": [held]}, name="full")
