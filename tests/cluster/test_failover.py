"""Following a shard to its primary, and having a copy take the place of a node that is dead: the coordinator's side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.health import samples
from cluster.health.shards import run_shard_round
from cluster.models import (
    ClusterEvent,
    Move,
    MoveStep,
    NamespaceErrand,
    Replica,
    Shard,
    ShardCopy,
    ShardedNamespace,
    Topology,
)
from cluster.services import failover
from cluster.services.failover import shard_look
from cluster.services.sharding import shard_add, shard_change, sharding_enable
from cluster.states import FailoverState, Membership, PeerHealth, ShardState
from cluster.topology import topology
from tests.cluster.standin_node import StandInNode
from vectors.engine.slots import NO_SLOTS
from vectors.models import ShardHead
from vectors.store.leases import take_lease

COPIES = "d" * 32


class Shards:
    """A shard on the node `first`, with replicas on `second` and `third`; nodes answer for their copies as told."""

    def __init__(self, make: Callable[..., StandInNode]) -> None:
        self.first, self.second, self.third = (make(cluster=COPIES) for _ in range(3))
        shard_add(label="away", url=self.first.url, rebalance=False, actor="test")
        Shard.objects.filter(label="away").update(copies_cluster=COPIES, health=PeerHealth.ALIVE)
        for name in ("second", "third"):
            node = getattr(self, name)
            ShardCopy.objects.create(
                shard=self.row, name=name, url=node.url, node=node.node, membership=Membership.MEMBER
            )
        self.is_("first", "primary", seq=9)
        self.is_("second", seq=9)
        self.is_("third", seq=8)

    @property
    def row(self) -> Shard:
        return Shard.objects.get(label="away")

    def is_(self, name: str, role: str = "replica", *, term: int = 1, seq: int = 9, **more: Any) -> None:
        """Have a node say what its copy is."""
        shard = {"uid": self.row.uid, "role": role, "term": term, "seq": seq, "promised_term": term, **more}
        getattr(self, name).status["shards"] = [shard]

    def dies(self, name: str = "first") -> None:
        """Have a node refuse connections, and the coordinator know it."""
        getattr(self, name).close()
        if name == "first":
            Shard.objects.filter(pk=self.row.pk).update(health=PeerHealth.DEAD, failures=3)

    def wins(self, name: str) -> None:
        """Have a node win when it is told to stand for election."""

        def win() -> None:
            self.is_(name, "primary", term=2, seq=10)

        getattr(self, name).on_order = win

    def refuses(self, node: str, code: str, **detail: Any) -> None:
        """Have a node not be elected."""
        getattr(self, node).on_order = lambda: (409, code, detail)

    def look(self) -> Shard:
        """Look after the shard as a task does, and return its row."""
        shard_look(self.row.pk)
        return self.row


@pytest.fixture
def published(head: ShardHead, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that would have been published; this node is the coordinator of one local shard."""
    tasks: list[str] = []
    for module in ("moves.control", "services.sharding_assignments", "services.failover", "health.samples"):
        monkeypatch.setattr(f"cluster.{module}.publish", lambda task, *_arguments: not tasks.append(str(task)))
    assert sharding_enable(strategy="hash", shards=1, actor="test")
    tasks.clear()
    return tasks


@pytest.fixture
def shards(published: list[str], nodes: Callable[..., StandInNode]) -> Shards:
    return Shards(nodes)


# -- following ---------------------------------------------------------------------------------------------------


def test_a_shard_is_followed_to_the_copy_that_was_promoted_by_hand(shards: Shards, published: list[str]) -> None:
    shards.is_("first", "replica", term=2)
    shards.is_("second", "primary", term=2)
    epoch = Topology.objects.get().epoch

    row = shards.look()

    assert (row.url, row.node, row.failover) == (shards.second.url, shards.second.node, FailoverState.NONE)
    assert (row.health, row.gate_due) == (PeerHealth.ALIVE, True)
    assert row.node_epoch == Topology.objects.get().epoch > epoch
    # It is told whose shard it is by that epoch, and moves go on at once.
    assert shards.second.assignments[-1]["epoch"] == row.acknowledged_epoch == row.node_epoch
    assert failover.MOVES_TASK in published
    event = ClusterEvent.objects.get(action="shard_followed")
    assert (event.before["url"], event.after["url"]) == (shards.first.url, shards.second.url)


