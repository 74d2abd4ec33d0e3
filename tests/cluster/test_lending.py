"""A replica sends another one what that lacks, for that one to take the place of their primary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from django.test import Client

from cluster.services.lending import NotLent, tail_lend
from cluster.sharding.assignment import AssignmentDocument
from cluster.transport.errors import PeerRejected
from tests.cluster.members import CLUSTER, SHARD, Members, become_replica, placement_document
from tests.cluster.scripted_peer import Connection, Request, ScriptedPeer
from vectors.engine.slots import ALL_SLOTS
from vectors.errors import NotReady
from vectors.store import slices
from vectors.store.log import Position

COORDINATOR, COORDINATORS = "a1" * 16, "b" * 32


class Receiver:
    """A copy at `seq` of term 1, which takes slices."""

    def __init__(self, seq: int = 2, **says: Any) -> None:
        self.seq = seq
        self.says = says
        self.taken: list[tuple[Position, list[int], dict[str, list[str]]]] = []
        self._peer = ScriptedPeer(self._serve)

    @property
    def url(self) -> str:
        return self._peer.url

    def close(self) -> None:
        self._peer.close()

    def _serve(self, connection: Connection) -> None:
        while (request := connection.request()) is not None:
            connection.answer(orjson.dumps(self._answer(request)), status=409 if "error" in self.says else 200)

    def _answer(self, request: Request) -> dict[str, Any]:
        if "error" in self.says:
            return {"error": {"code": self.says["error"], "message": "no", "field": None, "detail": {}}}
        target = urlsplit(request.target)
        if target.path.endswith("/slice"):
            before, entries = slices.decode_slice(request.body)
            self.taken.append((before, [entry.seq for entry in entries], parse_qs(target.query)))
            self.seq = entries[-1].seq
        position = {"term": 1, "seq": self.seq, "promised_term": 1, "terms": [[1, 1]], "manifest_seq": 0}
        return {**position, "oldest_seq": 1, "damaged": False, **self.says}


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(**given: Any) -> Receiver:
        made.append(Receiver(**given))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def test_what_the_other_lacks_is_sent_under_the_term_and_epoch_it_takes_it_by(members: Members, receivers) -> None:
    become_replica(placement_document(), entries=5)
    receiver = receivers(seq=2)

    assert tail_lend(SHARD, url=receiver.url, epoch=12) == Position(1, 5)

    [(before, seqs, fence)] = receiver.taken
    assert (before, seqs) == (Position(1, 2), [3, 4, 5])
    assert (fence["cluster"], fence["epoch"], fence["term"]) == ([CLUSTER], ["12"], ["1"])


def test_one_that_has_as_much_gets_nothing(members: Members, receivers) -> None:
    become_replica(placement_document(), entries=5)
    receiver = receivers(seq=5)

    assert tail_lend(SHARD, url=receiver.url, epoch=3) == Position(1, 5)
    assert not receiver.taken


@pytest.mark.parametrize(
    "says", [{"promised_term": 2}, {"damaged": True}, {"term": 2, "seq": 4, "terms": [[1, 1], [2, 3]]}]
)
def test_one_that_is_not_at_an_earlier_place_of_the_same_log_gets_nothing(members: Members, receivers, says) -> None:
    become_replica(placement_document(), entries=5)
    receiver = receivers(**{"seq": 2, **says})

    with pytest.raises(NotLent):
        tail_lend(SHARD, url=receiver.url, epoch=3)
    assert not receiver.taken


def test_one_that_takes_nothing_ends_it(members: Members, receivers) -> None:
    become_replica(placement_document(), entries=5)
    stays = receivers(**{"seq": 2})
    stays.says = {"seq": 2}

    with pytest.raises(NotLent, match="stays"):
        tail_lend(SHARD, url=stays.url, epoch=3)
    with pytest.raises(PeerRejected):
        tail_lend(SHARD, url=receivers(error="stale_term").url, epoch=3)


def test_a_node_without_a_replicas_copy_has_nothing_to_lend(head) -> None:
    with pytest.raises(NotReady):
        tail_lend(head.uid, url="http://copy.test:8000", epoch=3)


def test_the_order_is_the_coordinators(members: Members, node_client: Client, receivers) -> None:
    told = AssignmentDocument(COORDINATORS, 7, SHARD, "shard_r", COORDINATOR, "http://c.test", "", ALL_SLOTS)
    become_replica(placement_document(assignment=told), entries=5)
    receiver = receivers(seq=2)

    def order(**body: Any) -> Any:
        return node_client.post(
            f"/cluster/node/shards/{SHARD}/lend",
            {"url": receiver.url, "epoch": 3, **body},
            content_type="application/json",
            headers={"X-MLVDB-Node": COORDINATOR},
        )

    assert order(cluster="f" * 32).status_code == 409
    assert order(cluster=COORDINATORS, epoch="3").status_code == 400
    answer = order(cluster=COORDINATORS)
    assert (answer.status_code, answer.json()) == (200, {"term": 1, "seq": 5})
