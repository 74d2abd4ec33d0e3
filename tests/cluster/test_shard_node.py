"""The node of another coordinator's shard: it does what that coordinator sends, and takes no client's writes."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from django.db import transaction
from django.test import Client

from cluster.models import Assignment, Topology
from cluster.query_processor import ClusterQueryProcessor, means
from cluster.topology import topology_forget
from cluster.transport import wire
from mlvdb_site.markers import topology_changed
from tests.api.conftest import checked_error
from tests.cluster.shards import rows
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.engine.slots import ALL_SLOTS, SlotSet
from vectors.errors import NotPrimary
from vectors.models import ShardHead
from vectors.query_processor import SearchRequest

COORDINATOR = "c" * 32
URL = "http://10.0.0.1:8000"
NODE = "a" * 32
NAMESPACE = "books"


class ShardNode:
    """This process's node, told that its copy is shard `shard_r` of a coordinator."""

    def __init__(self, head: ShardHead) -> None:
        self.head = head
        self.queries = ClusterQueryProcessor()
        means.means_forget()
        with transaction.atomic():
            Topology.objects.create(cluster="d" * 32)
            Assignment.objects.create(
                shard=head.uid,
                label="shard_r",
                cluster=COORDINATOR,
                epoch=7,
                coordinator_node=NODE,
                coordinator_url=URL,
                slots=ALL_SLOTS.packed,
            )
            topology_changed()
        topology_forget()

    def owns(self, slots: SlotSet, *, epoch: int) -> None:
        """Tell it which slots it owns."""
        with transaction.atomic():
            Assignment.objects.update(slots=slots.packed, epoch=epoch)
            topology_changed()

    def send(self, route: str, body: bytes, *, cluster: str = COORDINATOR, uid: str = ""):
        """Send a request as another node does."""
        return Client(raise_request_exception=False).post(
            f"/cluster/node/shards/{uid or self.head.uid}/{route}?cluster={cluster}",
            body,
            content_type="application/msgpack",
            headers={"X-MLVDB-Node": NODE},
        )

    def write(self, operation: str, **arguments):
        """Have it write, as its coordinator does."""
        answer = self.send("write", wire.read_request(operation, {"namespace": NAMESPACE, **arguments}))
        assert answer.status_code == 200, answer.content
        return wire.write_answer_of(answer.content)

    def read(self, operation: str, **arguments):
        """Have it answer its coordinator."""
        answer = self.send("read", wire.read_request(operation, {"namespace": NAMESPACE, **arguments}))
        assert answer.status_code == 200, answer.content
        return wire.answer_of(operation, answer.content)


@pytest.fixture
def node(head, monkeypatch) -> ShardNode:
    monkeypatch.setattr("cluster.query_processor.means.knock", lambda _shard_uid: None)
    return ShardNode(head)


