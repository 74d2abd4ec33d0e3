"""Handing over from the primary, on a real database; the replica does what a test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.conf import settings

from cluster.models import ClusterEvent, Replica, ReplicaCopy
from cluster.replication.election import NotElected
from cluster.replication.sender import Step
from cluster.services import handover
from cluster.services.accession import registry_document
from cluster.services.handover import HandoverFailed, NoPrimary, NotPromotable, promotion_lease, replica_promote
from cluster.services.registry import ReplicaNotFound
from cluster.services.taking import placement_take
from cluster.states import CopyState, Membership
from cluster.topology import topology
from cluster.transport.errors import PeerRejected, PeerSilent
from tests.cluster.members import Members
from tests.cluster.registry import Registry
from vectors.errors import Unavailable
from vectors.store import log
from vectors.store.log import Head


@dataclass
class Candidate:
    """The replica that is to take over: `take_over` answers the order, `steps` what sending to it finds."""

    take_over: Callable[[dict[str, Any]], dict[str, Any]]
    steps: list[Step] = field(default_factory=list)
    orders: list[dict[str, Any]] = field(default_factory=list)
    answers: bool = True

    def json(self, url: str, method: str, path: str, *, json: Any = None, **_options: Any) -> dict[str, Any]:
        self.orders.append(json)
        return self.take_over(json)

    def step(self, **_options: Any) -> Step:
        return self.steps.pop(0) if self.steps else Step.UP_TO_DATE


@pytest.fixture
def candidate(owner: Registry, members: Members, monkeypatch) -> Candidate:
    """A replica `a` at the head that takes over when it is told to."""
    owner.replica("a")
    found = Candidate(lambda order: {"term": order["term"], "seq": order["at"][1] + 1, "epoch": order["epoch"] + 1})
    monkeypatch.setattr(handover, "Sender", lambda target: found)
    monkeypatch.setattr(handover, "peer_client", lambda: found)
    monkeypatch.setattr(handover, "placement_push_now", lambda **_options: None)
    monkeypatch.setattr(handover, "placement_ask", lambda copy, document: None)
    monkeypatch.setattr(handover, "probe_now", lambda rows: {row.name: found.answers for row in rows})
    return found


def head_of(owner: Registry) -> Head:
    found = log.read_head(owner.head.pk)
    assert found is not None
    return found


def silent(order: dict[str, Any]) -> dict[str, Any]:
    raise PeerSilent("gave no complete answer", url="http://127.0.0.1:1")


def test_the_replica_is_told_to_take_over_in_a_term_that_this_node_has_promised_it(
    owner: Registry, candidate: Candidate
) -> None:
    promoted = replica_promote(name="a", actor="user ada")

    [order] = candidate.orders
    head = head_of(owner)
    assert (promoted.term, order["term"], order["at"]) == (2, 2, [1, 0])
    assert (head.promised_term, head.voted_for, head.takes_writes) == (2, Replica.objects.get().node, False)
    assert ClusterEvent.objects.get(action="handover").actor == "user ada"


def test_writes_are_taken_until_the_replica_has_caught_up(owner: Registry, candidate: Candidate) -> None:
    seen: list[bool] = []

    def take_note(**_options: Any) -> Step:
        seen.append(head_of(owner).takes_writes)
        return Step.SENT if len(seen) < 3 else Step.UP_TO_DATE

    candidate.step = take_note  # type: ignore[method-assign]

    replica_promote(name="a", actor="test")

    # Three looks while writes go on, and one for the rest after that.
    assert seen == [True, True, True, False]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: Replica.objects.update(paused=True),
        lambda: ReplicaCopy.objects.update(state=CopyState.SYNCING),
        lambda: ReplicaCopy.objects.update(state=CopyState.QUARANTINED),
        lambda: ReplicaCopy.objects.update(membership=Membership.JOINING),
        lambda: ReplicaCopy.objects.update(membership=Membership.NONE),
        lambda: Replica.objects.update(node=""),
        lambda: ReplicaCopy.objects.all().delete(),
    ],
)
def test_a_replica_that_is_not_ready_is_refused_and_writes_go_on(
    owner: Registry, candidate: Candidate, prepare: Callable[[], object]
) -> None:
    prepare()

    with pytest.raises(NotPromotable):
        replica_promote(name="a", force=True, actor="test")

    assert head_of(owner).takes_writes
    assert not candidate.orders


def test_a_replica_that_does_not_answer_is_refused(owner: Registry, candidate: Candidate) -> None:
    candidate.answers = False

    with pytest.raises(NotPromotable):
        replica_promote(name="a", actor="test")

    assert head_of(owner).takes_writes


def test_a_replica_that_needs_a_full_sync_is_refused(owner: Registry, candidate: Candidate) -> None:
    candidate.steps = [Step.FULL_SYNC]

    with pytest.raises(NotPromotable):
        replica_promote(name="a", actor="test")

    assert head_of(owner).takes_writes


def test_too_few_members_to_vote_are_seen_before_anything_is_given_up(
    owner: Registry, candidate: Candidate, monkeypatch
) -> None:
    for name in "bcd":
        owner.replica(name)
    monkeypatch.setattr(handover, "probe_now", lambda rows: {row.name: row.name == "a" for row in rows})

    with pytest.raises(NotPromotable, match="b, c, d"):
        replica_promote(name="a", actor="test")

    assert head_of(owner).takes_writes


def test_an_unknown_replica_is_not_found(owner: Registry, candidate: Candidate) -> None:
    with pytest.raises(ReplicaNotFound):
        replica_promote(name="nobody", actor="test")


@pytest.mark.parametrize("code", ["conflict", "not_enough_votes"])
def test_a_replica_that_refuses_leaves_this_node_the_primary_of_a_newer_term(
    owner: Registry, candidate: Candidate, code: str
) -> None:
    def refuse(order: dict[str, Any]) -> dict[str, Any]:
        raise PeerRejected(url="http://a", peer_status=409, peer_code=code, peer_message="no")

    candidate.take_over = refuse

    with pytest.raises(HandoverFailed) as failed:
        replica_promote(name="a", actor="test")

    head = head_of(owner)
    assert head.takes_writes
    assert head.term == failed.value.detail["term"] > 2
    assert topology().is_owner


def test_a_replica_that_falls_silent_leaves_this_node_the_primary(owner: Registry, candidate: Candidate) -> None:
    candidate.take_over = silent

    with pytest.raises(HandoverFailed):
        replica_promote(name="a", actor="test")

    assert head_of(owner).takes_writes


def test_a_replica_that_lacks_the_rest_is_not_told_to_take_over(owner: Registry, candidate: Candidate) -> None:
    candidate.steps = [Step.UP_TO_DATE, Step.FULL_SYNC]

    with pytest.raises(HandoverFailed):
        replica_promote(name="a", actor="test")

    assert not candidate.orders
    assert head_of(owner).takes_writes


def test_an_error_that_nobody_expected_gives_the_right_to_write_back_as_well(
    owner: Registry, candidate: Candidate
) -> None:
    def fail(order: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    candidate.take_over = fail

    with pytest.raises(HandoverFailed):
        replica_promote(name="a", actor="test")

    assert head_of(owner).takes_writes


def test_where_nobody_can_be_elected_it_says_what_a_person_has_to_do(
    owner: Registry, candidate: Candidate, monkeypatch
) -> None:
    candidate.take_over = silent

    def not_elected(*_arguments: Any, **_options: Any) -> Any:
        raise NotElected("1 of 2 votes")

    monkeypatch.setattr(handover, "stand_again", not_elected)

    with pytest.raises(NoPrimary, match="promote --force"):
        replica_promote(name="a", actor="test")


def told_by(replica: Replica, owner: Registry) -> dict[str, Any]:
    """What a replica that has taken over tells."""
    document = registry_document(owner.head.uid).to_document()
    address = {"node": replica.node, "url": replica.url}
    [primary, copy] = document["copies"]
    return {
        **document,
        "epoch": document["epoch"] + 1,
        "shard": {**document["shard"], "term": 2},
        "name": "primary",
        "node": replica.node,
        "owner": address,
        "primary": address,
        "copies": [
            {**primary, **address},
            {**copy, "name": "node_old", "node": primary["node"], "url": primary["url"]},
        ],
    }


def test_a_replica_whose_placement_comes_and_whose_answer_is_lost_has_taken_over(
    owner: Registry, candidate: Candidate
) -> None:
    replica = Replica.objects.get()
    told = told_by(replica, owner)

    def win_tell_and_fall_silent(order: dict[str, Any]) -> dict[str, Any]:
        placement_take({**told, "name": "node_old", "node": settings.MLVDB_NODE_ID})
        return silent(order)

    candidate.take_over = win_tell_and_fall_silent

    promoted = replica_promote(name="a", actor="test")

    assert (promoted.term, promoted.epoch) == (2, told["epoch"])


def test_a_replica_that_won_although_its_answer_was_lost_is_found_and_obeyed(
    owner: Registry, candidate: Candidate, members: Members
) -> None:
    replica = Replica.objects.get()
    candidate.take_over = silent
    told = told_by(replica, owner)
    members.votes[replica.url] = PeerRejected(
        url=replica.url,
        peer_status=409,
        peer_code="stale_epoch",
        peer_message="older",
        peer_detail={"epoch": told["epoch"], "placement": told},
    )

    promoted = replica_promote(name="a", actor="test")

    assert (promoted.term, promoted.epoch) == (2, told["epoch"])
    assert not topology().is_owner
    assert topology().shards[owner.head.uid].primary_url == replica.url


def test_two_handovers_at_once_are_refused(owner: Registry, candidate: Candidate) -> None:
    lease = promotion_lease(owner.head.uid)
    assert lease is not None
    with lease, pytest.raises(NotPromotable, match="under way"):
        replica_promote(name="a", actor="test")


def test_a_replica_that_never_catches_up_is_refused_in_time(owner: Registry, candidate: Candidate, monkeypatch) -> None:
    monkeypatch.setattr(handover, "CATCH_UP_WITHIN_S", 0.0)
    candidate.steps = [Step.SENT] * 5

    with pytest.raises(NotPromotable, match="fewer writes") as refused:
        replica_promote(name="a", actor="test")

    assert isinstance(refused.value.__cause__, Unavailable)
    assert head_of(owner).takes_writes


def test_an_order_of_an_epoch_that_was_raised_since_is_given_again(
    owner: Registry, candidate: Candidate, monkeypatch
) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(handover, "placement_push_now", lambda **options: pushed.append(options["shard"]))
    take_over = candidate.take_over

    def not_told_yet(order: dict[str, Any]) -> dict[str, Any]:
        candidate.take_over = take_over
        raise PeerRejected(
            url="http://127.0.0.1:1",
            peer_status=409,
            peer_code="conflict",
            peer_message="the order is of another epoch",
            peer_detail={"epoch": order["epoch"] - 1},
        )

    candidate.take_over = not_told_yet

    promoted = replica_promote(name="a", actor="user ada")

    assert (promoted.term, len(candidate.orders), pushed) == (2, 2, [owner.head.uid] * 2)
