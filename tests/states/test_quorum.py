"""Levels, elections and joint sets of members: what one has, the other must see."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cluster.replication import quorum
from cluster.states import Membership

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def memberships(draw: st.DrawFn) -> dict[str, Membership]:
    """Some members, and at most one that joins or leaves; the primary is always a member."""
    names = draw(st.sets(st.sampled_from(NAMES)))
    members = {quorum.PRIMARY: Membership.MEMBER} | dict.fromkeys(sorted(names), Membership.MEMBER)
    changing = draw(st.sampled_from(NAMES))
    change = draw(st.sampled_from([Membership.MEMBER, Membership.JOINING, Membership.LEAVING, Membership.NONE]))
    if changing in members:
        members[changing] = change
    return members


def subsets(members: dict[str, Membership]) -> list[frozenset[str]]:
    return [frozenset(some) for size in range(len(members) + 1) for some in combinations(members, size)]


@given(memberships())
def test_every_election_has_a_copy_with_every_quorum_write(members: dict[str, Membership]) -> None:
    writes = [some for some in subsets(members) if quorum.is_reached("quorum", some, members)]
    elections = [some for some in subsets(members) if quorum.is_elected(some, members)]
    assert elections
    assert all(write & election for write in writes for election in elections)


@given(memberships())
def test_an_election_by_those_who_do_not_know_of_a_change_sees_the_writes_made_during_it(
    members: dict[str, Membership],
) -> None:
    during = [some for some in subsets(members) if quorum.is_reached("quorum", some, members)]
    for known in quorum.member_sets(members):
        alone = dict.fromkeys(known, Membership.MEMBER)
        elections = [some for some in subsets(alone) if quorum.is_elected(some, alone)]
        assert all(write & election for write in during for election in elections)


def test_a_quorum_and_an_election_are_one_more_than_all_members() -> None:
    for count in range(1, 8):
        assert quorum.quorum_of(count) + quorum.votes_of(count) == count + 1


def test_one_copy_alone_has_every_level() -> None:
    members = {quorum.PRIMARY: Membership.MEMBER}
    assert all(quorum.is_reached(level, {quorum.PRIMARY}, members) for level in ("one", "quorum", "all"))
    assert quorum.required("all", members) == 1
    assert quorum.votes_needed(members) == 1


def test_a_copy_that_is_no_member_counts_for_nothing() -> None:
    members = {quorum.PRIMARY: Membership.MEMBER, "a": Membership.MEMBER, "b": Membership.NONE}
    assert not quorum.is_reached("quorum", {quorum.PRIMARY, "b"}, members)
    assert quorum.is_reached("all", {quorum.PRIMARY, "a"}, members)


def test_a_level_is_out_of_reach_once_too_many_copies_will_not_answer() -> None:
    members = {quorum.PRIMARY: Membership.MEMBER, "a": Membership.MEMBER, "b": Membership.MEMBER}
    assert quorum.is_reachable("quorum", ["a"], members)
    assert not quorum.is_reachable("quorum", ["a", "b"], members)
    assert not quorum.is_reachable("all", ["a"], members)


def test_while_a_copy_joins_both_sets_must_have_a_quorum() -> None:
    members = {quorum.PRIMARY: Membership.MEMBER, "a": Membership.JOINING}
    assert not quorum.is_reached("quorum", {quorum.PRIMARY}, members)
    assert quorum.required("quorum", members) == 2