def test_of_two_that_call_themselves_primary_the_one_of_the_higher_term_is_it(shards: Shards) -> None:
    shards.is_("second", "primary", term=3)
    shards.is_("third", "primary", term=2)

    assert shards.look().url == shards.second.url


def test_a_primary_that_has_promised_a_newer_term_is_not_followed(shards: Shards) -> None:
    shards.is_("second", "primary", term=2, promised_term=3)

    assert shards.look().url == shards.first.url


def test_a_copy_that_went_to_a_cluster_of_its_own_is_not_followed(shards: Shards) -> None:
    shards.is_("first", "replica", term=2)
    shards.is_("second", "primary", term=900)
    shards.second.status["cluster"] = "e" * 32

    assert shards.look().url == shards.first.url


def test_the_new_primary_is_told_of_all_namespaces_and_of_its_slots_again(shards: Shards) -> None:
    ShardedNamespace.objects.create(uid="7" * 32, name="books", dimension=2, metric="l2", recall_target=0.99)
    NamespaceErrand.objects.all().delete()
    shards.is_("second", "primary", term=2)

    shards.look()

    [errand] = NamespaceErrand.objects.all()
    assert (errand.shard.label, errand.namespace.name) == ("away", "books")


def test_what_the_new_primary_says_of_its_copies_is_kept(shards: Shards) -> None:
    former = {
        "name": "node_former", "url": shards.first.url, "node": shards.first.node, "state": "new",
        "membership": "member", "health": "unknown", "term": 1, "seq": 9, "last_error": "",
    }  # fmt: skip
    shards.is_("first", "replica", term=2)
    shards.is_("second", "primary", term=2, copies=[former])

    shards.look()

    assert list(ShardCopy.objects.values_list("name", "url")) == [("node_former", shards.first.url)]


def test_samples_of_the_former_node_say_nothing_of_the_new_one(shards: Shards) -> None:
    former = shards.row.url
    shards.is_("second", "primary", term=2)
    shards.look()

    assert samples.sample_record(shards.row.pk, ok=False, kind=Shard, url=former) is None
    assert shards.row.health == PeerHealth.ALIVE


# -- failing over ------------------------------------------------------------------------------------------------


def test_the_most_caught_up_copy_takes_the_place_of_a_dead_node(shards: Shards) -> None:
    shards.dies()
    shards.wins("second")

    row = shards.look()

    assert (row.url, row.failover, row.health) == (shards.second.url, FailoverState.NONE, PeerHealth.ALIVE)
    [(order, body)] = shards.second.orders
    assert (order, body["cluster"]) == ("POST promote", Topology.objects.get().cluster)
    assert not shards.third.orders
    begun = ClusterEvent.objects.get(action="failover_begun")
    assert begun.alarm
    assert begun.epoch < row.node_epoch


def test_nothing_counts_of_the_dead_node_before_anybody_is_promoted(shards: Shards) -> None:
    seen: list[Any] = []

    def look() -> None:
        member = topology().sharding.by_label["away"]
        seen.append((member.failover, member.node_epoch))
        shards.is_("second", "primary", term=2)

    shards.dies()
    before = shards.row.node_epoch
    shards.second.on_order = look

    row = shards.look()

    [(state, epoch)] = seen
    assert state is FailoverState.RUNNING
    assert before < epoch < row.node_epoch


def test_who_refuses_names_the_copy_that_is_told_next(shards: Shards) -> None:
    shards.dies()
    shards.refuses("second", "more_caught_up", name="third")
    shards.wins("third")

    assert shards.look().url == shards.third.url


