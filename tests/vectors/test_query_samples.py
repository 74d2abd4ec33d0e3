"""Sampled queries: what is kept of what is asked, how much of it, and when it is written."""

from __future__ import annotations

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from vectors import runtime
from vectors.models import Namespace, QuerySample
from vectors.query_processor import SearchRequest
from vectors.recall import reservoir as reservoirs
from vectors.recall.reservoir import QueryReservoir
from vectors.recall.samples import sample_of, samples_add, samples_prune


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reservoir(clock) -> QueryReservoir:
    made = QueryReservoir()
    made.timer = clock
    return made


def numbered(start: int, count: int) -> list[np.ndarray]:
    """Queries that can be told apart."""
    return [np.array([number, 1.0, 2.0], dtype=np.float32) for number in range(start, start + count)]


def first_numbers(uid: str, dimension: int = 3) -> list[int]:
    """The numbers of the queries kept, newest first."""
    found = sample_of(uid, dimension)
    return [] if found is None else found[:, 0].astype(int).tolist()


class TestRows:
    def test_the_newest_of_a_namespace_are_kept(self, transactional_db, settings):
        settings.MLVDB_RECALL_SAMPLES = 5
        for start in (0, 3, 6):
            samples_add("a", numbered(start, 3))
        samples_add("b", numbered(50, 1))
        assert first_numbers("a") == [8, 7, 6, 5, 4]
        assert first_numbers("b") == [50]
        assert QuerySample.objects.count() == 6

    def test_a_repeated_query_counts_once(self, transactional_db):
        samples_add("a", [*numbered(1, 2), *numbered(1, 1), *numbered(1, 1)])
        assert first_numbers("a") == [1, 2]

    def test_their_values_come_back_as_they_were(self, transactional_db):
        query = np.random.default_rng(1).standard_normal(7).astype(np.float32)
        samples_add("a", [query])
        found = sample_of("a", 7)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, query[np.newaxis])

    def test_those_of_another_dimension_are_none(self, transactional_db):
        samples_add("a", numbered(0, 2))
        assert sample_of("a", 4) is None
        assert sample_of("unknown", 3) is None

    def test_nothing_is_kept_when_none_are_wanted(self, transactional_db, settings):
        samples_add("a", numbered(0, 2))
        settings.MLVDB_RECALL_SAMPLES = 0
        samples_add("a", numbered(5, 2))
        assert QuerySample.objects.count() == 0

    def test_those_that_are_there_go_where_none_are_wanted_any_more(self, shard, batch, settings):
        shard.queries.upsert_many(batch(0, 1), namespace="a")
        uid = Namespace.objects.get(name="a").uid
        samples_add(uid, numbered(0, 4))
        settings.MLVDB_RECALL_SAMPLES = 3
        samples_prune()
        assert first_numbers(uid) == [3, 2, 1]
        settings.MLVDB_RECALL_SAMPLES = 0
        samples_prune()
        assert not QuerySample.objects.exists()

    def test_those_of_a_dropped_namespace_go(self, shard, batch):
        for name in ("a", "b"):
            shard.queries.upsert_many(batch(0, 1), namespace=name)
            samples_add(Namespace.objects.get(name=name).uid, numbered(0, 1))
        shard.queries.namespace_drop("a")
        samples_prune()
        assert set(QuerySample.objects.values_list("namespace", flat=True)) == {Namespace.objects.get(name="b").uid}


class TestReservoir:
    def test_queries_are_written_when_they_are_due_and_not_before(self, transactional_db, reservoir, clock):
        for query in numbered(0, 3):
            reservoir.offer("a", query)
        clock.now += 4.9
        reservoir.flush()
        assert first_numbers("a") == []
        clock.now += 0.2
        reservoir.flush()
        assert sorted(first_numbers("a")) == [0, 1, 2]

    def test_of_many_a_few_are_kept_and_every_one_has_the_same_chance(
        self, transactional_db, reservoir, clock, monkeypatch, settings
    ):
        settings.MLVDB_RECALL_SAMPLES = 10_000
        monkeypatch.setattr(reservoirs.random, "random", np.random.default_rng(7).random)
        for turn in range(40):
            for query in numbered(1, 1000):
                reservoir.offer(f"n{turn}", query)
        clock.now += 6
        reservoir.flush()
        kept = [number for turn in range(40) for number in first_numbers(f"n{turn}")]
        assert len(kept) == 40 * 32
        # The mean of 1280 draws from 1…1000: 500.5 with a standard error of 8.1.
        assert abs(np.mean(kept) - 500.5) < 40

    def test_a_whole_sample_is_renewed_less_often(self, transactional_db, reservoir, clock, settings):
        settings.MLVDB_RECALL_SAMPLES = 4
        for query in numbered(0, 4):
            reservoir.offer("a", query)
        clock.now += 6
        reservoir.flush()
        reservoir.offer("a", numbered(10, 1)[0])
        clock.now += 30
        reservoir.flush()
        assert 10 not in first_numbers("a")
        clock.now += 31
        reservoir.flush()
        assert 10 in first_numbers("a")

    def test_a_batch_counts_as_some_queries_from_all_over_it(self, transactional_db, reservoir, clock):
        reservoir.offer_batch("a", numbered(0, 100))
        reservoir.offer_batch("b", numbered(0, 3))
        reservoir.offer_batch("c", [])
        clock.now += 6
        reservoir.flush()
        assert sorted(first_numbers("a")) == [0, 13, 26, 39, 52, 65, 78, 91]
        assert sorted(first_numbers("b")) == [0, 1, 2]
        assert first_numbers("c") == []

    def test_a_query_is_copied_because_its_buffer_may_change(self, transactional_db, reservoir, clock):
        query = numbered(1, 1)[0]
        reservoir.offer("a", query)
        query[:] = 9
        clock.now += 6
        reservoir.flush()
        assert first_numbers("a") == [1]

    def test_queries_of_zeros_are_left_out(self, transactional_db, reservoir, clock):
        reservoir.offer("a", np.zeros(3, dtype=np.float32))
        clock.now += 6
        reservoir.flush()
        assert QuerySample.objects.count() == 0

    def test_what_cannot_be_written_is_dropped_and_nobody_hears_of_it(
        self, transactional_db, reservoir, clock, monkeypatch
    ):
        def away(*_: object) -> None:
            raise OSError("the database is away")

        reservoir.offer("a", numbered(1, 1)[0])
        clock.now += 6
        with monkeypatch.context() as patched:
            patched.setattr(reservoirs, "samples_add", away)
            reservoir.flush()
        reservoir.offer("a", numbered(2, 1)[0])
        clock.now += 6
        reservoir.flush()
        assert first_numbers("a") == [2]


