"""Who counts: joining when the head is reached, leaving, and the two conditions under which a change ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.models import ClusterEvent, Move, PlacementPush, Replica, ReplicaCopy
from cluster.replication.moves import move_begin
from cluster.services.copies import copy_state_set
from cluster.services.membership import membership_advance, membership_settle
from cluster.services.placements import placements_push, placements_push_pending
from cluster.services.registry import ReplicaNotFound, replica_add
from cluster.services.removal import MembersBehind, MembershipChanging, NotConfirmed, replica_remove
from cluster.states import CopyState, Membership
from cluster.topology import topology
from tests.cluster.standin_node import StandInNode
from vectors.models import ShardHead

Nodes = Callable[..., StandInNode]


@pytest.fixture(autouse=True)
def _short_waits(settings) -> None:
    settings.MLVDB_PEER_TIMEOUT_S = 1.5


def add(node: StandInNode, name: str) -> ReplicaCopy:
    """Register a replica whose copy follows."""
    replica_add(name=name, url=node.url, actor="user ann")
    copy = copy_of(name)
    assert copy_state_set(copy, CopyState.FOLLOWING)
    return copy


def join(node: StandInNode, name: str) -> ReplicaCopy:
    """Register a replica and make it a member."""
    copy = add(node, name)
    membership_advance(at_head(copy))
    assert copy_of(name).membership == Membership.MEMBER
    return copy


def at_head(copy: ReplicaCopy, *, seq: int | None = None) -> ReplicaCopy:
    """Say that a copy has the log up to the head, or to `seq`."""
    head = ShardHead.objects.get(uid=copy.shard)
    ReplicaCopy.objects.filter(pk=copy.pk).update(term=head.term, seq=head.last_seq if seq is None else seq)
    copy.refresh_from_db()
    return copy


def copy_of(name: str) -> ReplicaCopy:
    return ReplicaCopy.objects.get(replica__name=name)


def write(primary: ShardHead, count: int) -> None:
    """Let the primary's log grow."""
    ShardHead.objects.filter(pk=primary.pk).update(last_seq=primary.last_seq + count)
    primary.refresh_from_db()


