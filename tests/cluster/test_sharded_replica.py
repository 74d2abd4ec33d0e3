"""A replica of a coordinator: it answers from its copies of all shards, and asks the nodes of those it has none of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cluster.query_processor import ClusterQueryProcessor, means
from cluster.query_processor.errors import ShardUnavailable
from cluster.replication.placements import PlacementDocument
from cluster.services.taking import placement_take
from cluster.sharding.placed import PlacedShard, PlacedShards
from cluster.sharding.table import SlotTable
from cluster.states import ShardState
from cluster.topology import topology, topology_forget
from tests.cluster.members import PRIMARY, placement_document, url_of
from tests.cluster.shards import RemoteShard, labels, rows
from tests.vectors.paper_logs import PaperLog
from vectors import services
from vectors.engine import ids
from vectors.engine.operations import SetSlots
from vectors.engine.slots import SlotSet
from vectors.errors import NamespaceNotFound, NotEnoughCopies, NotPrimary, VectorNotFound
from vectors.models import ShardHead
from vectors.query_processor import RequestOptions, SearchRequest
from vectors.store import receive
from vectors.store.log import Position

NAMESPACE = "books"
NAMESPACE_UID = "b" * 32
ROWS = 60
COPIES = {"shard_0": "0" * 31 + "1", "shard_1": "0" * 31 + "2"}
SEARCH = SearchRequest(query=np.ones(3, "f4"), top_k=100)


class ReplicaOfShards:
    """This process's node: copies of the coordinator's two shards, and a third shard that listens elsewhere."""

    def __init__(self) -> None:
        self.queries = ClusterQueryProcessor()
        self.logs = {label: PaperLog() for label in COPIES}
        self.remote: RemoteShard | None = None
        self.table = SlotTable((np.arange(ids.SLOT_COUNT) % 3 + 1).astype("<u2"))
        for label in COPIES:
            placement_take(self.document(label, "http://127.0.0.1:9").to_document())
        head = ShardHead.objects.create(label="there", uid="0" * 31 + "3")
        self.remote = RemoteShard(head.uid, head.pk)
        services.namespace_put(head.pk, NAMESPACE, dimension=3, uid=NAMESPACE_UID)
        for label in COPIES:
            placement_take(self.document(label, self.remote.url, epoch=4).to_document())
        for number in range(ROWS):
            owner = self.owner_of(number)
            if owner == "remote_0":
                self.remote.processor.upsert_many(rows(number), namespace=NAMESPACE)
        for label, log in self.logs.items():
            log.put(NAMESPACE_UID, NAMESPACE)
            for number in range(ROWS):
                if self.owner_of(number) == label:
                    log.upsert(NAMESPACE_UID, number)
            copy = ShardHead.objects.get(uid=COPIES[label])
            receive.receive(copy.pk, term=1, before=Position(copy.term, copy.last_seq), entries=log.entries)
        means.means_forget()
        topology_forget()

    def document(self, label: str, url: str, *, epoch: int = 3) -> PlacementDocument:
        """What the coordinator says of one of its shards, and of all of them."""
        shards = (
            PlacedShard(1, "shard_0", COPIES["shard_0"], "", "", ShardState.ACTIVE, False),
            PlacedShard(2, "shard_1", COPIES["shard_1"], "", "", ShardState.ACTIVE, False),
            PlacedShard(3, "remote_0", "0" * 31 + "3", url, "", ShardState.ACTIVE, False),
        )
        placed = PlacedShards("hash", self.table, shards)
        return placement_document(epoch=epoch, shard=COPIES[label], label=label, sharding=placed)

    def owner_of(self, number: int) -> str:
        return ["shard_0", "shard_1", "remote_0"][self.table.owners[ids.slot_of(ids.key_of(number))] - 1]


@pytest.fixture
def replica(head) -> Iterator[ReplicaOfShards]:
    replica = ReplicaOfShards()
    yield replica
    if replica.remote is not None:
        replica.remote.close()


def test_what_a_placement_says_of_the_shards_is_read_as_it_was_written(replica):
    told = replica.document("shard_0", "http://10.0.0.3:8000")

    read = PlacementDocument.of(told.to_document())

    assert read.sharding is not None
    assert told.sharding is not None
    assert read.sharding.table.to_bytes() == told.sharding.table.to_bytes()
    assert (read.sharding.shards, read.sharding.strategy) == (told.sharding.shards, "hash")


@pytest.mark.parametrize(
    "damage",
    [
        {"slots": "!"},
        {"slots": "AAAA"},
        {"slots": 7},
        {"shards": [{}]},
        {"shards": 7},
        {"shards": [{"number": 1 << 16}]},
        {"strategy": None},
    ],
)
def test_shards_that_cannot_be_read_make_the_placement_unreadable(replica, damage):
    document = replica.document("shard_0", "").to_document()

    with pytest.raises(ValueError):
        PlacementDocument.of({**document, "sharding": {**document["sharding"], **damage}})
    with pytest.raises(ValueError):
        PlacementDocument.of({**document, "sharding": [1]})


def test_reads_are_answered_from_all_shards(replica):
    everything = [ids.key_of(number) for number in range(ROWS)]

    search = replica.queries.find_similar(SEARCH, namespace=NAMESPACE)
    assert sorted(hit.key for hit in search.value) == everything
    assert (labels(search.shards), search.failed) == (["shard_0", "shard_1", "remote_0"], [])
    assert {account.copy for account in search.shards} == {"replica_1", "primary"}
    assert replica.queries.count(namespace=NAMESPACE).value == ROWS
    page = replica.queries.scroll(namespace=NAMESPACE, limit=500).value
    assert [record.key for record in page.records] == everything
    assert replica.queries.fetch(everything, namespace=NAMESPACE).value.missing == []
    assert replica.queries.storage_info().value.vectors_per_namespace == {NAMESPACE: ROWS}
    assert replica.queries.list_namespaces().value == [NAMESPACE]


def test_a_shard_elsewhere_that_cannot_be_asked_is_missed(replica):
    replica.remote.close()

    assert replica.queries.find_similar(SEARCH, namespace=NAMESPACE).failed == ["remote_0"]
    with pytest.raises(ShardUnavailable):
        replica.queries.count(namespace=NAMESPACE)


def test_what_is_not_there_is_not_there(replica):
    with pytest.raises(VectorNotFound):
        replica.queries.get(ids.key_of(ROWS + 1), namespace=NAMESPACE)
    with pytest.raises(NamespaceNotFound):
        replica.queries.get(ids.key_of(1), namespace="nowhere")
    assert replica.queries.count(namespace="nowhere").value == 0


def test_writes_go_to_the_coordinator(replica):
    with pytest.raises(NotPrimary) as caught:
        replica.queries.upsert_many(rows(1), namespace=NAMESPACE)
    assert caught.value.detail["primary_url"] == url_of(PRIMARY)
    assert topology().sharding is None


def test_a_level_is_asked_of_each_shard_s_members(replica):
    with pytest.raises(NotEnoughCopies):
        replica.queries.count(namespace=NAMESPACE, options=RequestOptions(consistency="quorum", timeout_s=0.5))


def test_a_copy_that_has_yet_to_receive_slots_of_its_shard_is_passed_over(replica):
    def receive_gate(writable: SlotSet) -> None:
        log, copy = replica.logs["shard_0"], ShardHead.objects.get(uid=COPIES["shard_0"])
        log.add(SetSlots(4, writable.packed))
        receive.receive(copy.pk, term=1, before=Position(copy.term, copy.last_seq), entries=log.after(copy.last_seq))

    owned = replica.table.owned_by(1)
    receive_gate(owned - SlotSet.of(owned.numbers[:1]))

    with pytest.raises(ShardUnavailable) as missed:
        replica.queries.count(namespace=NAMESPACE)
    assert missed.value.detail["shard"] == "shard_0"

    receive_gate(owned)
    assert replica.queries.count(namespace=NAMESPACE).value == ROWS