class TestSearches:
    @pytest.fixture
    def offered(self, shard, batch, settings, monkeypatch) -> list[tuple[str, list[float]]]:
        """What searches of a namespace of 300 rows, among which an index is worth while, offer."""
        settings.MLVDB_INDEX_MIN_ROWS = 290
        shard.queries.upsert_many(batch(0, 300, dimension=16), namespace="large")
        shard.queries.upsert_many(batch(0, 289, dimension=16), namespace="small")
        shard.queries.upsert_many(batch(0, 300, dimension=15), namespace="narrow")
        shard.queries.upsert_many(batch(0, 260, dimension=768), namespace="wide")
        offers: list[tuple[str, list[float]]] = []
        names = dict(Namespace.objects.values_list("uid", "name"))
        monkeypatch.setattr(
            runtime.runtime().queries, "offer", lambda uid, query: offers.append((names[uid], query.tolist()))
        )
        return offers

    QUERY = np.arange(1, 17, dtype=np.float32)

    def test_a_search_of_enough_rows_offers_its_query(self, shard, offered):
        shard.queries.find_similar(SearchRequest(query=self.QUERY), namespace="large")
        shard.queries.find_similar(SearchRequest(query=self.QUERY, recall=0.9, metric="cosine"), namespace="large")
        assert offered == [("large", self.QUERY.tolist())] * 2

    def test_rows_of_many_dimensions_get_an_index_when_they_are_fewer_and_are_sampled_as_early(self, shard, offered):
        wide = np.ones(768, dtype=np.float32)
        shard.queries.find_similar(SearchRequest(query=wide), namespace="wide")
        assert offered == [("wide", wide.tolist())]

    def test_a_search_that_no_index_will_answer_offers_none(self, shard, offered):
        shard.queries.find_similar(SearchRequest(query=self.QUERY), namespace="small")
        shard.queries.find_similar(SearchRequest(query=self.QUERY[:15]), namespace="narrow")
        shard.queries.find_similar(SearchRequest(query=self.QUERY, exact=True), namespace="large")
        shard.queries.find_similar(SearchRequest(query=self.QUERY, metric="l2"), namespace="large")
        assert offered == []

    def test_a_batch_offers_those_of_its_queries_that_would_be_offered_alone(self, shard, offered):
        searches = [
            SearchRequest(query=self.QUERY),
            SearchRequest(query=self.QUERY * 2, exact=True),
            SearchRequest(query=self.QUERY * 3, metric="ip"),
            SearchRequest(query=self.QUERY * 4),
        ]
        shard.queries.search_batch(searches, namespace="large")
        assert offered == [("large", self.QUERY.tolist()), ("large", (self.QUERY * 4).tolist())]

    def test_none_are_offered_when_none_are_wanted(self, shard, offered, settings):
        settings.MLVDB_RECALL_SAMPLES = 0
        shard.queries.find_similar(SearchRequest(query=self.QUERY), namespace="large")
        assert offered == []

    def test_a_search_asks_the_database_for_nothing_more(self, shard, batch, settings):
        def statements() -> int:
            with CaptureQueriesContext(connection) as captured:
                shard.queries.find_similar(SearchRequest(query=self.QUERY), namespace="large")
            return len(captured)

        settings.MLVDB_INDEX_MIN_ROWS = 290
        shard.queries.upsert_many(batch(0, 300, dimension=16), namespace="large")
        settings.MLVDB_RECALL_SAMPLES = 0
        without = statements()
        settings.MLVDB_RECALL_SAMPLES = 200
        assert statements() == without
        assert not QuerySample.objects.exists()