def test_the_first_copy_that_reaches_the_head_is_a_member_at_once(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()

    join(node, "a")

    assert node.placements[-1]["copies"][1]["membership"] == "member"
    assert topology().shards[primary.uid].copies[0].membership is Membership.MEMBER


def test_a_copy_that_does_not_follow_does_not_join(primary: ShardHead, nodes: Nodes) -> None:
    replica_add(name="a", url=nodes().url, actor="user ann")

    membership_advance(at_head(copy_of("a")))

    assert copy_of("a").membership == Membership.NONE


def test_a_member_joins_only_when_a_quorum_of_those_before_knows_of_it(
    primary: ShardHead, nodes: Nodes, wait_for: Callable[..., None]
) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    first.silent = True
    copy = add(second, "b")

    membership_advance(at_head(copy))
    assert copy_of("b").membership == Membership.JOINING
    first.silent = False

    wait_for(lambda: placements_push_pending() or copy_of("b").membership == Membership.MEMBER)


def test_a_member_joins_only_when_a_quorum_of_those_after_holds_what_was_written_before(
    primary: ShardHead, nodes: Nodes
) -> None:
    copy = add(nodes(), "a")
    at_head(copy)
    # Acknowledged by the primary alone, which was all of the members then.
    write(primary, 3)

    membership_advance(copy)
    assert copy_of("a").membership == Membership.JOINING
    assert not membership_settle(primary.uid)
    at_head(copy)

    assert membership_settle(primary.uid)
    assert copy_of("a").membership == Membership.MEMBER


@pytest.mark.parametrize("number", ["x", 2**63, -1])
def test_a_node_that_answers_nonsense_of_itself_has_taken_its_placement_all_the_same(
    primary: ShardHead, nodes: Nodes, number: object
) -> None:
    node = nodes()
    node.status["shards"] = [{"uid": primary.uid, "role": "replica", "term": number, "seq": number}]

    add(node, "a")

    assert PlacementPush.objects.get().acknowledged_epoch == node.epochs[-1]
    assert (copy_of("a").term, copy_of("a").seq) == (0, 0)


def test_one_copy_joins_at_a_time(primary: ShardHead, nodes: Nodes) -> None:
    first, second = add(nodes(), "a"), add(nodes(), "b")
    at_head(first)
    at_head(second)
    write(primary, 1)
    membership_advance(first)

    membership_advance(second)
    assert copy_of("b").membership == Membership.NONE
    membership_advance(at_head(first))
    membership_advance(at_head(second))

    assert {copy.membership for copy in ReplicaCopy.objects.all()} == {Membership.MEMBER}


def test_a_position_of_an_older_term_holds_nothing(primary: ShardHead, nodes: Nodes) -> None:
    copy = at_head(add(nodes(), "a"))
    ShardHead.objects.filter(pk=primary.pk).update(term=2, last_seq=1)

    membership_advance(copy)

    assert copy_of("a").membership == Membership.NONE


def test_a_copy_that_does_not_count_is_removed_at_once_and_its_node_told(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node, "a")
    move = move_begin(kind=Move.Kind.FULL_SYNC, replica=Replica.objects.get(), shard=primary.uid, plan={})

    replica_remove(name="a", actor="user ann")

    assert not Replica.objects.exists()
    assert not PlacementPush.objects.exists()
    assert node.placements[-1]["role"] == "detached"
    assert [copy["name"] for copy in node.placements[-1]["copies"]] == ["primary"]
    move.refresh_from_db()
    assert (move.phase, move.replica, move.replica_name) == ("cancelled", None, "a")
    event = ClusterEvent.objects.get(action="replica_removed")
    assert (event.actor, event.alarm, event.before["url"]) == ("user ann", False, node.url)


def test_what_is_not_there_cannot_be_removed(primary: ShardHead) -> None:
    with pytest.raises(ReplicaNotFound):
        replica_remove(name="a", actor="user ann")


def test_a_node_that_was_down_when_it_was_removed_is_told_later(
    primary: ShardHead, nodes: Nodes, wait_for: Callable[..., None]
) -> None:
    node = nodes()
    add(node, "a")
    node.silent = True

    replica_remove(name="a", actor="user ann")
    assert not Replica.objects.exists()
    assert PlacementPush.objects.get().document["role"] == "detached"
    node.silent = False

    wait_for(lambda: placements_push_pending() or not PlacementPush.objects.exists())
    assert node.placements[-1]["role"] == "detached"


def test_a_node_that_is_of_another_cluster_by_now_is_not_told_again(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    add(node, "a")
    node.refusal = (409, "wrong_cluster", {})

    replica_remove(name="a", actor="user ann")

    assert not PlacementPush.objects.exists()


def test_a_removed_replica_can_be_added_again(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    join(node, "a")
    replica_remove(name="a", actor="user ann")

    join(node, "a")

    assert node.placements[-1]["role"] == "replica"


def test_a_member_leaves_when_those_who_stay_hold_the_log_and_know(primary: ShardHead, nodes: Nodes) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    join(second, "b")

    replica_remove(name="b", actor="user ann")

    assert [replica.name for replica in Replica.objects.all()] == ["a"]
    assert second.placements[-1]["role"] == "detached"
    assert [copy["name"] for copy in first.placements[-1]["copies"]] == ["primary", "a"]


def test_the_last_replica_can_leave_although_it_is_down(primary: ShardHead, nodes: Nodes) -> None:
    node = nodes()
    join(node, "a")
    write(primary, 5)
    node.close()

    replica_remove(name="a", actor="user ann")

    assert not Replica.objects.exists()
    assert topology().is_single


def test_a_member_is_not_removed_while_those_who_stay_lack_the_log(primary: ShardHead, nodes: Nodes) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    ahead = join(second, "b")
    write(primary, 5)
    at_head(ahead)
    epoch = topology().epoch

    with pytest.raises(MembersBehind) as caught:
        replica_remove(name="b", actor="user ann")

    assert caught.value.detail["members"] == {"a": 0, "b": 5}
    assert copy_of("b").membership == Membership.MEMBER
    assert topology().epoch == epoch


def test_a_forced_removal_says_what_it_risks(primary: ShardHead, nodes: Nodes) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    join(second, "b")
    write(primary, 5)

    replica_remove(name="b", force=True, actor="user ann")

    assert [replica.name for replica in Replica.objects.all()] == ["a"]
    event = ClusterEvent.objects.get(action="replica_removed")
    assert event.alarm
    assert "too few of the members that stay have shard_0 up to 5" in event.after["risk"]


def test_a_removal_that_nobody_confirms_is_taken_back(primary: ShardHead, nodes: Nodes) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    join(second, "b")
    first.silent = second.silent = True

    with pytest.raises(NotConfirmed, match="force=true"):
        replica_remove(name="b", actor="user ann")

    assert copy_of("b").membership == Membership.MEMBER
    assert ClusterEvent.objects.filter(action="member_stays").exists()


def test_of_four_one_that_is_gone_leaves_only_when_all_who_stay_know(primary: ShardHead, nodes: Nodes) -> None:
    """Two of four are enough votes: the one that is gone and one that does not know of it."""
    first, second, gone = nodes(), nodes(), nodes()
    for name, node in (("a", first), ("b", second), ("c", gone)):
        join(node, name)
    gone.close()
    second.silent = True

    with pytest.raises(NotConfirmed):
        replica_remove(name="c", actor="user ann")
    second.silent = False
    replica_remove(name="c", actor="user ann")

    assert [replica.name for replica in Replica.objects.all()] == ["a", "b"]


def test_a_member_that_hears_of_a_newer_term_is_not_taken_for_one_that_is_gone(
    primary: ShardHead, nodes: Nodes
) -> None:
    node = nodes()
    join(node, "a")
    node.refusal = (409, "stale_term", {"promised_term": 2, "term": 1})

    with pytest.raises(NotConfirmed):
        replica_remove(name="a", actor="user ann")

    assert copy_of("a").membership == Membership.MEMBER


def test_nobody_is_removed_while_another_joins(primary: ShardHead, nodes: Nodes) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    copy = at_head(add(second, "b"))
    second.silent = first.silent = True
    membership_advance(copy)
    assert copy_of("b").membership == Membership.JOINING

    with pytest.raises(MembershipChanging):
        replica_remove(name="a", actor="user ann")


def test_a_removal_that_was_cut_short_is_completed_by_what_comes_next(
    primary: ShardHead, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes(), nodes()
    join(first, "a")
    join(second, "b")

    def crash(shard_uid: str) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cluster.services.removal.membership_settle", crash)
        patched.setattr("cluster.services.placements.membership_settle", crash)
        with pytest.raises(KeyboardInterrupt):
            replica_remove(name="b", actor="user ann")
    assert copy_of("b").membership == Membership.LEAVING
    placements_push()

    assert [replica.name for replica in Replica.objects.all()] == ["a"]
