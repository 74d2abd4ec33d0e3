"""Taking a placement: joining, obeying, being detached; and all that is refused, which leaves a node as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cluster.models import ClusterEvent, Placement, Topology
from cluster.services import taking
from cluster.services.candidates import Cycle, Incompatible, OtherNode, OwnUrl, WrongCluster
from cluster.services.registry import OnReplica, replica_add, replication_enable
from cluster.services.taking import EpochTaken, StaleEpoch, placement_take
from cluster.states import CopyState, Membership
from cluster.topology import topology
from vectors.errors import InvalidInput, MLVectorDBError, NotEmpty, NotPrimary, StaleTerm
from vectors.models import Namespace, ShardHead
from vectors.query_processor import LocalQueryProcessor
from vectors.services import namespace_put
from vectors.store import log, terms

OWNER, CLUSTER, SHARD = "0" * 31 + "1", "c" * 32, "5" * 32


def document(*, epoch: int = 3, term: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the placement of a replica; `changes` replace parts of it."""
    primary = {"node": OWNER, "url": "http://127.0.0.1:7001"}
    return {
        "format": 1,
        "cluster": CLUSTER,
        "epoch": epoch,
        "shard": {"uid": SHARD, "label": "shard_0", "term": term},
        "role": "replica",
        "name": "replica_1",
        "node": "",
        "owner": primary,
        "primary": primary,
        "copies": [
            {"name": "primary", **primary, "membership": "member", "state": "primary"},
            {"name": "replica_1", "node": "", "url": "http://127.0.0.1:7002", "membership": "none", "state": "new"},
            {"name": "replica_2", "node": "", "url": "http://127.0.0.1:7003", "membership": "member",
             "state": "following"},
        ],
        **changes,
    }  # fmt: skip


def state() -> tuple[Any, ...]:
    """Return everything that a refused placement must leave alone."""
    return (
        list(Topology.objects.values()),
        list(Placement.objects.values("shard", "epoch", "role", "document")),
        list(ShardHead.objects.values("uid", "is_primary", "promised_term")),
        ClusterEvent.objects.count(),
    )


def test_an_empty_node_becomes_a_replica(head: ShardHead) -> None:
    placement_take(document())

    copy_ = ShardHead.objects.get()
    assert (copy_.uid, copy_.label, copy_.is_primary, copy_.last_seq) == (SHARD, "shard_0", False, 0)
    picture = topology()
    assert (picture.cluster, picture.epoch, picture.is_owner, picture.is_single) == (CLUSTER, 3, False, False)
    shard = picture.shards[SHARD]
    assert (shard.shard_id, shard.primary_url, shard.is_local_primary) == (copy_.pk, "http://127.0.0.1:7001", False)
    assert shard.own is not None
    assert (shard.own.name, shard.own.state) == ("replica_1", CopyState.NEW)
    assert [(sibling.name, sibling.membership) for sibling in shard.copies if not sibling.is_self] == [
        ("replica_2", Membership.MEMBER)
    ]
    event = ClusterEvent.objects.get(action="placement_taken")
    assert (event.actor, event.before, event.after["epoch"]) == (f"node {OWNER}", None, 3)


def test_a_replica_takes_no_writes_of_clients(head: ShardHead) -> None:
    placement_take(document())

    with pytest.raises(NotPrimary):
        namespace_put(ShardHead.objects.get().pk, "default", dimension=3)
    with pytest.raises(OnReplica) as caught:
        replica_add(name="a", url="http://127.0.0.1:1", actor="user ann")
    assert caught.value.detail == {"primary_url": "http://127.0.0.1:7001"}


def test_the_same_placement_again_changes_nothing(head: ShardHead) -> None:
    placement_take(document())
    before = state()

    placement_take(document())

    assert state() == before


def test_a_newer_placement_replaces_the_older(head: ShardHead) -> None:
    placement_take(document())

    placement_take(document(epoch=4, term=2))

    placement = Placement.objects.get()
    assert (placement.epoch, placement.term) == (4, 2)
    assert topology().epoch == 4
    # A newer term is heard at once: its predecessor's slices are refused from here on.
    own = log.read_head(ShardHead.objects.get().pk)
    assert own is not None
    assert own.promised_term == 2


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (document(epoch=2), StaleEpoch),
        (document(name="other"), EpochTaken),
        (document(epoch=9, cluster="d" * 32), WrongCluster),
        (document(epoch=9, cluster="d" * 32, shard={"uid": "6" * 32, "label": "b", "term": 1}), WrongCluster),
    ],
)
def test_a_placement_that_may_not_replace_the_present_one_is_refused(
    head: ShardHead, given: dict[str, Any], error: type[MLVectorDBError]
) -> None:
    placement_take(document())
    before = state()

    with pytest.raises(error) as caught:
        placement_take(given)

    assert state() == before
    assert caught.value.status == 409
    if error in (StaleEpoch, EpochTaken):
        assert caught.value.code == "stale_epoch"
        assert caught.value.detail["epoch"] == 3
        assert caught.value.detail["placement"] == document()


def test_a_primary_of_a_term_that_is_over_places_nothing_whatever_its_epoch(head: ShardHead) -> None:
    placement_take(document())
    terms.term_promise(ShardHead.objects.get().pk, 5, candidate="a" * 32)
    before = state()

    with pytest.raises(StaleTerm) as caught:
        placement_take(document(epoch=99))

    assert state() == before
    assert caught.value.detail["promised_term"] == 5


