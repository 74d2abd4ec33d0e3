"""A replica answers reads from its own copy, says how old they may be, and sends writes to the primary."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.models import Placement
from cluster.query_processor import ClusterQueryProcessor, means
from cluster.query_processor.errors import CopySyncing, ShardUnavailable
from cluster.states import CopyState
from tests.cluster.copies import NAMESPACE, Cluster, Elsewhere, ReplicaHere
from tests.cluster.members import SHARD, placement_document, url_of, with_own
from vectors.engine import ids
from vectors.errors import NamespaceNotFound, NotPrimary, VectorNotFound
from vectors.query_processor import RequestOptions, SearchRequest, VectorBatch

PRIMARY = url_of("primary")
SEARCH = SearchRequest(query=np.ones(3, dtype=np.float32))


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    cluster = Cluster()
    cluster.install(monkeypatch)
    return cluster


@pytest.fixture
def replica(head, cluster, monkeypatch) -> ReplicaHere:
    replica = ReplicaHere("replica_2")
    monkeypatch.setattr(means, "hearing", lambda: replica.hearing)
    return replica


def hear(replica: ReplicaHere, primary_seq: int) -> None:
    """Have the primary heard, in between two looks."""
    replica.queries.count(namespace=NAMESPACE)
    placement = Placement.objects.get(shard=SHARD)
    Placement.objects.filter(pk=placement.pk).update(primary_seq=primary_seq, heard=placement.heard + 1)


def test_a_read_is_answered_from_the_copy_here_under_its_own_name(replica, cluster):
    hear(replica, replica.position.seq)

    answer = replica.queries.count(namespace=NAMESPACE)

    assert answer.value == 3
    [account] = answer.shards
    assert (account.shard, account.copy, account.lag) == ("shard_0", "replica_1", 0)
    assert (account.term, account.seq) == replica.position
    assert answer.complete


def test_what_the_copy_lacks_of_the_primary_s_log_is_its_lag(replica):
    hear(replica, replica.position.seq + 17)

    assert replica.queries.get(ids.key_of(1), namespace=NAMESPACE).shards[0].lag == 17


def test_a_copy_that_is_ahead_of_what_was_heard_lags_by_nothing(replica):
    hear(replica, 1)

    assert replica.queries.count(namespace=NAMESPACE).shards[0].lag == 0


def test_the_lag_is_unknown_before_the_primary_was_heard_and_when_it_was_not_heard_for_long(replica, settings):
    assert replica.queries.count(namespace=NAMESPACE).shards[0].lag is None
    hear(replica, replica.position.seq)
    assert replica.queries.count(namespace=NAMESPACE).shards[0].lag == 0

    replica.now += settings.MLVDB_STALE_AFTER_S - 0.1
    assert replica.queries.count(namespace=NAMESPACE).shards[0].lag == 0
    replica.now += 0.2
    assert replica.queries.count(namespace=NAMESPACE).shards[0].lag is None


@pytest.mark.parametrize(
    "write",
    [
        lambda queries: queries.insert(VectorBatch([None], np.ones((1, 3), "f4"), [b"{}"]), namespace=NAMESPACE),
        lambda queries: queries.upsert_many(VectorBatch([None], np.ones((1, 3), "f4"), [b"{}"]), namespace="new"),
        lambda queries: queries.patch(ids.key_of(1), metadata=b"{}", namespace=NAMESPACE),
        lambda queries: queries.delete(keys=[ids.key_of(1)], namespace=NAMESPACE),
        lambda queries: queries.namespace_put("new", dimension=3),
        lambda queries: queries.namespace_drop(NAMESPACE),
    ],
)
def test_a_write_is_refused_with_the_url_of_the_primary(replica, write):
    with pytest.raises(NotPrimary) as refused:
        write(replica.queries)

    assert refused.value.detail["primary_url"] == PRIMARY
    assert replica.queries.list_namespaces().value == [NAMESPACE]


def test_a_detached_copy_refuses_writes_and_says_that_nobody_knows_how_old_it_is(replica):
    hear(replica, replica.position.seq)
    replica.place(placement_document("replica_2", epoch=4, role="detached", copies=()))

    with pytest.raises(NotPrimary) as refused:
        replica.queries.namespace_drop(NAMESPACE)
    assert refused.value.detail["primary_url"] == PRIMARY
    answer = replica.queries.count(namespace=NAMESPACE)
    assert (answer.value, answer.shards[0].lag) == (3, None)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (CopyState.NEW, "copy_syncing"),
        (CopyState.SYNCING, "copy_syncing"),
        (CopyState.QUARANTINED, "copy_quarantined"),
    ],
)
class TestACopyWithoutAWholeState:
    @pytest.fixture(autouse=True)
    def unfit(self, replica, state) -> None:
        replica.place(with_own(placement_document("replica_2", epoch=4), state=state))

    def test_searches_say_that_they_are_incomplete(self, replica, code):
        answer = replica.queries.find_similar(SEARCH, namespace=NAMESPACE)

        assert len(answer.value) == 3
        assert not answer.complete
        assert answer.shards[0].error == code

    @pytest.mark.parametrize(
        "read",
        [
            lambda queries, options: queries.get(ids.key_of(1), namespace=NAMESPACE, options=options),
            lambda queries, options: queries.fetch([ids.key_of(1)], namespace=NAMESPACE, options=options),
            lambda queries, options: queries.count(namespace=NAMESPACE, options=options),
            lambda queries, options: queries.scroll(namespace=NAMESPACE, limit=5, options=options),
            lambda queries, options: queries.list_namespaces(options=options),
            lambda queries, options: queries.namespace_details(options=options),
            lambda queries, options: queries.storage_info(options=options),
        ],
    )
    def test_other_reads_fail_unless_they_allow_a_part(self, replica, code, read):
        with pytest.raises(CopySyncing):
            read(replica.queries, RequestOptions())

        assert not read(replica.queries, RequestOptions(partial=True)).complete

    def test_a_search_that_allows_no_part_fails_as_well(self, replica, code):
        with pytest.raises(CopySyncing):
            replica.queries.search_batch([SEARCH], namespace=NAMESPACE, options=RequestOptions(partial=False))

    def test_a_read_for_the_primary_goes_there(self, replica, cluster, code):
        cluster.add(PRIMARY, Elsewhere("primary", value=5))

        assert replica.queries.count(namespace=NAMESPACE, options=RequestOptions(read_preference="primary")).value == 5


def test_the_primary_answers_a_read_that_asks_for_it(replica, cluster):
    primary = cluster.add(PRIMARY, Elsewhere("x", value=7))
    options = RequestOptions(read_preference="primary", timeout_s=1.5)

    answer = replica.queries.count(namespace=NAMESPACE, options=options)

    assert answer.value == 7
    assert (answer.shards[0].shard, answer.shards[0].copy, answer.shards[0].lag) == ("shard_0", "primary", 0)
    [(read, sent, at_least)] = primary.asked
    assert (read.operation, read.arguments) == ("count", {"namespace": NAMESPACE, "filter": None})
    assert at_least is None
    # What is left of the time, and nothing that could be sent on.
    assert sent.timeout_s is not None
    assert 1 < sent.timeout_s <= 1.5
    assert (sent.consistency, sent.read_preference) == ("one", None)


@pytest.mark.parametrize("error", [VectorNotFound("no such row"), NamespaceNotFound("no such namespace")])
def test_what_the_primary_does_not_have_is_not_there(replica, cluster, error):
    cluster.add(PRIMARY, Elsewhere("primary", error=error))

    with pytest.raises(type(error)):
        replica.queries.get(
            ids.key_of(1), namespace=NAMESPACE, options=RequestOptions(read_preference="primary", partial=True)
        )


def test_while_the_primary_fails_this_copy_stands_in_for_reads_that_allow_a_part_and_says_so(replica):
    hear(replica, replica.position.seq)

    answer = replica.queries.find_similar(
        SEARCH, namespace=NAMESPACE, options=RequestOptions(read_preference="primary")
    )

    assert len(answer.value) == 3
    assert (answer.shards[0].copy, answer.shards[0].lag) == ("replica_1", None)
    with pytest.raises(ShardUnavailable) as failed:
        replica.queries.count(namespace=NAMESPACE, options=RequestOptions(read_preference="primary"))
    assert "peer_refused" in failed.value.detail["copies"]["primary"]


def test_while_the_primary_is_late_this_copy_stands_in(replica, cluster, settings):
    settings.MLVDB_HEDGE_AFTER_S = 0.01
    primary = cluster.add(PRIMARY, Elsewhere("primary", value=[], is_silent=True))

    answer = replica.queries.find_similar(
        SEARCH, namespace=NAMESPACE, options=RequestOptions(read_preference="primary", timeout_s=30)
    )

    assert answer.shards[0].copy == "replica_1"
    assert len(primary.asked) == 1
    cluster.go_on.set()


def test_a_read_of_a_node_that_has_no_copy_yet_says_so(head, cluster, monkeypatch):
    from cluster.query_processor import processor
    from cluster.topology import TopologyView

    monkeypatch.setattr(processor, "topology", lambda: TopologyView(is_single=False))

    with pytest.raises(Exception, match="no shard yet"):
        ClusterQueryProcessor().count(namespace=NAMESPACE)
