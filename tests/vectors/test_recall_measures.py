"""Measured recall: of what, with what, what is noted, and what a promise that is not kept leads to."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest

from tests.vectors.blinkered import blinkers_on
from tests.vectors.conftest import Shard
from vectors import measuring, tasks
from vectors.engine import ids
from vectors.models import IndexRequest, Namespace, RecallMeasure, ShardHead
from vectors.recall import comparing, requests
from vectors.recall.comparing import Compared, compared, indexed_rows, own_rows_of, tuned_recall
from vectors.recall.measures import measure_add, shortfalls
from vectors.recall.samples import sample_of, samples_add
from vectors.store import leases, recovery

ROWS = 400
Measure = Callable[..., list[RecallMeasure]]


@pytest.fixture
def books(shard, batch) -> Namespace:
    """A namespace of 400 rows, all in one segment."""
    shard.queries.upsert_many(batch(0, ROWS, dimension=6), namespace="books")
    shard.checkpoint()
    return Namespace.objects.get(name="books")


@pytest.fixture
def measure(shard, books, monkeypatch) -> Measure:
    """Measure with an index that sees some of every ten rows; all of them unless it is said."""

    def run(*, sees: int = 10, only: list[str] | None = None) -> list[RecallMeasure]:
        with blinkers_on(monkeypatch, sees=sees):
            return measuring.recall_measure(shard.head, owner="test", only=only)

    return run


def ask(namespace: Namespace, count: int) -> np.ndarray:
    """Note queries as real ones."""
    queries = np.random.default_rng(5).standard_normal((count, 6)).astype(np.float32)
    samples_add(namespace.uid, list(queries))
    return queries


def wishes(shard: Shard) -> list[str]:
    return [wish.reason for wish in requests.pending(shard.head.pk).values()]


class TestComparing:
    def view(self, shard: Shard, monkeypatch, sees: int):
        with blinkers_on(monkeypatch, sees=sees):
            view = recovery.open_shard(shard.head.pk).engine.view("books")
        assert view is not None
        return view

    def test_an_index_that_sees_everything_finds_everything(self, shard, books, monkeypatch):
        found = compared(self.view(shard, monkeypatch, 10), ask(books, 50), recall=0.99)

        assert found is not None
        assert (found.recall, found.queries) == (1.0, 50)
        assert not found.is_short(0.99)

    def test_one_that_sees_six_of_ten_rows_finds_about_as_many_of_the_neighbours(self, shard, books, monkeypatch):
        view, queries = self.view(shard, monkeypatch, 6), ask(books, 200)
        found = compared(view, queries, recall=0.99)

        # Counted by hand: which of the ten nearest, by float64 cosine, are rows that it sees.
        part = view.frozen[0].part
        matrix = np.asarray(part.matrix, dtype=np.float64)
        scores = (queries.astype(np.float64) @ matrix.T) / np.linalg.norm(matrix, axis=1)
        nearest = np.argsort(-scores, axis=1)[:, :10]
        assert found is not None
        assert found.recall == pytest.approx(np.mean(nearest % 10 < 6), abs=1e-9)
        assert found.error == pytest.approx(np.std(np.mean(nearest % 10 < 6, axis=1)) / np.sqrt(200), rel=1e-6)
        assert found.is_short(0.99)

    def test_a_row_is_not_counted_as_its_own_neighbour(self, shard, books, monkeypatch):
        view = self.view(shard, monkeypatch, 6)
        seen = np.asarray(view.frozen[0].part.matrix)[np.arange(ROWS) % 10 < 6]
        found = compared(view, seen, recall=0.99, own_rows=True)
        with_themselves = compared(view, seen, recall=0.99)

        assert found is not None
        assert with_themselves is not None
        # Ten neighbours beside itself against nine and itself: seen rows always find themselves.
        assert found.recall == pytest.approx(0.6, abs=0.05)
        assert with_themselves.recall == pytest.approx(0.64, abs=0.05)

    def test_rows_that_are_equal_stand_for_one_another(self, shard, batch, monkeypatch):
        rows = batch(0, 40, dimension=6)
        rows.values[:] = rows.values[0]
        shard.queries.upsert_many(rows, namespace="books")
        shard.checkpoint()
        view = self.view(shard, monkeypatch, 5)

        assert compared(view, np.ones((3, 6), np.float32), recall=0.99).recall == 1.0
        assert compared(view, rows.values[:3], recall=0.99, own_rows=True).recall == 1.0

    def test_the_metric_is_the_namespace_s(self, shard, batch, monkeypatch):
        shard.queries.namespace_put("books", dimension=6, metric="l2")
        shard.queries.upsert_many(batch(0, ROWS, dimension=6), namespace="books")
        shard.checkpoint()
        view = self.view(shard, monkeypatch, 6)
        queries = np.random.default_rng(5).standard_normal((200, 6)).astype(np.float32)
        matrix = np.asarray(view.frozen[0].part.matrix, dtype=np.float64)
        nearest = np.argsort(((matrix[np.newaxis] - queries[:, np.newaxis]) ** 2).sum(axis=2), axis=1)[:, :10]

        found = compared(view, queries, recall=0.99)
        assert found is not None
        assert found.recall == pytest.approx(np.mean(nearest % 10 < 6), abs=1e-9)

    def test_rows_that_no_segment_has_need_no_index(self, shard, books, batch, monkeypatch):
        shard.queries.upsert_many(batch(1000, 100, dimension=6), namespace="books")
        view = self.view(shard, monkeypatch, 6)

        assert (indexed_rows(view), view.count) == (ROWS, ROWS + 100)
        assert tuned_recall(view) == pytest.approx(0.9912)

    def test_the_recall_of_tuned_indexes_counts_segments_without_one_as_found(self, shard, books, batch, monkeypatch):
        shard.queries.upsert_many(batch(1000, 100, dimension=6), namespace="books")
        shard.checkpoint()
        with blinkers_on(monkeypatch, sees=6, fewest=200):
            view = recovery.open_shard(shard.head.pk).engine.view("books")

        assert view is not None
        if len(view.frozen) == 1:
            pytest.fail("the two segments were merged: the test needs two")
        assert tuned_recall(view) == pytest.approx((ROWS * 0.9912 + 100) / (ROWS + 100))

    def test_deleted_rows_are_no_queries(self, shard, books, monkeypatch):
        shard.queries.delete(keys=[ids.key_of(number) for number in range(0, ROWS, 2)], namespace="books")
        view = self.view(shard, monkeypatch, 10)
        alive = {bytes(row) for row in np.asarray(view.frozen[0].part.matrix)[view.frozen[0].living]}
        chosen = own_rows_of(view, 50)

        assert len(chosen) == 50
        assert {bytes(row) for row in chosen} <= alive

    def test_time_ends_it_with_what_was_found_so_far(self, shard, books, monkeypatch):
        found = compared(self.view(shard, monkeypatch, 10), ask(books, 100), recall=0.99, limit_s=0.0)

        assert found is not None
        assert found.queries == comparing._QUERIES_AT_ONCE

    @pytest.mark.parametrize(
        ("recall", "error", "is_short"), [(0.985, 0.003, False), (0.98, 0.003, True), (0.99, 0.0, False)]
    )
    def test_short_is_what_chance_does_not_explain(self, recall, error, is_short):
        assert Compared(recall, error, 100).is_short(0.99) is is_short

    def test_few_queries_leave_room_for_chance_even_when_they_agree(self, shard, books, monkeypatch):
        view, queries = self.view(shard, monkeypatch, 10), ask(books, 2)
        found = compared(view, queries, recall=0.9)

        assert found is not None
        assert found.error == pytest.approx(np.sqrt(0.9 * 0.1 / 20))


class TestMeasuring:
    def test_real_queries_are_measured_with_when_there_are_enough(self, measure, books):
        ask(books, 20)
        [found] = measure()

        assert (found.namespace, found.is_real, found.queries, found.recall) == (books, True, 20, 1.0)
        assert (found.target, found.indexed_rows, found.rows, found.is_short) == (0.99, ROWS, ROWS, False)

    def test_rows_are_measured_with_until_there_are(self, measure, books):
        ask(books, 19)
        [found] = measure()

        assert (found.is_real, found.queries) == (False, 100)

    def test_the_index_is_asked_for_what_is_promised(self, shard, books, monkeypatch):
        Namespace.objects.update(recall_target=0.93)
        with blinkers_on(monkeypatch, sees=10) as index:
            measuring.recall_measure(shard.head, owner="test")

        assert index.recalls == {0.93}

    def test_a_namespace_without_an_index_is_left_out(self, shard, books):
        assert measuring.recall_measure(shard.head, owner="test") == []
        assert not RecallMeasure.objects.exists()

    def test_only_those_asked_for_are_measured(self, shard, measure, books, batch):
        shard.queries.upsert_many(batch(0, 50), namespace="other")
        shard.checkpoint()
        other = Namespace.objects.get(name="other")

        assert [found.namespace for found in measure(only=[other.uid])] == [other]
        assert {found.namespace for found in measure()} == {books, other}

    def test_whoever_was_measured_last_comes_last(self, shard, measure, books, batch, monkeypatch):
        shard.queries.upsert_many(batch(0, 50), namespace="other")
        shard.checkpoint()
        measure(only=[Namespace.objects.get(name="other").uid])
        # A clock on which every look takes a minute: there is time for one namespace, not for two.
        monkeypatch.setattr(measuring, "_clock", iter(range(0, 6000, 60)).__next__)

        assert [found.namespace.name for found in measure()] == ["books"]

    def test_a_second_measure_at_the_same_time_leaves_it_to_the_first(self, shard, measure):
        lease = leases.take_lease(f"recall:{shard.head.pk}", "somebody else")
        assert lease is not None
        with lease:
            assert measure() == []
        assert len(measure()) == 1

    def test_a_shortfall_is_logged_noted_and_a_wish_for_new_indexes(self, shard, measure, books, caplog):
        ask(books, 100)
        with caplog.at_level(logging.WARNING, "vectors.measuring"):
            [found] = measure(sees=6)

        assert found.is_short
        assert [item.namespace for item in shortfalls()] == [books]
        assert wishes(shard) == ["measured"]
        assert "recall_short namespace=books" in caplog.text

    def test_a_kept_promise_is_no_wish(self, shard, measure):
        measure()
        assert wishes(shard) == []
        assert shortfalls() == []

    def test_what_stays_short_wishes_ever_more_seldom(self, shard, measure, books):
        wished = []
        for turn in range(1, 10):
            measure(sees=6)
            if wishes(shard):
                wished.append(turn)
            requests.done(shard.head.pk, requests.pending(shard.head.pk).values())

        assert wished == [1, 2, 4, 8]
        measure(sees=10)
        measure(sees=6)
        assert wishes(shard) == ["measured"]

    def test_an_alarm_ends_when_searches_become_exact(self, shard, measure, books):
        measure(sees=6)
        assert shortfalls()
        [found] = measuring.recall_measure(shard.head, owner="test")  # no index any more

        assert (found.recall, found.queries, found.indexed_rows, found.is_short) == (1.0, 0, 0, False)
        assert shortfalls() == []
        assert measuring.recall_measure(shard.head, owner="test") == []

    def test_a_target_of_one_is_not_measured_because_it_is_not_the_index_s_business(self, measure, books):
        Namespace.objects.update(recall_target=1.0)
        assert measure(sees=6) == []

    def test_a_target_lowered_to_what_is_found_ends_the_alarm(self, shard, measure, books):
        measure(sees=6)
        shard.queries.namespace_put("books", recall_target=0.5)
        assert shortfalls() == []

    def test_queries_of_dropped_namespaces_go(self, shard, measure, books, batch):
        shard.queries.upsert_many(batch(0, 1), namespace="gone")
        gone = Namespace.objects.get(name="gone")
        ask(gone, 3)
        shard.queries.namespace_drop("gone")
        measure()
        assert sample_of(gone.uid, 6) is None

    def test_measures_and_wishes_of_dropped_namespaces_go(self, shard, measure, books, batch):
        measure(sees=5)
        assert RecallMeasure.objects.filter(namespace=books).exists()
        assert wishes(shard)
        shard.queries.namespace_drop("books")
        measure()
        assert not RecallMeasure.objects.exists()
        assert not IndexRequest.objects.exists()

    def test_the_history_is_bounded(self, books, monkeypatch):
        monkeypatch.setattr("vectors.recall.measures._HISTORY", 5)
        monkeypatch.setattr("vectors.recall.measures._PRUNE_AT", 8)
        for number in range(20):
            measure_add(
                books, Compared(number / 20, 0.1, 1), target=0.99, is_real=True, indexed_rows=1, rows=1, took_s=0.1
            )
            assert books.recall_measures.count() <= 8
        assert books.recall_measures.first().recall == 0.95


class TestTasks:
    def test_the_round_measures_every_shard_and_outlives_one_that_cannot_be(self, shard, books, monkeypatch):
        ShardHead.objects.create(label="of_another_node", node="x" * 32)
        ShardHead.objects.create(label="shard_1")
        done = []
        original = measuring.recall_measure

        def noted(head: ShardHead, **options: object) -> list[RecallMeasure]:
            done.append(head.label)
            return original(head, **options)

        monkeypatch.setattr(measuring, "recall_measure", noted)
        with blinkers_on(monkeypatch, sees=10):
            tasks.recall_measure()

        assert done == ["of_another_node", "shard_0", "shard_1"]
        assert RecallMeasure.objects.count() == 1

    def test_what_a_person_asks_for_is_measured_alone(self, shard, books, batch, monkeypatch):
        shard.queries.upsert_many(batch(0, 50), namespace="other")
        shard.checkpoint()
        with blinkers_on(monkeypatch, sees=10):
            tasks.recall_measure_now(shard.head.uid, [books.uid])
            tasks.recall_measure_now("0" * 32, [books.uid])

        assert [found.namespace for found in RecallMeasure.objects.all()] == [books]

    def test_beat_measures_every_ten_minutes(self, transactional_db):
        from django_celery_beat.models import PeriodicTask

        from mlvdb_site.schedule import schedule_seed

        PeriodicTask.objects.all().delete()
        schedule_seed()
        entry = PeriodicTask.objects.get(task=tasks.recall_measure.name)
        assert (entry.interval.every, entry.interval.period) == (600, "seconds")
