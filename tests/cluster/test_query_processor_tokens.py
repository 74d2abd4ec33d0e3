"""Session tokens: a read sees the write they stand for, waits for it, goes where it is, or says that it is lost."""

from __future__ import annotations

import threading
import time

import pytest

from cluster.query_processor import ClusterQueryProcessor, agreement, means, reads
from cluster.query_processor.errors import CopyBehind, ShardUnavailable
from cluster.states import CopyState
from tests.cluster.copies import NAMESPACE, Cluster, Elsewhere, ReplicaHere
from tests.cluster.members import placement_document, url_of, with_own
from tests.cluster.registry import Registry
from vectors.errors import InvalidInput, TokenLost
from vectors.query_processor import RequestOptions
from vectors.store.log import Position
from vectors.tokens import token_of

PRIMARY, SIBLING = url_of("primary"), url_of("replica_2")


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


def with_token(text: str, *, label: str = "shard_0", **more: object) -> RequestOptions:
    return RequestOptions(min_seq={label: text}, **{"timeout_s": 5.0, **more})  # type: ignore[arg-type]


class TestOnAReplica:
    def test_a_copy_that_has_the_write_answers_itself(self, replica, cluster):
        primary = cluster.add(PRIMARY, Elsewhere("primary"))

        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token()))

        assert (answer.value, answer.shards[0].copy) == (3, "replica_1")
        assert primary.asked == []

    def test_a_copy_that_lacks_the_write_waits_for_it(self, replica, cluster, settings):
        settings.MLVDB_HEDGE_AFTER_S = 30
        primary = cluster.add(PRIMARY, Elsewhere("primary"))
        token = replica.token(replica.write())

        def later() -> None:
            from django.db import connection

            wait = means.means().waits
            while wait._free._value == wait.limit:
                time.sleep(0.005)
            replica.receive()
            connection.close()

        receiving = threading.Thread(target=later)
        receiving.start()
        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(token, timeout_s=30))
        receiving.join()

        assert (answer.value, answer.shards[0].copy) == (4, "replica_1")
        assert primary.asked == []

    def test_after_a_moment_the_read_goes_to_a_copy_that_has_the_write_and_the_token_with_it(
        self, replica, cluster, settings
    ):
        settings.MLVDB_HEDGE_AFTER_S = 0.02
        at = replica.write()
        primary = cluster.add(PRIMARY, Elsewhere("primary", position=at, value=4))

        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(at)))

        assert (answer.value, answer.shards[0].copy) == (4, "primary")
        [(_read, sent, _at_least)] = primary.asked
        assert sent.min_seq == {"shard_0": replica.token(at)}

    def test_a_sibling_that_lacks_it_too_is_passed_over(self, replica, cluster, settings):
        settings.MLVDB_HEDGE_AFTER_S = 0.02
        at = replica.write()
        cluster.add(PRIMARY, Elsewhere("primary", error=CopyBehind("not yet")))
        cluster.add(SIBLING, Elsewhere("replica_2", position=at, value=4))

        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(at)))

        assert answer.shards[0].copy == "replica_2"

    def test_what_nobody_has_in_time_is_503_with_how_far_this_copy_is(self, replica, settings):
        settings.MLVDB_HEDGE_AFTER_S = 0.02
        at = replica.write()
        began = time.monotonic()

        with pytest.raises(CopyBehind) as failed:
            replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(at), timeout_s=0.3))

        assert 0.3 <= time.monotonic() - began < 3
        assert (failed.value.detail["term"], failed.value.detail["seq"]) == replica.position

    def test_the_primary_knows_that_a_write_is_lost(self, replica, cluster, settings):
        settings.MLVDB_HEDGE_AFTER_S = 0.02
        cluster.add(PRIMARY, Elsewhere("primary", error=TokenLost("set aside")))

        with pytest.raises(TokenLost):
            replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(replica.write())))

    def test_an_entry_that_a_newer_term_has_replaced_is_lost_where_nobody_else_can_be_asked(self, replica):
        token = replica.token(Position(1, replica.position.seq + 1))
        replica.log.start_term(2)
        replica.receive()
        began = time.monotonic()

        with pytest.raises(TokenLost) as lost:
            replica.queries.count(namespace=NAMESPACE, options=with_token(token, timeout_s=30))

        assert (lost.value.field, lost.value.detail["token"]) == ("min_seq", token)
        assert time.monotonic() - began < 10

    def test_an_entry_before_a_newer_term_is_held(self, replica, cluster):
        token = replica.token()
        replica.log.start_term(2)
        replica.write()
        replica.receive()

        assert replica.queries.count(namespace=NAMESPACE, options=with_token(token)).value == 4

    def test_a_token_is_known_by_the_shard_s_uid_whatever_its_label(self, replica, cluster):
        cluster.add(PRIMARY, Elsewhere("primary", error=TokenLost("must not be asked")))

        assert replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(), label="other")).value == 3

    def test_a_token_of_another_shard_under_this_shard_s_label_is_lost(self, replica):
        foreign = token_of("f" * 32, term=1, seq=1)

        with pytest.raises(TokenLost):
            replica.queries.count(namespace=NAMESPACE, options=with_token(foreign))

    def test_a_token_that_nobody_here_knows_is_for_the_primary(self, replica, cluster):
        foreign = token_of("f" * 32, term=1, seq=1)
        cluster.add(PRIMARY, Elsewhere("primary", value=5))

        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(foreign, label="shard_7"))

        assert (answer.value, answer.shards[0].copy) == (5, "primary")

    def test_no_copy_stands_in_for_the_primary_when_only_that_can_tell(self, replica):
        foreign = token_of("f" * 32, term=1, seq=1)

        with pytest.raises(ShardUnavailable):
            replica.queries.count(
                namespace=NAMESPACE, options=with_token(foreign, label="shard_7", partial=True, timeout_s=0.2)
            )

    def test_what_is_no_token_is_refused(self, replica):
        with pytest.raises(InvalidInput):
            replica.queries.count(namespace=NAMESPACE, options=with_token("nonsense"))

    def test_a_read_at_quorum_is_not_answered_by_a_copy_without_the_write(self, replica, cluster, monkeypatch):
        at = replica.write()
        sibling = Elsewhere("replica_2", position=replica.position)
        cluster.add(SIBLING, sibling)
        primary = cluster.add(PRIMARY, Elsewhere("primary", position=at, value=4))
        ask = cluster._position

        def position(url: str, *args: object, **more: object) -> object:
            # The primary is the last to say where it is, so the others are the quorum.
            if url == PRIMARY:
                cluster.go_on.wait(5)
            return ask(url, *args, **more)  # type: ignore[arg-type]

        def read(url: str, *args: object, **more: object) -> object:
            if url == SIBLING:
                raise CopyBehind("not yet")
            return cluster._read(url, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(agreement, "remote_position", position)
        monkeypatch.setattr(reads, "remote_read", read)
        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(replica.token(at), consistency="quorum"))
        cluster.go_on.set()

        assert answer.shards[0].copy == "primary"
        assert [at_least for _read, _options, at_least in primary.asked] == [replica.position]

    def test_a_syncing_copy_that_has_the_write_is_still_incomplete(self, replica):
        token = replica.token()
        replica.place(with_own(placement_document("replica_2", epoch=4), state=CopyState.SYNCING))

        answer = replica.queries.count(namespace=NAMESPACE, options=with_token(token, partial=True))

        assert (answer.value, answer.complete) == (3, False)