def test_without_enough_votes_nobody_is_promoted_and_the_reason_is_kept(shards: Shards) -> None:
    shards.dies()
    shards.refuses("second", "not_enough_votes")

    row = shards.look()

    assert (row.url, row.failover) == (shards.first.url, FailoverState.STUCK)
    assert "second: not_enough_votes" in row.failover_error
    assert not shards.third.orders
    # Every look tries again, and says nothing new.
    events = ClusterEvent.objects.count()
    shards.look()
    assert (len(shards.second.orders), ClusterEvent.objects.count()) == (2, events)
    shards.wins("second")
    assert shards.look().url == shards.second.url


def test_a_copy_that_cannot_stand_for_a_reason_of_its_own_leaves_it_to_the_next_one(shards: Shards) -> None:
    shards.dies()
    shards.refuses("second", "storage_full")
    shards.wins("third")

    row = shards.look()

    assert (row.url, row.failover) == (shards.third.url, FailoverState.NONE)
    assert len(shards.second.orders) == 1


def test_a_failover_that_was_begun_and_has_nobody_left_to_ask_makes_nobody_wait(shards: Shards) -> None:
    shards.dies()
    Shard.objects.filter(pk=shards.row.pk).update(failover=FailoverState.RUNNING)
    for name in ("second", "third"):
        shards.dies(name)

    row = shards.look()

    assert row.failover == FailoverState.STUCK
    assert "can be reached" in row.failover_error


def test_a_node_that_comes_back_before_anybody_was_promoted_goes_on(shards: Shards) -> None:
    Shard.objects.filter(pk=shards.row.pk).update(failover=FailoverState.STUCK, failover_error="no votes", node_epoch=1)

    row = shards.look()

    assert (row.url, row.failover, row.failover_error) == (shards.first.url, FailoverState.NONE, "")
    # Answers from before count no more than others: what is written has to be written under the new epoch.
    assert row.node_epoch == Topology.objects.get().epoch


