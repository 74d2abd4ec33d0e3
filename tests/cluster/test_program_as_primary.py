"""A primary that is a program without HTTP: it has no URL, and counts among the members all the same."""

from __future__ import annotations

import time

import pytest

from cluster.library import QueryProcessorWithReplication
from cluster.node_urls import check_own_url, own_url
from cluster.query_processor.copies import copies_of
from cluster.query_processor.writes import not_primary
from cluster.replication.lanes import wait_for_each
from cluster.replication.quorum import PRIMARY
from cluster.services import shipping
from cluster.states import CopyState, Membership
from cluster.topology import PlacementView, ShardView
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerRefused
from tests.cluster.registry import Registry
from vectors.errors import InvalidInput
from vectors.library import Index, StorageEngineInMemory, VectorDTO
from vectors.models import ShardHead
from vectors.store.log import Position

UID = "a" * 32


def told_of(primary_url: str) -> ShardView:
    """Return the shard of a replica whose primary is at a URL, or has none."""
    placement = PlacementView(
        name="replica_1",
        role="replica",
        epoch=3,
        term=1,
        primary_url=primary_url,
        primary_node="b" * 32,
        owner_url=primary_url,
        owner_node="b" * 32,
        state=CopyState.FOLLOWING,
        membership=Membership.MEMBER,
        primary_seq=0,
        heard=0,
    )
    return ShardView(UID, "shard_0", 1, False, primary_url=primary_url or None, placement=placement)


def test_a_program_has_no_url_whatever_its_environment_says(settings) -> None:
    settings.MLVDB_SERVES_HTTP = False
    settings.MLVDB_ADVERTISE_URL = "http://10.0.0.5:8000"
    settings.MLVDB_HOST = "0.0.0.0"

    assert own_url() == check_own_url() == ""


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1"])
def test_the_primary_is_among_the_copies_with_and_without_a_url(url: str) -> None:
    (primary,) = [copy for copy in copies_of(told_of(url)) if copy.is_primary]

    assert (primary.name, primary.url, primary.counts) == (PRIMARY, url, True)


def test_a_copy_that_was_told_of_no_primary_names_none() -> None:
    assert not any(copy.is_primary for copy in copies_of(ShardView(UID, "shard_0", 1, False)))


def test_the_refusal_of_a_write_says_that_the_primary_is_a_program() -> None:
    assert "is a program" in not_primary(told_of("")).message
    assert not_primary(told_of("")).detail["primary_url"] is None
    assert "send it to http://127.0.0.1:1" in not_primary(told_of("http://127.0.0.1:1")).message


def test_nobody_is_asked_where_there_is_no_url() -> None:
    with pytest.raises(PeerRefused, match="no URL"):
        peer_client().call("", "GET", "/cluster/node/alive", even_if_silent=True)


def test_a_replica_of_one_shard_that_has_all_of_it_is_not_knocked_for(owner: Registry) -> None:
    shard = owner.head
    ShardHead.objects.create(label="another")
    replica = owner.replica("a", shard=shard.uid)

    assert shipping.sweep() == []
    ShardHead.objects.filter(pk=shard.pk).update(last_seq=shard.last_seq + 1)
    assert shipping.sweep() == [replica.pk]


def test_waiting_for_each_ends_with_those_that_cannot_be_reached(owner: Registry) -> None:
    shard = owner.head
    owner.replica("away")
    owner.replica("paused", paused=True)
    began = time.monotonic()

    have = wait_for_each(shard.uid, Position(1, shard.last_seq + 1), deadline=began + 30)

    assert have == {"away": False, "paused": False}
    assert time.monotonic() - began < 10
    assert wait_for_each(UID, Position(1, 1), deadline=began + 30) == {}


def test_without_a_manager_the_processor_is_that_of_the_library(head) -> None:
    with StorageEngineInMemory() as storage:
        processor = QueryProcessorWithReplication(storage, Index("l2"))
        processor.insert(VectorDTO([1.0, 2.0], id="a"))

        assert processor.find_similar([1.0, 2.0])[0]["id"] == "a"
        assert "replication" not in processor.get_storage_info()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"consistency": "two"}, "consistency"),
        ({"read_preference": "far"}, "read_preference"),
    ],
)
def test_what_a_processor_cannot_do_is_refused_by_name(given: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        QueryProcessorWithReplication(None, **given)  # type: ignore[arg-type]

    assert refused.value.field == field
