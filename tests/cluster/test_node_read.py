"""The route between nodes for reads: the copy here answers, in binary, and nothing is sent on or waited for."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from django.test import Client

from cluster.models import Placement
from cluster.query_processor import means
from cluster.states import CopyState
from cluster.transport import wire
from tests.api.conftest import checked_error
from tests.cluster.copies import NAMESPACE, ReplicaHere
from tests.cluster.members import CLUSTER, PRIMARY_NODE, SHARD, placement_document, with_own
from vectors.engine import ids
from vectors.query_processor import LocalQueryProcessor, RequestOptions, SearchRequest
from vectors.store.log import Position

PATH = f"/cluster/node/shards/{SHARD}/read"
COUNT = {"namespace": NAMESPACE}


@pytest.fixture
def replica(head, monkeypatch) -> ReplicaHere:
    replica = ReplicaHere("replica_2")
    means.means_forget()
    monkeypatch.setattr(means, "hearing", lambda: replica.hearing)
    return replica


def send(body: bytes, *, cluster: str = CLUSTER, path: str = PATH):
    return Client(raise_request_exception=False).post(
        f"{path}?cluster={cluster}",
        body,
        content_type="application/msgpack",
        headers={"X-MLVDB-Node": PRIMARY_NODE},
    )


def answer_of(operation: str, arguments: dict[str, object], *, position=None, **options):
    answer = send(wire.read_request(operation, arguments, RequestOptions(**options), position))
    assert answer.status_code == 200, answer.content
    return wire.answer_of(operation, answer.content)


def error_of(*args, **more):
    answer = send(wire.read_request(*args, **more))
    return answer.status_code, checked_error(answer)


def test_a_row_is_answered_with_the_position_it_was_read_at(replica):
    answer = answer_of("get", {"key": ids.key_of(1), "namespace": NAMESPACE})

    assert answer.value.key == ids.key_of(1)
    assert answer.value.values.shape == (3,)
    [account] = answer.shards
    assert (account.copy, account.term, account.seq) == ("replica_1", *replica.position)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("fetch", {"keys": [ids.key_of(1), ids.key_of(99)], "namespace": NAMESPACE}),
        ("find_similar", {"request": SearchRequest(query=np.ones(3, "f4")), "namespace": NAMESPACE}),
        ("search_batch", {"requests": [SearchRequest(key=ids.key_of(1), with_values=False)], "namespace": NAMESPACE}),
        ("count", COUNT),
        ("scroll", {"namespace": NAMESPACE, "limit": 2}),
        ("list_namespaces", {}),
        ("namespace_details", {}),
        ("storage_info", {}),
    ],
)
def test_every_read_of_the_port_is_answered_as_the_copy_itself_answers_it(replica, operation, arguments):
    here = getattr(LocalQueryProcessor(replica.head.pk), operation)(**arguments)

    assert repr(answer_of(operation, arguments).value) == repr(here.value)


def test_where_the_copy_is_is_answered_with_what_it_has_promised(replica):
    answer = send(msgpack.packb({"op": "position"}))

    assert msgpack.unpackb(answer.content) == {
        "term": replica.position.term,
        "seq": replica.position.seq,
        "promised_term": 1,
        "epoch": 3,
    }
    assert answer["X-MLVDB-Epoch"] == "3"


def test_a_copy_that_lacks_what_it_must_have_says_so_at_once(replica):
    ahead = Position(1, replica.position.seq + 1)

    status, error = error_of("count", COUNT, position=ahead)

    assert (status, error["code"]) == (503, "copy_behind")
    assert (error["detail"]["term"], error["detail"]["seq"]) == replica.position
    assert answer_of("count", COUNT, position=tuple(replica.position)).value == 3


def test_a_session_token_that_is_not_there_yet_is_503_and_one_that_is_lost_409(replica):
    later = replica.token(Position(1, replica.position.seq + 1))
    assert error_of("count", COUNT, RequestOptions(min_seq={"shard_0": later}))[1]["code"] == "copy_behind"

    replica.log.start_term(2)
    replica.receive()

    status, error = error_of("count", COUNT, RequestOptions(min_seq={"shard_0": later}))
    assert (status, error["code"]) == (409, "token_lost")


@pytest.mark.parametrize("state", [CopyState.SYNCING, CopyState.QUARANTINED])
def test_a_copy_without_a_whole_state_refuses_what_may_leave_nothing_out(replica, state):
    replica.place(with_own(placement_document("replica_2", epoch=4), state=state))

    assert error_of("count", COUNT)[1]["code"] == "copy_syncing"


def test_a_quarantined_copy_does_not_say_where_it_is(replica):
    replica.place(with_own(placement_document("replica_2", epoch=4), state=CopyState.QUARANTINED))

    assert send(msgpack.packb({"op": "position"})).status_code == 503


def test_errors_of_the_read_itself_come_back_as_they_are(replica):
    status, error = error_of("get", {"key": ids.key_of(99), "namespace": NAMESPACE})

    assert (status, error["code"]) == (404, "vector_not_found")


def test_a_sender_of_another_cluster_and_a_shard_that_is_not_here_are_refused(replica):
    other = send(wire.read_request("count", COUNT), cluster="d" * 32)
    unknown = send(wire.read_request("count", COUNT), path=f"/cluster/node/shards/{'e' * 32}/read")

    assert (other.status_code, checked_error(other)["code"]) == (409, "wrong_cluster")
    assert (unknown.status_code, checked_error(unknown)["code"]) == (409, "need_placement")


@pytest.mark.parametrize("operation", ["insert", "delete", "namespace_drop", "__init__", "of"])
def test_nothing_but_reads_is_done(replica, operation):
    answer = send(msgpack.packb({"op": operation}))

    assert (answer.status_code, checked_error(answer)["code"]) == (400, "invalid_read")


@pytest.mark.parametrize("body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"op": 7})])
def test_what_is_no_read_is_refused(replica, body):
    answer = send(body)

    assert (answer.status_code, checked_error(answer)["code"]) == (400, "invalid_read")


def test_a_read_without_a_node_s_name_is_refused(replica):
    answer = Client().post(f"{PATH}?cluster={CLUSTER}", wire.read_request("count", COUNT), content_type="x/y")

    assert answer.status_code == 403


def test_a_detached_copy_still_says_what_it_has(replica):
    assert Placement.objects.count() == 1
    replica.place(placement_document("replica_2", epoch=4, role="detached", copies=()))

    answer = answer_of("count", COUNT)

    assert (answer.value, answer.shards[0].lag) == (3, None)