WRITES = [
    lambda queries: queries.insert(rows(1), namespace=NAMESPACE),
    lambda queries: queries.upsert_many(rows(1, 2), namespace=NAMESPACE),
    lambda queries: queries.patch(ids.key_of(1), metadata=b"{}", namespace=NAMESPACE),
    lambda queries: queries.delete(keys=[ids.key_of(1)], namespace=NAMESPACE),
    lambda queries: queries.delete(filter=parse_filter({"a": 1}), namespace=NAMESPACE),
    lambda queries: queries.namespace_put(NAMESPACE, dimension=3),
    lambda queries: queries.namespace_drop(NAMESPACE),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_client_s_write_is_sent_to_the_coordinator(node, write):
    node.write("upsert_many", batch=rows(1))

    with pytest.raises(NotPrimary) as caught:
        write(node.queries)

    assert (caught.value.status, caught.value.detail) == (409, {"shard": "shard_r", "primary_url": URL})


def test_writes_of_the_coordinator_are_done_and_answered_with_their_place(node):
    result = node.write("upsert_many", batch=rows(1, 2, 3))
    deleted = node.write("delete", keys=[ids.key_of(2), ids.key_of(9)])
    patched = node.write("patch", key=ids.key_of(3), metadata=b'{"a":1}')
    by_filter = node.write("delete", filter=parse_filter({"a": 1}))

    assert (list(result.keys), result.count) == ([ids.key_of(number) for number in (1, 2, 3)], 3)
    [(uid, term, seq)] = result.positions.values()
    assert (uid, term) == (node.head.uid, 1)
    assert [next(iter(write.positions.values()))[2] - seq for write in (deleted, patched, by_filter)] == [1, 2, 3]
    assert (deleted.count, patched.count, by_filter.count) == (1, 1, 1)
    assert node.read("scroll", limit=10).value.records[0].key == ids.key_of(1)


def test_reads_of_the_coordinator_are_answered_from_the_primary(node):
    node.write("upsert_many", batch=rows(1, 2, 3))

    answer = node.read("find_similar", request=SearchRequest(query=np.ones(3, "f4")))

    assert len(answer.value) == 3
    assert [account.copy for account in answer.shards] == ["primary"]


def test_errors_of_a_write_come_back_as_they_are(node):
    node.write("upsert_many", batch=rows(1))

    body = wire.read_request("patch", {"namespace": NAMESPACE, "key": ids.key_of(9), "metadata": b"{}"})
    answer = node.send("write", body)

    assert (answer.status_code, checked_error(answer)["code"]) == (404, "vector_not_found")


def test_a_write_of_a_coordinator_that_was_replaced_is_refused(node):
    with transaction.atomic():
        Assignment.objects.update(coordinator_node="b" * 32, reign=1)
        topology_changed()

    answer = node.send("write", wire.read_request("upsert_many", {"namespace": NAMESPACE, "batch": rows(1)}))

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_cluster")
    assert answer.json()["error"]["detail"]["coordinator_url"] == URL
    assert node.read("count").value == 0


def test_a_write_of_anybody_else_is_refused(node):
    body = wire.read_request("upsert_many", {"namespace": NAMESPACE, "batch": rows(1)})

    other = node.send("write", body, cluster="e" * 32)
    unknown = node.send("write", body, uid="f" * 32)
    own = node.send("write", body, cluster="d" * 32)

    for answer in (other, unknown, own):
        assert (answer.status_code, checked_error(answer)["code"]) == (409, "wrong_cluster")
    Assignment.objects.all().delete()
    topology_forget()
    nobody_s = node.send("write", body)
    assert (nobody_s.status_code, checked_error(nobody_s)["code"]) == (409, "need_placement")
    assert node.queries.count(namespace=NAMESPACE).value == 0


def test_a_write_without_a_node_s_name_is_refused(node):
    body = wire.read_request("upsert_many", {"namespace": NAMESPACE, "batch": rows(1)})
    path = f"/cluster/node/shards/{node.head.uid}/write?cluster={COORDINATOR}"

    assert Client().post(path, body, content_type="x/y").status_code == 403


@pytest.mark.parametrize("operation", ["insert", "namespace_drop", "count", "__init__"])
def test_nothing_but_writes_of_rows_is_done(node, operation):
    answer = node.send("write", msgpack.packb({"op": operation}))

    assert (answer.status_code, checked_error(answer)["code"]) == (400, "invalid_write")


@pytest.mark.parametrize("body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"op": 7})])
def test_what_is_no_write_is_refused(node, body):
    answer = node.send("write", body)

    assert (answer.status_code, checked_error(answer)["code"]) == (400, "invalid_read")


def test_a_copy_that_is_not_the_primary_any_more_takes_nothing(node):
    ShardHead.objects.filter(pk=node.head.pk).update(is_primary=False)
    topology_forget()

    answer = node.send("write", wire.read_request("upsert_many", {"namespace": NAMESPACE, "batch": rows(1)}))

    assert (answer.status_code, checked_error(answer)["code"]) == (409, "need_placement")