def test_a_vote_that_is_given_while_a_placement_is_taken_keeps_the_placement_out(
    head: ShardHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its sender would count this node among those who know of a change of the members, and its rival as well."""
    placement_take(document())
    create = taking.copy_create

    def create_and_vote(uid: str, label: str) -> ShardHead:
        made = create(uid, label)
        terms.term_promise(made.pk, 5, candidate="a" * 32)
        return made

    monkeypatch.setattr(taking, "copy_create", create_and_vote)

    with pytest.raises(StaleTerm):
        placement_take(document(epoch=4))

    assert Placement.objects.get().epoch == 3


def test_a_node_that_holds_rows_refuses_and_keeps_them(head: ShardHead) -> None:
    namespace_put(head.pk, "mine", dimension=3)
    before = state()

    with pytest.raises(NotEmpty):
        placement_take(document())

    assert state() == before
    assert Namespace.objects.get().name == "mine"


def test_a_node_with_replicas_of_its_own_refuses(primary: ShardHead) -> None:
    replica_add(name="a", url="http://127.0.0.1:1", actor="user ann")
    before = state()

    with pytest.raises(Cycle):
        placement_take(document())

    assert state() == before


def test_a_registry_without_replicas_of_a_node_without_rows_binds_nobody(head: ShardHead) -> None:
    replication_enable(actor="settings")

    placement_take(document())

    assert Topology.objects.get().cluster == CLUSTER
    assert not Topology.objects.get().is_owner
    # What the data dir holds wins over the flag that made the registry.
    assert not replication_enable(actor="settings")
    assert not Topology.objects.get().is_owner


def test_a_placement_for_another_node_is_refused(head: ShardHead, settings) -> None:
    own = {"node": settings.MLVDB_NODE_ID, "url": "http://127.0.0.1:8000"}
    before = state()

    with pytest.raises(OtherNode):
        placement_take(document(node="f" * 32))
    with pytest.raises(OwnUrl):
        placement_take(document(owner=own, primary=own))
    with pytest.raises(WrongCluster):
        placement_take(document(), sender="f" * 32)
    placement_take(document(node=settings.MLVDB_NODE_ID), sender=OWNER)

    assert before != state()


@pytest.mark.parametrize("part", ["cluster", "epoch", "shard", "role", "name", "node", "owner", "primary", "copies"])
@pytest.mark.parametrize("value", [None, 5.5, [], {}, "x" * 300, -1])
def test_a_placement_with_a_wrong_part_is_400(head: ShardHead, part: str, value: Any) -> None:
    if part == "copies" and value == []:
        return
    before = state()

    with pytest.raises(InvalidInput):
        placement_take({**document(), part: value})
    with pytest.raises(InvalidInput):
        placement_take({name: kept for name, kept in document().items() if name != part})

    assert state() == before


@pytest.mark.parametrize("body", [None, [], "placement", {}, {"format": 1}])
def test_anything_else_is_400(head: ShardHead, body: Any) -> None:
    with pytest.raises(InvalidInput):
        placement_take(body)


def test_a_placement_of_another_format_says_that_versions_differ(head: ShardHead) -> None:
    with pytest.raises(Incompatible, match="format 2"):
        placement_take(document(format=2))


def test_a_node_that_crashed_while_it_joined_is_completed_by_the_next_push(
    head: ShardHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(taking, "_store", crash)
        with pytest.raises(KeyboardInterrupt):
            placement_take(document())
    half = ShardHead.objects.get()
    with pytest.raises(NotPrimary):
        namespace_put(half.pk, "default", dimension=3)

    placement_take(document())

    assert ShardHead.objects.get().pk == half.pk
    assert topology().shards[SHARD].placement is not None


def test_a_detached_copy_keeps_its_rows_read_only_and_can_be_added_again(head: ShardHead) -> None:
    placement_take(document())
    shard_id = ShardHead.objects.get().pk

    placement_take(document(epoch=4, role="detached", copies=document()["copies"][:1]))

    placement = topology().placement
    assert placement is not None
    assert placement.is_detached
    assert ShardHead.objects.get().pk == shard_id
    with pytest.raises(NotPrimary):
        namespace_put(shard_id, "default", dimension=3)
    assert LocalQueryProcessor().list_namespaces().value == []
    assert ClusterEvent.objects.filter(action="detached").exists()
    placement_take(document(epoch=5))
    assert topology().placement is not None
    assert not topology().placement.is_detached
    assert ShardHead.objects.get().pk == shard_id


def test_a_plain_node_that_is_told_to_let_go_of_what_it_has_not_stays_plain(head: ShardHead) -> None:
    before = state()

    placement_take(document(role="detached", copies=document()["copies"][:1]))

    assert state() == before
    assert ShardHead.objects.get().is_primary


def test_a_second_shard_of_the_same_cluster_is_kept_beside_the_first(head: ShardHead) -> None:
    placement_take(document())
    second = copy.deepcopy(document(epoch=4))
    second["shard"] = {"uid": "6" * 32, "label": "shard_1", "term": 1}

    placement_take(second)

    assert set(topology().shards) == {SHARD, "6" * 32}
    assert topology().epoch == 4
