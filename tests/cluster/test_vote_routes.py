"""The routes of elections, as another node sees them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.services.voting import placement_tell
from tests.cluster.members import (
    CLUSTER,
    PRIMARY_NODE,
    SHARD,
    Members,
    become_replica,
    node_of,
    own_head,
    placement_document,
)

CANDIDATE = "2" * 32
VOTE = f"/cluster/node/shards/{SHARD}/vote"
TAKE_OVER = f"/cluster/node/shards/{SHARD}/take-over"
ASKED = {"cluster": CLUSTER, "epoch": 3, "term": 2, "candidate": CANDIDATE}
ORDER = {"cluster": CLUSTER, "epoch": 3, "term": 2, "at": [1, 4]}


def post(client: Any, path: str, body: object, *, node: str = CANDIDATE) -> Any:
    return client.post(path, body, content_type="application/json", headers={"X-MLVDB-Node": node})


def test_a_vote_is_given_over_http(members: Members, node_client) -> None:
    become_replica(placement_document("replica_2"), entries=4)
    assert node_of("replica_2") == CANDIDATE

    answer = post(node_client, VOTE, ASKED)

    assert answer.status_code == 200, answer.content
    assert (answer.json()["term"], answer.json()["seq"]) == (1, 4)
    assert own_head().voted_for == CANDIDATE


def test_a_refused_vote_is_a_conflict_that_says_what_the_candidate_needs(members: Members, node_client) -> None:
    become_replica(placement_document("replica_2", epoch=7))

    stale = post(node_client, VOTE, ASKED).json()["error"]
    given = post(node_client, VOTE, {**ASKED, "epoch": 7, "term": 9})
    over = post(node_client, VOTE, {**ASKED, "epoch": 7})

    assert (stale["code"], stale["detail"]["placement"]["epoch"]) == ("stale_epoch", 7)
    assert given.status_code == 200
    assert (over.status_code, over.json()["error"]["code"]) == (409, "stale_term")
    assert over.json()["error"]["detail"]["promised_term"] == 9


def test_nobody_can_ask_for_another_s_votes(members: Members, node_client) -> None:
    become_replica(placement_document("replica_2"))

    answer = post(node_client, VOTE, ASKED, node="3" * 32)

    assert answer.status_code == 400
    assert own_head().promised_term == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"term": "2"},
        {"term": -1},
        {"term": True},
        {"epoch": None},
        {"cluster": ""},
        {"cluster": 3},
        {"candidate": "x" * 33},
    ],
)
def test_a_garbled_ballot_is_refused_by_its_field(members: Members, node_client, changes: dict[str, Any]) -> None:
    become_replica(placement_document("replica_2"))

    answer = post(node_client, VOTE, {**ASKED, **changes})

    assert answer.status_code == 400
    assert answer.json()["error"]["field"] in changes


def test_the_placement_is_told(members: Members, node_client) -> None:
    become_replica(placement_document("replica_2"))

    answer = node_client.get(f"/cluster/node/shards/{SHARD}/placement", headers={"X-MLVDB-Node": CANDIDATE})

    assert answer.json() == placement_tell(SHARD)


def test_a_placement_that_nobody_knows_is_not_found(members: Members, node_client) -> None:
    answer = node_client.get(f"/cluster/node/shards/{SHARD}/placement", headers={"X-MLVDB-Node": CANDIDATE})

    assert answer.status_code == 404


def test_only_the_primary_can_order_to_take_over(members: Members, node_client) -> None:
    become_replica(placement_document(), entries=4)
    members.alive("primary", seq=4)

    refused = post(node_client, TAKE_OVER, ORDER)
    taken = post(node_client, TAKE_OVER, ORDER, node=PRIMARY_NODE)

    assert refused.status_code == 409
    assert taken.status_code == 200, taken.content
    assert taken.json() == {"term": 2, "seq": 5, "epoch": 4}


@pytest.mark.parametrize("at", [None, [1], [1, "4"], [1, -4], {"term": 1}])
def test_an_order_without_a_position_is_refused(members: Members, node_client, at: object) -> None:
    become_replica(placement_document(), entries=4)

    answer = post(node_client, TAKE_OVER, {**ORDER, "at": at}, node=PRIMARY_NODE)

    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "at")
