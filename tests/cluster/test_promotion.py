"""Promotion on a real database: this node is a replica or a primary, the other members answer what a test says."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from cluster.health.probe import ShardStatus
from cluster.models import ClusterEvent, Move, Placement, PlacementPush, Replica, ReplicaCopy, Topology
from cluster.replication import votes as vote_rules
from cluster.replication.election import MoreCaughtUp, NewerPlacement, NotElected, PrimaryAlive
from cluster.replication.placements import NodeAddress
from cluster.replication.quorum import PRIMARY
from cluster.replication.votes import Ballot
from cluster.services import accession, promotion
from cluster.services.eligibility import Unfit
from cluster.services.promotion import Detached, NotAReplica, TakeOver, promote, stand_again, take_over
from cluster.services.taking import StaleEpoch, placement_take
from cluster.services.voting import NoVote, placement_tell, vote_give
from cluster.states import CopyState, Membership
from cluster.topology import topology
from cluster.transport.errors import PeerSilent
from tests.cluster.members import (
    CLUSTER,
    NAME,
    PRIMARY_NODE,
    SHARD,
    Members,
    become_replica,
    is_replica,
    node_of,
    own_head,
    placement_document,
    promise,
    receive_entries,
    url_of,
    with_own,
)
from tests.cluster.registry import Registry
from vectors.errors import Conflict, NotPrimary, StaleTerm
from vectors.models import ShardHead
from vectors.store import log, staging
from vectors.store.log import Position


def ballot(**changes: Any) -> Ballot:
    """The ballot of a sibling."""
    return replace(Ballot(CLUSTER, SHARD, epoch=3, term=2, candidate=node_of("replica_2")), **changes)


# -- a replica is promoted ---------------------------------------------------------------------------------------


def test_the_one_replica_of_a_dead_primary_becomes_the_primary_in_one_step(members: Members) -> None:
    become_replica(placement_document(), entries=4)

    promoted = promote(actor="test")

    head = own_head()
    assert (promoted.term, promoted.seq, promoted.epoch, promoted.warning) == (2, 5, 4, "")
    assert (head.position, head.takes_writes) == (Position(2, 5), True)
    assert not Placement.objects.exists()
    assert topology().is_owner
    assert topology().shards[SHARD].is_local_primary


def test_the_registry_is_imported_from_the_placement(members: Members) -> None:
    told = placement_document("replica_2", "replica_3")
    become_replica(told, entries=4)
    for name in ("replica_2", "replica_3"):
        members.alive(name, seq=3)

    promote(actor="test")

    copies = {copy.replica.name: copy for copy in ReplicaCopy.objects.select_related("replica")}
    former = accession.name_of_former_primary(PRIMARY_NODE)
    assert set(copies) == {former, "replica_2", "replica_3"}
    assert {copy.membership for copy in copies.values()} == {Membership.MEMBER}
    # Nobody reads from a copy that this node has not sent to yet.
    assert {copy.state for copy in copies.values()} == {CopyState.NEW}
    assert (copies["replica_2"].term, copies["replica_2"].seq) == (1, 3)
    assert copies[former].replica.url == url_of(PRIMARY)


def test_everybody_is_to_be_told_the_old_primary_as_well(members: Members) -> None:
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")

    promote(actor="test")

    pushes = {push.url: push.document for push in PlacementPush.objects.all()}
    assert set(pushes) == {url_of(PRIMARY), url_of("replica_2")}
    told = pushes[url_of(PRIMARY)]
    assert (told["epoch"], told["shard"]["term"], told["role"]) == (4, 2, "replica")
    assert told["primary"] == {"node": node_of(NAME), "url": url_of(NAME)}


def test_an_event_says_who_promoted_it_and_by_which_votes(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=2)
    members.alive("replica_2", seq=1)

    promote(actor="user ada")

    event = ClusterEvent.objects.get(action="promoted")
    assert (event.actor, event.epoch, event.alarm) == ("user ada", 4, False)
    assert event.after["votes"] == {NAME: [1, 2], "replica_2": [1, 1]}


def test_the_replicas_are_sent_to_at_once(members: Members) -> None:
    become_replica(placement_document())

    promote(actor="test")

    assert ("cluster.tasks.replication_ship", (Replica.objects.get().pk,)) in members.published


def test_asking_again_changes_nothing(members: Members) -> None:
    become_replica(placement_document())
    first = promote(actor="test")

    again = promote(actor="test")

    assert (again.term, again.epoch, again.changed) == (first.term, first.epoch, False)


# -- what forbids it, before any term is touched -----------------------------------------------------------------


def untouched() -> bool:
    head = own_head()
    return (head.promised_term, head.voted_for) == (1, "") and is_replica()


def test_it_is_refused_while_the_primary_answers(members: Members) -> None:
    become_replica(placement_document(), entries=2)
    members.alive(PRIMARY, role="primary", seq=2)

    with pytest.raises(PrimaryAlive) as refused:
        promote(actor="test")

    assert refused.value.detail["primary_url"] == url_of(PRIMARY)
    assert untouched()
    assert not members.ballots


def test_a_primary_that_has_lost_its_right_to_write_is_no_reason_against_it(members: Members) -> None:
    become_replica(placement_document(), entries=2)
    members.alive(PRIMARY, role="primary", seq=2, promised_term=7)

    assert promote(actor="test").term == 2


def test_it_is_refused_while_a_member_with_more_answers_and_names_it(members: Members) -> None:
    become_replica(placement_document("replica_2", "replica_3"), entries=2)
    members.alive("replica_2", seq=9)
    members.alive("replica_3", seq=5)

    with pytest.raises(MoreCaughtUp) as refused:
        promote(actor="test")

    assert (refused.value.detail["name"], refused.value.detail["seq"]) == ("replica_2", 9)
    assert untouched()


def test_a_quarantined_copy_with_more_is_no_reason_against_it(members: Members) -> None:
    become_replica(placement_document("replica_2", "replica_3"), entries=2)
    members.alive("replica_2", seq=9, quarantined=True)
    members.refuses("replica_2", "no_vote")
    members.alive("replica_3", seq=1)

    assert promote(actor="test").warning == ""


def test_it_is_refused_where_too_few_members_can_be_reached(members: Members) -> None:
    become_replica(placement_document("replica_2"))

    with pytest.raises(NotElected) as refused:
        promote(actor="test")

    assert (refused.value.detail["votes"], refused.value.detail["needed"]) == (1, 2)
    assert untouched()


def test_a_copy_that_is_no_member_yet_is_refused(members: Members) -> None:
    become_replica(with_own(placement_document(), membership=Membership.JOINING))

    with pytest.raises(NotElected):
        promote(actor="test")

    assert untouched()


@pytest.mark.parametrize("force", [False, True])
def test_a_quarantined_copy_is_never_promoted(members: Members, force: bool) -> None:
    become_replica(with_own(placement_document(), state=CopyState.QUARANTINED))

    with pytest.raises(Unfit):
        promote(force=force, actor="test")

    assert untouched()


@pytest.mark.parametrize("force", [False, True])
def test_a_copy_in_the_middle_of_a_full_sync_is_never_promoted(members: Members, force: bool) -> None:
    become_replica(placement_document())
    staging.staged_files(SHARD).mkdir(parents=True)

    with pytest.raises(Unfit):
        promote(force=force, actor="test")

    assert untouched()


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_copy_of_a_shard_with_data_is_never_promoted(members: Members, force: bool) -> None:
    become_replica(placement_document())
    Placement.objects.update(primary_seq=12)

    with pytest.raises(Unfit):
        promote(force=force, actor="test")

    assert untouched()


@pytest.mark.parametrize("force", [False, True])
def test_a_damaged_copy_is_never_promoted(members: Members, force: bool) -> None:
    become_replica(placement_document())
    ShardHead.objects.update(damage={"log": "entry 3"})

    with pytest.raises(Unfit):
        promote(force=force, actor="test")

    assert untouched()


def test_a_node_that_is_in_no_cluster_is_not_a_replica(members: Members) -> None:
    with pytest.raises(NotAReplica):
        promote(actor="test")


# -- votes that go wrong -----------------------------------------------------------------------------------------


def test_a_term_that_a_member_has_promised_to_another_is_left_behind(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=2)
    members.alive("replica_2", seq=1)

    def contested(asked: dict[str, Any]) -> Any:
        if asked["term"] <= 6:
            members_error = Members()
            members_error.refuses("replica_2", "stale_term", promised_term=6)
            return members_error.votes[url_of("replica_2")]
        return {"node": node_of("replica_2"), "term": 1, "seq": 1}

    members.votes[url_of("replica_2")] = contested

    assert promote(actor="test").term == 7


def test_a_member_with_more_that_shows_up_with_its_vote_wins_instead(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=2)
    members.alive("replica_2", seq=1)
    members.votes[url_of("replica_2")] = {"node": node_of("replica_2"), "term": 1, "seq": 3}

    with pytest.raises(MoreCaughtUp):
        promote(actor="test")

    assert is_replica()


def test_a_silent_member_is_not_waited_for_where_the_other_votes_are_enough(members: Members, settings) -> None:
    settings.MLVDB_PROBE_TIMEOUT_S = 0.1
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")
    answered = threading.Event()

    def silent(_ballot: dict[str, Any]) -> PeerSilent:
        answered.wait(10)
        return PeerSilent("gave no complete answer", url=url_of(PRIMARY))

    members.votes[url_of(PRIMARY)] = silent
    began = time.monotonic()
    try:
        promote(actor="test")
    finally:
        answered.set()

    assert time.monotonic() - began < 5
    assert own_head().takes_writes


def test_a_late_vote_is_waited_for_where_it_is_needed(members: Members, settings) -> None:
    settings.MLVDB_PROBE_TIMEOUT_S = 0.05
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")

    def late(_ballot: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return {"node": node_of("replica_2"), "term": 1, "seq": 0}

    members.votes[url_of("replica_2")] = late

    promote(actor="test")

    assert own_head().takes_writes


def test_a_primary_that_comes_back_before_the_vote_stays_the_primary(members: Members) -> None:
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")
    members.refuses(PRIMARY, "primary_alive")

    with pytest.raises(PrimaryAlive):
        promote(actor="test")

    assert is_replica()


def test_an_answer_of_another_node_is_no_vote(members: Members) -> None:
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")
    members.votes[url_of("replica_2")] = {"node": "f" * 32, "term": 1, "seq": 0}

    with pytest.raises(NotElected):
        promote(actor="test")


def test_a_newer_placement_is_taken_first_and_the_election_held_under_it(members: Members) -> None:
    told = placement_document("replica_2")
    become_replica(told, entries=3)
    newer = replace(
        placement_document("replica_2", "replica_3", epoch=8),
        name="replica_2",
        node=node_of("replica_2"),
    )
    for name in ("replica_2", "replica_3"):
        members.alive(name, epoch=8)
    members.placements[url_of("replica_2")] = newer.to_document()

    promoted = promote(actor="test")

    assert promoted.epoch == 9
    assert {asked["epoch"] for asked in members.ballots} == {8}
    assert set(Replica.objects.values_list("name", flat=True)) >= {"replica_2", "replica_3"}


def test_a_node_that_the_newer_placement_does_not_name_learns_that_it_was_removed(members: Members) -> None:
    become_replica(placement_document("replica_2"))
    newer = placement_document("replica_2", epoch=8)
    newer = replace(
        newer,
        name="replica_2",
        node=node_of("replica_2"),
        copies=tuple(copy for copy in newer.copies if copy.name != NAME),
    )
    members.alive("replica_2", epoch=8)
    members.placements[url_of("replica_2")] = newer.to_document()

    with pytest.raises(Detached):
        promote(actor="test")

    assert Placement.objects.get().role == "detached"


def test_a_newer_term_that_is_heard_between_vote_and_change_of_sides_prevents_it(members: Members, monkeypatch) -> None:
    become_replica(placement_document("replica_2"))
    members.alive("replica_2")

    def vote_and_be_overtaken(asked: dict[str, Any]) -> dict[str, Any]:
        promise(asked["term"] + 5, node_of("replica_2"))
        return {"node": node_of("replica_2"), "term": 1, "seq": 0}

    members.votes[url_of("replica_2")] = vote_and_be_overtaken

    with pytest.raises(StaleTerm):
        promote(actor="test")

    assert is_replica()
    assert not ClusterEvent.objects.filter(action="promoted").exists()


def test_a_crash_in_the_change_of_sides_leaves_a_replica_that_can_be_promoted_again(
    members: Members, monkeypatch
) -> None:
    become_replica(placement_document(), entries=2)
    with monkeypatch.context() as broken:
        broken.setattr(accession, "topology_changed", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(actor="test")
    assert is_replica()
    assert not Replica.objects.exists()

    assert promote(actor="test").term == 3


# -- force -------------------------------------------------------------------------------------------------------


def test_force_goes_on_without_enough_votes_in_a_drawn_term_and_says_what_may_be_lost(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=2)

    promoted = promote(force=True, actor="test")

    assert promoted.term > 100
    assert "seq 2" in promoted.warning
    event = ClusterEvent.objects.get(action="promoted")
    assert event.alarm
    assert event.after["may_be_lost"] == promoted.warning
    assert event.after["no_vote"].keys() == {PRIMARY, "replica_2"}


def test_force_takes_the_part_of_a_living_primary_and_names_the_copy_with_more(members: Members) -> None:
    become_replica(placement_document(), entries=2)
    members.alive(PRIMARY, role="primary", seq=9)

    promoted = promote(force=True, actor="test")

    assert f"{PRIMARY} has entries up to term 1, seq 9" in promoted.warning
    assert all(asked["force"] for asked in members.ballots)


def test_force_asks_a_living_primary_to_hand_over_and_then_loses_nothing(members: Members, monkeypatch) -> None:
    become_replica(placement_document(), entries=2)
    members.alive(PRIMARY, role="primary", seq=9)

    def hand_over() -> dict[str, Any]:
        receive_entries(own_head().shard_id, 7)
        members.alive(PRIMARY, role="primary", seq=9, promised_term=2)
        return take_over(**order(Position(1, 9)))

    monkeypatch.setattr(members, "hand_over", hand_over)

    promoted = promote(force=True, actor="test")

    assert (promoted.term, promoted.seq, promoted.warning, promoted.changed) == (2, 10, "", True)
    assert members.asked_to_hand_over == [url_of(PRIMARY)]


def test_without_force_a_living_primary_is_not_asked_to_hand_over(members: Members) -> None:
    become_replica(placement_document(), entries=2)
    members.alive(PRIMARY, role="primary", seq=2)

    with pytest.raises(PrimaryAlive):
        promote(actor="test")

    assert not members.asked_to_hand_over


def test_force_with_all_the_votes_there_are_to_have_loses_nothing_and_says_nothing(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=2)
    members.alive("replica_2", seq=1)

    promoted = promote(force=True, actor="test")

    assert (promoted.term, promoted.warning) == (2, "")


def test_a_detached_copy_needs_force_and_becomes_a_cluster_of_its_own(members: Members) -> None:
    become_replica(placement_document(), entries=2)
    placement_take(replace(placement_document(epoch=4), role="detached").to_document())

    with pytest.raises(Detached):
        promote(actor="test")
    promoted = promote(force=True, actor="test")

    assert Topology.objects.get().cluster != CLUSTER
    assert topology().is_owner
    assert own_head().takes_writes
    assert promoted.term > 100
    assert not Replica.objects.exists()
    assert not members.ballots


def test_the_command_promotes_and_reports(members: Members, capsys) -> None:
    become_replica(placement_document("replica_2"), entries=2)

    with pytest.raises(CommandError, match="votes"):
        call_command("promote")
    call_command("promote", "--force")

    printed = capsys.readouterr()
    assert "This node is the primary of shard_0" in printed.out
    assert "Warning" in printed.err


# -- a member votes ----------------------------------------------------------------------------------------------


def test_a_vote_is_durable_and_answers_the_position(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=3)

    answer = vote_give(ballot())

    assert (answer["term"], answer["seq"], answer["promised_term"]) == (1, 3, 2)
    assert own_head().voted_for == node_of("replica_2")
    assert vote_give(ballot()) == answer


def test_a_term_has_one_vote(members: Members) -> None:
    become_replica(placement_document("replica_2"))
    vote_give(ballot())

    with pytest.raises(StaleTerm):
        vote_give(ballot(candidate=node_of("replica_3")))


def test_a_candidate_with_an_older_placement_is_given_the_newer_one(members: Members) -> None:
    become_replica(placement_document("replica_2", epoch=9))

    with pytest.raises(StaleEpoch) as refused:
        vote_give(ballot())

    assert refused.value.detail["epoch"] == 9
    assert refused.value.detail["placement"] == placement_tell(SHARD)
    assert own_head().promised_term == 1


@pytest.mark.parametrize("changes", [{"cluster": "d" * 32}, {"shard": "e" * 32}])
def test_a_stranger_gets_no_vote(members: Members, changes: dict[str, str]) -> None:
    become_replica(placement_document("replica_2"))

    with pytest.raises(NoVote):
        vote_give(ballot(**changes))


def test_a_quarantined_copy_gives_no_vote(members: Members) -> None:
    become_replica(with_own(placement_document("replica_2"), state=CopyState.QUARANTINED))

    with pytest.raises(NoVote):
        vote_give(ballot())


def test_a_detached_copy_gives_no_vote(members: Members) -> None:
    become_replica(placement_document())
    placement_take(replace(placement_document(epoch=4), role="detached").to_document())

    with pytest.raises(NoVote):
        vote_give(ballot(epoch=4))


def test_a_primary_that_takes_writes_gives_its_vote_only_by_force(owner: Registry) -> None:
    asked = Ballot(topology().cluster, owner.head.uid, epoch=owner.epoch, term=2, candidate=node_of("replica_2"))

    with pytest.raises(PrimaryAlive):
        vote_give(asked)
    vote_give(replace(asked, force=True))

    after = log.read_head(owner.head.pk)
    assert after is not None
    assert not after.takes_writes


# -- the primary of before ---------------------------------------------------------------------------------------


def successor_of(owner: Registry, *, epoch: int, term: int = 2) -> Any:
    """The placement with which a replica that was promoted tells this node, the primary of before."""
    other = NodeAddress("b" * 32, "http://other.test:8000")
    told = placement_document(epoch=epoch, term=term)
    return replace(
        told,
        cluster=topology().cluster,
        shard=owner.head.uid,
        label=owner.head.label,
        owner=other,
        primary=other,
        copies=tuple(
            replace(copy, node=other.node, url=other.url) if copy.name == PRIMARY else copy for copy in told.copies
        ),
    )


def test_a_primary_that_learns_of_its_successor_becomes_its_replica(owner: Registry) -> None:
    owner.replica("a")
    Move.objects.create(kind=Move.Kind.FULL_SYNC, replica_name="a", shard=owner.head.uid)

    placement_take(successor_of(owner, epoch=owner.epoch + 1).to_document())

    head = log.read_head(owner.head.pk)
    assert head is not None
    assert (head.is_primary, head.promised_term) == (False, 2)
    assert not topology().is_owner
    assert topology().shards[owner.head.uid].primary_url == "http://other.test:8000"
    assert not Replica.objects.exists()
    assert not PlacementPush.objects.exists()
    assert Move.objects.get().phase == "cancelled"
    assert ClusterEvent.objects.get(action="demoted").before["replicas"] == {"a": "http://127.0.0.1:1"}


def test_of_two_placements_of_a_successor_at_once_the_newer_one_is_acknowledged_only_when_it_is_stored(
    owner: Registry, monkeypatch
) -> None:
    owner.replica("a")
    first, second = (successor_of(owner, epoch=owner.epoch + more) for more in (1, 2))
    demote = accession.demote

    def demote_after_the_other(placement: Any) -> bool:
        monkeypatch.setattr(accession, "demote", demote)
        placement_take(first.to_document())
        return demote(placement)

    monkeypatch.setattr(accession, "demote", demote_after_the_other)

    placement_take(second.to_document())

    assert Placement.objects.get().epoch == second.epoch


def test_a_successor_that_this_registry_outran_stops_the_writes_and_has_to_say_it_again(owner: Registry) -> None:
    owner.replica("a")

    with pytest.raises(StaleEpoch) as refused:
        placement_take(successor_of(owner, epoch=owner.epoch).to_document())

    assert refused.value.detail["epoch"] == owner.epoch
    head = log.read_head(owner.head.pk)
    assert head is not None
    assert not head.takes_writes
    assert topology().is_owner


def test_a_primary_of_a_later_term_is_not_demoted_by_an_older_one(owner: Registry) -> None:
    owner.replica("a")
    accession.terms.term_start(owner.head.pk, 9)

    with pytest.raises(StaleTerm):
        placement_take(successor_of(owner, epoch=owner.epoch + 1, term=2).to_document())

    assert topology().is_owner


@pytest.fixture
def fenced(owner: Registry, members: Members) -> Registry:
    """A primary that has heard of a newer term; its one replica refuses connections."""
    owner.replica("a")
    accession.terms.term_heard(owner.head.pk, 4)
    return owner


def test_a_fenced_primary_is_seen_after_some_seconds(fenced: Registry, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(promotion.time, "monotonic", lambda: clock[0])

    assert promotion.fenced_shards() == []
    clock[0] += promotion._FENCED_S
    assert promotion.fenced_shards() == [fenced.head.uid]


def test_a_fenced_primary_of_two_is_elected_again_by_itself_in_a_drawn_term(fenced: Registry) -> None:
    before = fenced.epoch

    promotion.stand_if_fenced(fenced.head.uid)

    head = log.read_head(fenced.head.pk)
    assert head is not None
    assert head.takes_writes
    assert head.term > 4 + 1
    assert fenced.epoch == before + 1
    assert promotion.fenced_shards() == []


def test_a_fenced_primary_of_three_needs_another_vote(fenced: Registry, members: Members) -> None:
    b = fenced.replica("b")

    with pytest.raises(NotElected):
        stand_again(fenced.head.uid, actor="test")
    answering = ShardStatus("replica", 1, 0, 1, damage=False, quarantined=False)
    members.answers(b.url, b.node, epoch=fenced.epoch, cluster=topology().cluster, **{fenced.head.uid: answering})
    members.votes[b.url] = {"node": b.node, "term": 1, "seq": 0}

    again = stand_again(fenced.head.uid, actor="test")
    # The first attempt was given up before it asked for a term.
    assert again.term == 5


def test_a_fenced_primary_can_be_forced_back_by_a_person(fenced: Registry) -> None:
    fenced.replica("b")

    promoted = promote(force=True, actor="test")

    assert promoted.warning
    assert topology().is_owner


def test_a_fenced_primary_that_finds_its_successor_obeys(fenced: Registry, members: Members) -> None:
    replica = Replica.objects.get()
    told = successor_of(fenced, epoch=fenced.epoch + 1, term=4)
    members.votes[replica.url] = {}
    refusing = Members()
    refusing.refuses("replica_2", "stale_epoch", epoch=told.epoch, placement=told.to_document())
    members.votes[replica.url] = refusing.votes[url_of("replica_2")]

    with pytest.raises(NewerPlacement):
        stand_again(fenced.head.uid, actor="test")

    assert not topology().is_owner
    assert Placement.objects.get().epoch == told.epoch


def test_a_fenced_primary_with_a_restored_registry_outruns_what_it_has_told_before(
    fenced: Registry, members: Members
) -> None:
    """A replica knows a newer placement, of this very node: it must not obey itself."""
    replica = Replica.objects.get()
    told = replace(
        accession.registry_document(fenced.head.uid), epoch=fenced.epoch + 7, name=replica.name, node=replica.node
    )
    refusing = Members()
    refusing.refuses("replica_2", "stale_epoch", epoch=told.epoch, placement=told.to_document())

    def vote(ballot: dict[str, Any]) -> Any:
        if ballot["epoch"] < told.epoch:
            return refusing.votes[url_of("replica_2")]
        return {"node": replica.node, "term": 1, "seq": 0}

    members.votes[replica.url] = vote

    stand_again(fenced.head.uid, actor="test")

    assert topology().is_owner
    assert not Placement.objects.exists()
    assert fenced.epoch > told.epoch


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_fenced_primary_whose_successor_answers_asks_for_no_term(
    fenced: Registry, members: Members, epoch: int
) -> None:
    replica = Replica.objects.get()
    told = successor_of(fenced, epoch=fenced.epoch + epoch, term=4)
    successor = ShardStatus("primary", 4, 1, 4, damage=False, quarantined=False)
    members.answers(replica.url, replica.node, epoch=told.epoch, cluster=told.cluster, **{fenced.head.uid: successor})
    members.placements[replica.url] = told.to_document()

    with pytest.raises(NewerPlacement if epoch else PrimaryAlive):
        stand_again(fenced.head.uid, actor="test")

    after = log.read_head(fenced.head.pk)
    assert after is not None
    assert after.promised_term == 4
    assert topology().is_owner == (not epoch)


def test_a_fenced_primary_refuses_writes_and_a_reelected_one_takes_them(fenced: Registry) -> None:
    def write() -> None:
        with log.append_transaction(fenced.head.pk) as open_log:
            open_log.check_writable()

    with pytest.raises(NotPrimary):
        write()
    stand_again(fenced.head.uid, actor="test")
    write()


# -- taking over -------------------------------------------------------------------------------------------------


def order(at: Position, *, term: int = 2, **changes: Any) -> dict[str, Any]:
    return {
        "orders": [TakeOver(SHARD, term, at)],
        "cluster": CLUSTER,
        "epoch": 3,
        "sender": PRIMARY_NODE,
        "force": False,
        "actor": "user ada",
        **changes,
    }


def test_a_replica_takes_over_in_the_term_that_the_primary_has_promised(members: Members) -> None:
    become_replica(placement_document("replica_2"), entries=3)
    members.alive(PRIMARY, seq=3)

    taken = take_over(**order(Position(1, 3)))

    assert taken == {"term": 2, "seq": 4, "epoch": 4}
    assert take_over(**order(Position(1, 3))) == taken
    assert "user ada" in ClusterEvent.objects.get(action="took_over").actor


@pytest.mark.parametrize(
    "changes",
    [{"at": Position(1, 4)}, {"epoch": 2}, {"epoch": 4}, {"cluster": "d" * 32}, {"sender": "d" * 32}],
)
def test_an_order_that_does_not_fit_changes_nothing(members: Members, changes: dict[str, Any]) -> None:
    become_replica(placement_document("replica_2"), entries=3)
    members.alive(PRIMARY, seq=3)

    with pytest.raises(Conflict):
        take_over(**order(Position(1, 3), **changes) if "at" not in changes else order(**changes))

    assert untouched()


def test_no_vote_is_counted_twice_when_the_rules_are_asked(members: Members) -> None:
    told = placement_document("replica_2")

    counted = vote_rules.count(told, {NAME: Position(1, 3), "stranger": Position(1, 3)}, is_drawn=False, force=False)

    assert counted.votes == 1
