"""Reads at quorum and all: what enough members have, and from whom it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.query_processor import ClusterQueryProcessor, means, reads
from cluster.query_processor.errors import ShardUnavailable
from cluster.replication.placements import PlacedCopy, PlacementDocument
from cluster.states import CopyState, Membership, PeerHealth
from cluster.topology import topology
from mlvdb_site.markers import topology_changed
from tests.cluster.copies import NAMESPACE, Cluster, Elsewhere, ReplicaHere
from tests.cluster.members import placement_document, url_of
from tests.cluster.registry import Registry
from vectors.errors import NotEnoughCopies
from vectors.query_processor import Answer, RequestOptions
from vectors.store import log, terms
from vectors.store.log import Position

PRIMARY, SIBLING = url_of("primary"), url_of("replica_2")
QUORUM = RequestOptions(consistency="quorum", timeout_s=5)
ALL = RequestOptions(consistency="all", timeout_s=5)


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    cluster = Cluster()
    cluster.install(monkeypatch)
    return cluster


@pytest.fixture
def replica(head, cluster, monkeypatch) -> ReplicaHere:
    """`replica_1` of three members, with three rows."""
    replica = ReplicaHere("replica_2")
    monkeypatch.setattr(means, "hearing", lambda: replica.hearing)
    return replica


def count(replica: ReplicaHere, options: RequestOptions) -> Answer[int]:
    return replica.queries.count(namespace=NAMESPACE, options=options)


class TestOnAReplica:
    def test_a_copy_that_has_what_a_quorum_has_answers_itself_and_knows_that_it_lacks_nothing(self, replica, cluster):
        primary = cluster.add(PRIMARY, Elsewhere("primary", position=replica.position, epoch=3))
        cluster.add(SIBLING, Elsewhere("replica_2", error=OSError("down")))

        answer = count(replica, QUORUM)

        assert (answer.value, answer.shards[0].copy, answer.shards[0].lag) == (3, "replica_1", 0)
        assert primary.asked == []

    def test_another_copy_that_has_more_is_read_from_and_told_what_it_must_have(self, replica, cluster):
        ahead = Position(1, replica.position.seq + 1)
        cluster.add(PRIMARY, Elsewhere("primary", error=OSError("down")))
        sibling = cluster.add(SIBLING, Elsewhere("replica_2", position=ahead, value=4, lag=9))

        answer = count(replica, QUORUM)

        assert (answer.value, answer.shards[0].copy) == (4, "replica_2")
        assert [at_least for _read, _options, at_least in sibling.asked] == [ahead]

    def test_a_newer_term_is_more_than_a_longer_log_of_an_older_one(self, replica, cluster):
        cluster.add(PRIMARY, Elsewhere("primary", position=Position(1, 99), value="old"))
        cluster.add(SIBLING, Elsewhere("replica_2", position=Position(2, 4), value="new"))

        assert count(replica, ALL).value == "new"

    def test_members_that_do_not_answer_make_the_level_fail_with_what_was_and_what_must_be(self, replica, cluster):
        with pytest.raises(NotEnoughCopies) as failed:
            count(replica, QUORUM)

        detail = failed.value.detail
        assert (detail["acknowledged"], detail["required"], detail["shard"]) == (1, 2, "shard_0")
        assert set(detail["copies"]) == {"primary", "replica_2"}
        assert "peer_refused" in detail["copies"]["primary"]

    def test_those_that_answer_are_counted_also_when_others_make_the_level_impossible(self, replica, cluster):
        cluster.add(PRIMARY, Elsewhere("primary", position=replica.position))

        with pytest.raises(NotEnoughCopies) as failed:
            count(replica, ALL)

        assert (failed.value.detail["acknowledged"], failed.value.detail["required"]) == (2, 3)

    def test_a_search_does_not_pass_for_a_part_of_the_level_it_asked_for(self, replica, cluster):
        with pytest.raises(NotEnoughCopies):
            count(replica, RequestOptions(consistency="quorum", partial=True))

    def test_a_silent_member_is_waited_for_until_the_deadline_only(self, replica, cluster):
        cluster.add(PRIMARY, Elsewhere("primary", is_silent=True))
        cluster.add(SIBLING, Elsewhere("replica_2", is_silent=True))

        with pytest.raises(NotEnoughCopies) as failed:
            count(replica, RequestOptions(consistency="quorum", timeout_s=0.2))

        assert failed.value.detail["acknowledged"] == 1
        assert all(timeout_s <= 0.2 for copy in cluster.copies.values() for timeout_s in copy.timeouts_s)
        cluster.go_on.set()

    def test_a_silent_member_is_not_waited_for_when_enough_others_answer(self, replica, cluster):
        cluster.add(PRIMARY, Elsewhere("primary", is_silent=True))
        cluster.add(SIBLING, Elsewhere("replica_2", position=replica.position))

        assert count(replica, RequestOptions(consistency="quorum", timeout_s=60)).value == 3
        cluster.go_on.set()

    def test_a_quarantined_copy_here_neither_counts_nor_answers(self, replica, cluster):
        told = placement_document("replica_2", epoch=4)
        copies = [copy for copy in told.copies if copy.name != "replica_1"]
        own = next(copy for copy in told.copies if copy.name == "replica_1")
        replica.place(_with_copies(told, [*copies, _changed(own, state=CopyState.QUARANTINED)]))
        primary = cluster.add(PRIMARY, Elsewhere("primary", position=replica.position, value=3))
        sibling = cluster.add(SIBLING, Elsewhere("replica_2", position=replica.position, value=3))

        assert count(replica, QUORUM).shards[0].copy == "primary"
        assert primary.positions_asked == sibling.positions_asked == 1
        with pytest.raises(NotEnoughCopies):
            count(replica, ALL)

    def test_a_copy_that_is_no_member_does_not_count(self, replica, cluster):
        told = placement_document("replica_2", epoch=4)
        outsider = _changed(told.copies[-1], membership=Membership.NONE)
        replica.place(_with_copies(told, [*told.copies[:-1], outsider]))
        sibling = cluster.add(SIBLING, Elsewhere("replica_2", position=replica.position))

        with pytest.raises(NotEnoughCopies) as failed:
            count(replica, QUORUM)

        assert failed.value.detail["required"] == 2
        assert sibling.positions_asked == 0

    def test_while_a_member_joins_both_sets_of_members_must_have_answered(self, replica, cluster):
        told = placement_document("replica_2", "replica_3", epoch=4)
        joining = [_changed(copy, membership=Membership.JOINING) for copy in told.copies if copy.name == "replica_3"]
        replica.place(_with_copies(told, [copy for copy in told.copies if copy.name != "replica_3"] + joining))
        cluster.add(PRIMARY, Elsewhere("primary", position=replica.position, epoch=4))

        with pytest.raises(NotEnoughCopies) as failed:
            count(replica, QUORUM)
        assert (failed.value.detail["acknowledged"], failed.value.detail["required"]) == (2, 3)

        cluster.add(SIBLING, Elsewhere("replica_2", position=replica.position, epoch=4))
        assert count(replica, QUORUM).value == 3

    def test_a_member_that_knows_a_newer_epoch_may_know_other_members_so_the_read_begins_again(self, replica, cluster):
        primary = cluster.add(PRIMARY, Elsewhere("primary", position=replica.position, epoch=4))
        cluster.add(SIBLING, Elsewhere("replica_2", error=OSError("down")))

        with pytest.raises(ShardUnavailable, match="members of shard shard_0 are changing"):
            count(replica, RequestOptions(consistency="quorum", timeout_s=0.15))
        assert primary.positions_asked > 1

        replica.place(placement_document("replica_2", epoch=4))
        assert topology().epoch == 4
        assert count(replica, QUORUM).value == 3

    def test_when_the_copy_that_has_more_fails_the_read_begins_again(self, replica, cluster, monkeypatch):
        ahead = Position(1, replica.position.seq + 1)
        cluster.add(PRIMARY, Elsewhere("primary", error=OSError("down")))
        sibling = cluster.add(SIBLING, Elsewhere("replica_2", position=ahead, value=4))
        refusals = iter([ShardUnavailable("away"), ShardUnavailable("away")])
        ask = cluster._read

        def sometimes(*args: object, **more: object) -> object:
            for refusal in refusals:
                raise refusal
            return ask(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(reads, "remote_read", sometimes)

        assert count(replica, QUORUM).value == 4
        assert sibling.positions_asked == 3


class TestOnThePrimary:
    @pytest.fixture
    def queries(self, owner: Registry, cluster) -> ClusterQueryProcessor:
        queries = ClusterQueryProcessor()
        queries.namespace_put(NAMESPACE, dimension=3)
        return queries

    def test_alone_it_is_every_level(self, queries):
        assert queries.count(namespace=NAMESPACE, options=ALL).value == 0

    def test_with_a_copy_that_is_no_member_it_is_every_level(self, queries, owner):
        owner.replica("r1", membership=Membership.NONE)

        assert queries.count(namespace=NAMESPACE, options=ALL).value == 0

    def test_a_read_at_one_asks_nobody(self, queries, owner, cluster):
        url = owner.replica("r1").url
        replica = cluster.add(url, Elsewhere("r1"))

        answer = queries.count(namespace=NAMESPACE)

        assert answer.shards[0].copy == "primary"
        assert (replica.asked, replica.positions_asked) == ([], 0)

    def test_at_quorum_a_replica_confirms_and_the_primary_answers(self, queries, owner, cluster):
        replica = cluster.add(owner.replica("r1").url, Elsewhere("r1"))

        answer = queries.count(namespace=NAMESPACE, options=QUORUM)

        assert answer.shards[0].copy == "primary"
        assert (replica.asked, replica.positions_asked) == ([], 1)

    def test_a_member_whose_node_is_dead_is_asked_all_the_same_and_missed(self, queries, owner):
        owner.replica("r1", health=PeerHealth.DEAD)

        with pytest.raises(NotEnoughCopies) as failed:
            queries.count(namespace=NAMESPACE, options=QUORUM)
        assert (failed.value.detail["acknowledged"], failed.value.detail["required"]) == (1, 2)

    def test_a_higher_term_in_an_answer_ends_its_writes_and_the_read_goes_where_that_term_is(
        self, queries, owner, cluster
    ):
        cluster.add(owner.replica("r1").url, Elsewhere("r1", position=Position(2, 2), value="of term 2"))

        answer = queries.count(namespace=NAMESPACE, options=QUORUM)

        assert answer.value == "of term 2"
        head = log.read_head(owner.head.pk)
        assert head is not None
        assert head.promised_term == 2
        assert not head.takes_writes

    def test_a_promise_of_a_higher_term_ends_its_writes_also_before_that_term_has_an_entry(
        self, queries, owner, cluster
    ):
        cluster.add(owner.replica("r1").url, Elsewhere("r1", promised_term=7))

        queries.count(namespace=NAMESPACE, options=QUORUM)

        head = log.read_head(owner.head.pk)
        assert head is not None
        assert (head.promised_term, head.takes_writes) == (7, False)

    def test_a_primary_that_has_promised_a_higher_term_does_not_know_what_it_lacks(self, queries, owner):
        owner.replica("r1")
        assert queries.count(namespace=NAMESPACE).shards[0].lag == 0
        terms.term_heard(owner.head.pk, 5)

        answer = queries.count(namespace=NAMESPACE)

        assert (answer.value, answer.shards[0].copy, answer.shards[0].lag) == (0, "primary", None)

    def test_a_read_for_replicas_goes_to_them_by_turn_and_their_lag_is_told_from_the_log_here(
        self, queries, owner, cluster
    ):
        here = Position(1, 1)
        for name, behind in (("r1", 0), ("r2", 1)):
            at = Position(here.term, here.seq - behind)
            cluster.add(owner.replica(name).url, Elsewhere(name, position=at, value=0, lag=0))
        options = RequestOptions(read_preference="replica")

        accounts = [queries.count(namespace=NAMESPACE, options=options).shards[0] for _ in range(4)]

        assert {account.copy for account in accounts[:2]} == {"r1", "r2"}
        assert [account.copy for account in accounts[:2]] == [account.copy for account in accounts[2:]]
        assert {account.copy: account.lag for account in accounts} == {"r1": 0, "r2": 1}

    @pytest.mark.parametrize(
        "unfit",
        [
            {"state": CopyState.SYNCING},
            {"health": PeerHealth.SUSPECT},
            {"paused": True},
            {"health": PeerHealth.DEAD},
        ],
    )
    def test_a_read_for_replicas_is_answered_here_when_there_is_none_to_read(self, queries, owner, cluster, unfit):
        replica = cluster.add(owner.replica("r1", **unfit).url, Elsewhere("r1"))

        answer = queries.count(namespace=NAMESPACE, options=RequestOptions(read_preference="replica"))

        assert answer.shards[0].copy == "primary"
        assert replica.asked == []

    def test_a_late_replica_is_overtaken_by_the_primary(self, queries, owner, cluster, settings):
        settings.MLVDB_HEDGE_AFTER_S = 0.01
        replica = cluster.add(owner.replica("r1").url, Elsewhere("r1", is_silent=True))

        answer = queries.count(namespace=NAMESPACE, options=RequestOptions(read_preference="replica", timeout_s=30))

        assert (answer.shards[0].copy, len(replica.asked)) == ("primary", 1)
        cluster.go_on.set()

    def test_a_released_primary_that_was_told_nothing_yet_knows_nothing_of_its_age(self, queries, owner, cluster):
        owner.replica("r1")
        terms.primary_release(owner.head.pk, 2)
        topology_changed()

        assert queries.count(namespace=NAMESPACE).shards[0].lag is None


def _with_copies(told: PlacementDocument, copies: list[PlacedCopy]) -> PlacementDocument:
    return replace(told, copies=tuple(copies))


def _changed(copy: PlacedCopy, **fields: Any) -> PlacedCopy:
    return replace(copy, **fields)
