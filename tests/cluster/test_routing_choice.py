"""Which copy answers a read, and who may stand in for it."""

from __future__ import annotations

import pytest

from cluster.routing.choice import Copy, plan_read, plan_read_among
from cluster.states import CopyState, Membership

PRIMARY_HERE = Copy("primary", is_here=True, is_primary=True)
PRIMARY = Copy("primary", "http://p", is_primary=True)
R1 = Copy("r1", "http://r1")
R2 = Copy("r2", "http://r2")
R1_HERE = Copy("r1", is_here=True)


def names(copies: tuple[Copy, ...]) -> list[str]:
    return [copy.name for copy in copies]


@pytest.mark.parametrize("preference", [None, "nearest"])
@pytest.mark.parametrize("state", list(CopyState))
def test_without_a_preference_the_copy_that_is_asked_answers_whatever_its_state(preference, state):
    here = Copy("r1", is_here=True, state=state)

    assert plan_read([PRIMARY, here, R2], preference).is_here


@pytest.mark.parametrize("preference", [None, "nearest", "primary"])
def test_a_node_without_a_copy_asks_the_primary(preference):
    assert names(plan_read([PRIMARY, R1], preference).copies) == ["primary"]


def test_the_primary_is_asked_first_and_replicas_stand_in_for_it_the_one_here_before_others():
    plan = plan_read([PRIMARY, R2, R1_HERE], "primary")

    assert names(plan.copies) == ["primary"]
    assert names(plan.stand_ins) == ["r1", "r2"]


def test_replicas_take_turns_and_the_primary_comes_last():
    copies = [PRIMARY_HERE, R1, R2]

    assert names(plan_read(copies, "replica", turn=0).copies) == ["r1", "r2", "primary"]
    assert names(plan_read(copies, "replica", turn=1).copies) == ["r2", "r1", "primary"]
    assert names(plan_read(copies, "replica", turn=2).copies) == ["r1", "r2", "primary"]


@pytest.mark.parametrize(
    "unfit",
    [
        Copy("r1", "http://r1", state=CopyState.SYNCING),
        Copy("r1", "http://r1", state=CopyState.NEW),
        Copy("r1", "http://r1", state=CopyState.QUARANTINED),
        Copy("r1", "http://r1", is_routable=False),
    ],
)
def test_a_read_for_replicas_goes_to_the_primary_where_no_replica_can_be_read(unfit):
    plan = plan_read([PRIMARY_HERE, unfit], "replica")

    assert names(plan.copies) == ["primary"]
    assert plan.is_here


def test_a_replica_that_is_asked_for_a_replica_answers_itself():
    assert plan_read([PRIMARY, R2, R1_HERE], "replica", turn=1).is_here


def test_among_the_copies_that_have_a_state_those_of_the_preference_come_first():
    copies = [PRIMARY, R1, R2]
    everyone = frozenset({"primary", "r1", "r2"})

    assert names(plan_read_among(copies, "replica", everyone, turn=1).copies) == ["r2", "r1", "primary"]
    assert names(plan_read_among(copies, None, everyone).copies) == ["primary", "r1", "r2"]
    assert names(plan_read_among(copies, "replica", frozenset({"primary"})).copies) == ["primary"]


def test_among_the_copies_that_have_a_state_the_one_here_comes_before_the_primary():
    plan = plan_read_among([PRIMARY, R2, R1_HERE], None, frozenset({"primary", "r1", "r2"}))

    assert names(plan.copies) == ["r1", "primary", "r2"]


@pytest.mark.parametrize(
    ("copy", "counts"),
    [
        (Copy("r", "u"), True),
        (Copy("r", "u", state=CopyState.SYNCING), True),
        (Copy("r", "u", state=CopyState.QUARANTINED), False),
        (Copy("r", "u", state=CopyState.REFUSED), False),
        (Copy("r", "u", membership=Membership.NONE), False),
        (Copy("r", "u", membership=Membership.LEAVING), True),
        (Copy("primary", "u", is_primary=True), True),
    ],
)
def test_only_members_whose_log_is_a_prefix_count_in_a_level(copy, counts):
    assert copy.counts is counts