class TestOnThePrimary:
    @pytest.fixture
    def queries(self, owner: Registry, cluster) -> ClusterQueryProcessor:
        queries = ClusterQueryProcessor()
        queries.namespace_put(NAMESPACE, dimension=3)
        return queries

    def token(self, owner: Registry, term: int, seq: int) -> str:
        return token_of(owner.head.uid, term=term, seq=seq)

    def test_its_own_writes_are_there(self, queries, owner):
        owner.replica("r1")

        assert queries.count(namespace=NAMESPACE, options=with_token(self.token(owner, 1, 1))).value == 0

    def test_what_it_never_had_in_its_own_term_is_lost_at_once_and_nobody_is_asked(self, queries, owner, cluster):
        replica = cluster.add(owner.replica("r1").url, Elsewhere("r1"))

        with pytest.raises(TokenLost):
            queries.count(namespace=NAMESPACE, options=with_token(self.token(owner, 1, 99)))
        assert replica.asked == []

    def test_a_token_of_a_later_term_is_looked_for_where_that_term_is(self, queries, owner, cluster):
        later = Position(3, 5)
        cluster.add(owner.replica("r1").url, Elsewhere("r1", position=later, value="of term 3"))

        answer = queries.count(namespace=NAMESPACE, options=with_token(self.token(owner, *later)))

        assert answer.value == "of term 3"

    def test_a_token_of_a_shard_that_nobody_knows_is_no_obstacle(self, queries, owner):
        owner.replica("r1")
        foreign = token_of("f" * 32, term=1, seq=1)

        assert queries.count(namespace=NAMESPACE, options=with_token(foreign, label="gone")).value == 0

    def test_a_replica_that_lacks_the_write_is_passed_over(self, queries, owner, cluster):
        lagging = cluster.add(owner.replica("r1").url, Elsewhere("r1", error=CopyBehind("not yet")))

        answer = queries.count(
            namespace=NAMESPACE, options=with_token(self.token(owner, 1, 1), read_preference="replica")
        )

        assert (answer.shards[0].copy, len(lagging.asked)) == ("primary", 1)
