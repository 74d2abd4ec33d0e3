"""Wishes for new indexes: who makes them, who sees them, and when they are forgotten."""

from __future__ import annotations

import pytest

from vectors.engine.operations import NamespacePut
from vectors.models import IndexRequest, Namespace
from vectors.recall import requests
from vectors.store.log import Entry
from vectors.store.namespace_rows import namespace_follow


@pytest.fixture
def books(shard) -> Namespace:
    shard.queries.namespace_put("books", dimension=4, recall_target=0.95)
    return Namespace.objects.get(name="books")


def reasons(shard) -> dict[str, str]:
    """Reasons by uid of the namespace."""
    return {uid: wish.reason for uid, wish in requests.pending(shard.head.pk).items()}


def test_a_new_namespace_wishes_for_nothing(shard, books):
    assert reasons(shard) == {}


def test_a_raised_target_is_a_wish(shard, books):
    shard.queries.namespace_put("books", recall_target=0.99)
    assert reasons(shard) == {books.uid: "target"}


def test_a_lowered_or_repeated_target_and_another_change_are_none(shard, books):
    shard.queries.namespace_put("books", recall_target=0.9)
    shard.queries.namespace_put("books", recall_target=0.9)
    shard.queries.namespace_put("books", picture="2x2")
    assert reasons(shard) == {}


def test_a_copy_that_gets_the_change_with_the_log_wishes_too(shard, books):
    put = NamespacePut("books", 4, "cosine", 0.99, "")
    namespace_follow(shard.head.pk, Entry(9, 1, books.uid, put.kind, b"", 0), put)
    assert reasons(shard) == {books.uid: "target"}


def test_what_was_heeded_is_forgotten(shard, books):
    requests.ask(books, IndexRequest.Reason.ASKED)
    requests.done(shard.head.pk, requests.pending(shard.head.pk).values())
    assert reasons(shard) == {}
    assert not IndexRequest.objects.exists()


def test_a_wish_made_while_an_older_one_is_heeded_stays(shard, books):
    requests.ask(books, IndexRequest.Reason.ASKED)
    seen = requests.pending(shard.head.pk)
    requests.ask(books, IndexRequest.Reason.MEASURED)
    requests.done(shard.head.pk, seen.values())
    assert reasons(shard) == {books.uid: "measured"}


def test_many_wishes_for_one_namespace_are_one_row(shard, books):
    for _ in range(5):
        requests.ask(books, IndexRequest.Reason.MEASURED)
    assert IndexRequest.objects.count() == 1


def test_a_dropped_namespace_wishes_for_nothing(shard, books):
    requests.ask(books, IndexRequest.Reason.ASKED)
    shard.queries.namespace_drop("books")
    assert reasons(shard) == {}


def test_wishes_of_another_copy_are_its_own(shard, books):
    requests.ask(books, IndexRequest.Reason.ASKED)
    assert requests.pending(shard.head.pk + 1) == {}
    requests.done(shard.head.pk + 1, requests.pending(shard.head.pk).values())
    assert reasons(shard) == {books.uid: "asked"}