def test_each_round_looks_whether_a_copy_was_made_the_primary_behind_a_node_that_answers(
    shards: Shards, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr("cluster.health.shards.publish", lambda _task, *numbers: not looks.extend(numbers))
    # The node goes on telling of its copies.
    monkeypatch.setattr("cluster.health.shards.copies_note", lambda *_shard, **_head: None)
    shards.is_("second", "primary", term=2)

    run_shard_round()

    assert looks == [shards.row.pk]
    assert shards.look().url == shards.second.url


def test_a_look_that_was_cut_short_after_the_election_is_gone_on_with(shards: Shards) -> None:
    shards.dies()
    Shard.objects.filter(pk=shards.row.pk).update(failover=FailoverState.RUNNING)
    shards.is_("second", "primary", term=2)

    row = shards.look()

    assert (row.url, row.failover) == (shards.second.url, FailoverState.NONE)
    assert not shards.second.orders


@pytest.mark.parametrize("change", [{"in_sync": False}, {"membership": Membership.JOINING}])
def test_a_copy_that_may_lack_writes_is_not_told_to_stand(shards: Shards, change: dict[str, Any]) -> None:
    ShardCopy.objects.filter(name="second").update(**change)
    shards.dies()
    shards.wins("third")

    assert shards.look().url == shards.third.url
    assert not shards.second.orders


@pytest.mark.parametrize("what", [{"quarantined": True}, {"damage": {"kind": "log"}}, {"role": "detached"}])
def test_a_copy_that_is_not_whole_is_not_told_to_stand(shards: Shards, what: dict[str, Any]) -> None:
    role = what.pop("role", "replica")
    shards.is_("second", role, **what)
    shards.dies()
    shards.wins("third")

    assert shards.look().url == shards.third.url


def test_a_replica_of_all_shards_stays_that(shards: Shards) -> None:
    Replica.objects.create(name="second", url=shards.second.url)
    shards.dies()
    shards.wins("third")

    assert shards.look().url == shards.third.url


def test_where_only_replicas_of_all_shards_are_up_it_is_said_that_they_do_not_count(shards: Shards) -> None:
    for name in ("second", "third"):
        Replica.objects.create(name=name, url=getattr(shards, name).url)
    shards.dies()

    assert "those of all shards do not take its node's place" in shards.look().failover_error


def test_one_that_has_more_and_may_not_take_the_place_sends_the_rest_to_the_one_that_does(shards: Shards) -> None:
    Replica.objects.create(name="second", url=shards.second.url)
    shards.dies()
    shards.refuses("third", "more_caught_up", name="second", url=shards.second.url)
    shards.second.on_order = lambda: shards.wins("third")
    shards.third.status["epoch"] = 12

    assert shards.look().url == shards.third.url
    [(order, body)] = shards.second.orders
    assert (order, body["url"], body["epoch"]) == ("POST lend", shards.third.url, 12)
    assert [order for order, _ in shards.third.orders] == ["POST promote"] * 2


def test_one_that_goes_on_having_less_is_not_helped_for_ever(shards: Shards) -> None:
    Replica.objects.create(name="second", url=shards.second.url)
    shards.dies()
    shards.refuses("third", "more_caught_up", name="second", url=shards.second.url)

    assert shards.look().failover == FailoverState.STUCK
    assert len(shards.third.orders) == 2


def test_without_anybody_to_promote_the_shard_is_only_down(shards: Shards) -> None:
    shards.dies()
    shards.dies("second")
    shards.dies("third")

    row = shards.look()

    assert (row.failover, row.url) == (FailoverState.NONE, shards.first.url)
    assert "none of its replicas" in row.failover_error


@pytest.mark.parametrize("health", [PeerHealth.SUSPECT, PeerHealth.ALIVE])
def test_a_node_that_is_not_known_to_be_dead_is_left_alone(shards: Shards, health: PeerHealth) -> None:
    shards.dies()
    Shard.objects.update(health=health)

    assert shards.look().failover == FailoverState.NONE
    assert not shards.second.orders


def test_a_shard_that_does_not_fail_over_by_itself_waits_for_a_person(shards: Shards) -> None:
    shard_change(label="away", auto_failover=False, actor="test")
    shards.dies()

    assert shards.look().failover == FailoverState.NONE
    assert not shards.second.orders
    # A person's promotion is followed all the same.
    shards.is_("second", "primary", term=2)
    assert shards.look().url == shards.second.url


def test_one_look_at_a_time(shards: Shards) -> None:
    shards.is_("second", "primary", term=2)
    lease = take_lease(f"failover:{shards.row.uid}", "another")
    assert lease is not None

    with lease:
        assert shards.look().url == shards.first.url
    assert shards.look().url == shards.second.url


def test_a_dead_node_that_answers_again_as_the_primary_is_not_replaced(shards: Shards) -> None:
    Shard.objects.update(health=PeerHealth.DEAD)

    assert shards.look().failover == FailoverState.NONE
    assert not shards.second.orders


def test_moves_that_waited_for_the_node_go_on_with_its_successor(shards: Shards) -> None:
    local = Shard.objects.get(label="shard_0")
    MoveStep.objects.create(
        move=Move.objects.create(kind=Move.Kind.REBALANCE), uid="9" * 32, source=shards.row, target=local,
        slots=NO_SLOTS.packed, attempts=5,
    )  # fmt: skip
    shards.is_("second", "primary", term=2)

    shards.look()

    assert MoveStep.objects.get().attempts == 0


# -- how soon death is known -------------------------------------------------------------------------------------


def test_a_refused_connection_has_the_nodes_looked_at_at_once_and_once(shards: Shards, published: list[str]) -> None:
    Shard.objects.filter(pk=shards.row.pk).update(state=ShardState.ACTIVE)
    published.clear()

    for _ in range(3):
        samples.refusal_record(shards.first.url)

    assert published.count(samples.SHARD_HEALTH_TASK) == 1
    assert shards.row.health == PeerHealth.SUSPECT


def test_a_look_takes_no_longer_than_its_probes(shards: Shards) -> None:
    shards.first.silent = True
    Shard.objects.update(health=PeerHealth.DEAD)
    shards.wins("second")
    began = time.monotonic()

    assert shards.look().url == shards.second.url
    assert time.monotonic() - began < 3.0
