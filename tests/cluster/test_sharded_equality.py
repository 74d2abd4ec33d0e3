"""A coordinator answers exactly as one node that holds all rows: ties, errors, order, whatever the shards are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.query_processor import ClusterQueryProcessor
from tests.cluster.shards import Coordinator
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor, SearchRequest, VectorBatch

DIMENSION = 3
UUIDS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(6)]
IDS = [*range(-3, 12), "a", "b", "7", "é", *UUIDS]

#: Few values, so that scores tie; the zero vector has no direction.
NUMBERS = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
VALUES = st.lists(NUMBERS, min_size=DIMENSION, max_size=DIMENSION)
METADATA = st.sampled_from(
    [b"{}", b'{"color":"red"}', b'{"color":"blue","price":3}', b'{"price":7.5,"tags":["x","y"]}']
)
FILTERS = st.sampled_from(
    [
        None,
        {"color": "red"},
        {"price__lt": 5},
        {"tags__contains": "x"},
        {"color__isnull": True},
        {"OR": [{"color": "blue"}, {"id__in": [1, "a", UUIDS[0]]}]},
        {"NOT": {"price__gte": 3}},
        {"color": "green"},
    ]
).map(lambda document: None if document is None else parse_filter(document))
ROWS = st.lists(st.tuples(st.sampled_from(IDS), VALUES, METADATA), min_size=1, max_size=12)
KEYS = st.lists(st.sampled_from(IDS).map(ids.key_of), min_size=1, max_size=8)

#: A step: what is done to a query processor in a namespace.
Step = Callable[[Any, str], Any]


def upserting(rows: list[tuple[Any, list[float], bytes]]) -> Step:
    batch = VectorBatch(
        [ids.key_of(row[0]) for row in rows], np.array([row[1] for row in rows], "f4"), [row[2] for row in rows]
    )
    return lambda queries, namespace: written(queries.upsert_many(batch, namespace=namespace))


def written(result: Any) -> Any:
    return list(result.keys), result.count


UPSERTS = ROWS.map(upserting)
DELETES = KEYS.map(lambda keys: lambda queries, namespace: written(queries.delete(keys=keys, namespace=namespace))[1])
FILTER_DELETES = FILTERS.filter(lambda condition: condition is not None).map(
    lambda condition: lambda queries, namespace: queries.delete(filter=condition, namespace=namespace).count
)
PATCHES = st.tuples(st.sampled_from(IDS).map(ids.key_of), METADATA).map(
    lambda change: lambda queries, namespace: written(queries.patch(change[0], metadata=change[1], namespace=namespace))
)
CHANGES = st.lists(st.one_of(UPSERTS, UPSERTS, DELETES, FILTER_DELETES, PATCHES), min_size=1, max_size=6)

SEARCHES = st.builds(
    SearchRequest,
    query=st.one_of(VALUES, VALUES, VALUES, st.just([1.0, 2.0])).map(lambda values: np.array(values, "f4")),
    top_k=st.integers(1, 12),
    metric=st.sampled_from([None, "cosine", "ip", "l2"]),
    filter=FILTERS,
    with_values=st.booleans(),
    with_metadata=st.booleans(),
    score_threshold=st.sampled_from([None, 0.0, 0.5]),
    offset=st.integers(0, 4),
)
BY_ID = st.tuples(SEARCHES, st.sampled_from(IDS)).map(
    lambda pair: replace(pair[0], query=None, key=ids.key_of(pair[1]))
)
ANY_SEARCH = st.one_of(SEARCHES, BY_ID)
READS = st.one_of(
    ANY_SEARCH.map(lambda request: lambda queries, namespace: queries.find_similar(request, namespace=namespace)),
    st.lists(ANY_SEARCH, min_size=1, max_size=4).map(
        lambda requests: lambda queries, namespace: queries.search_batch(requests, namespace=namespace)
    ),
    FILTERS.map(lambda condition: lambda queries, namespace: queries.count(filter=condition, namespace=namespace)),
    KEYS.map(lambda keys: lambda queries, namespace: queries.fetch(keys, namespace=namespace)),
    st.sampled_from(IDS).map(lambda id_: lambda queries, namespace: queries.get(ids.key_of(id_), namespace=namespace)),
    st.builds(
        lambda limit, after, condition, with_values: (
            lambda queries, namespace: queries.scroll(
                namespace=namespace, limit=limit, after=after, filter=condition, with_values=with_values
            )
        ),
        st.integers(1, 25),
        st.one_of(st.none(), st.sampled_from(IDS).map(ids.key_of)),
        FILTERS,
        st.booleans(),
    ),
)


def outcome(step: Step, queries: Any, namespace: str) -> Any:
    """What a step answers, or how it fails, in a form that can be compared."""
    try:
        found = step(queries, namespace)
    except MLVectorDBError as error:
        return type(error), error.message, error.field, error.detail
    return plain(getattr(found, "value", found))


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class Pair:
    """A coordinator, and beside it one shard copy that gets all rows."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.queries = ClusterQueryProcessor()
        self.oracle = LocalQueryProcessor(ShardHead.objects.create(label="oracle").pk)
        self._numbers = itertools.count()

    def namespace(self) -> str:
        """A namespace that nobody has used yet."""
        return f"books-{next(self._numbers)}"

    def same(self, step: Step, namespace: str) -> None:
        """Do a step on both, and compare."""
        assert outcome(step, self.queries, namespace) == outcome(step, self.oracle, namespace)


@pytest.fixture
def pair(coordinator) -> Pair:
    return Pair(coordinator(local=3, remote=1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.sets(st.integers(0, 3), min_size=1),
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(["hash", "round_robin"]),
    changes=CHANGES,
    reads=st.lists(READS, min_size=1, max_size=8),
)
def test_every_answer_is_that_of_one_node(pair, shards, seed, strategy, changes, reads):
    owners = np.random.default_rng(seed).choice(sorted(shards), ids.SLOT_COUNT)
    pair.coordinator.spread(owners)
    pair.coordinator.change(strategy=strategy)
    namespace = pair.namespace()

    for step in changes:
        pair.same(step, namespace)
    for read in reads:
        pair.same(read, namespace)


def test_pages_of_many_rows_are_those_of_one_node(pair):
    batch = VectorBatch(
        [ids.key_of(number * 37 % 4001) for number in range(2000)],
        np.arange(2000 * DIMENSION, dtype="f4").reshape(-1, DIMENSION),
        [b'{"n":%d}' % (number % 5) for number in range(2000)],
    )
    namespace = pair.namespace()
    pair.same(lambda queries, name: written(queries.upsert_many(batch, namespace=name)), namespace)

    for limit, condition in itertools.product((1, 7, 300, 1999, 2000, 2001, 5000), (None, parse_filter({"n": 3}))):
        pair.same(
            lambda queries, name, limit=limit, condition=condition: queries.scroll(
                namespace=name, limit=limit, filter=condition
            ),
            namespace,
        )
        pair.same(
            lambda queries, name, limit=limit, condition=condition: queries.scroll(
                namespace=name, limit=limit, after=ids.key_of(1000), filter=condition
            ),
            namespace,
        )


def test_a_page_asks_each_shard_for_its_share_not_for_all_of_it(pair):
    batch = VectorBatch([ids.key_of(number) for number in range(2000)], np.ones((2000, 3), "f4"), [b"{}"] * 2000)
    pair.queries.upsert_many(batch, namespace="books")
    [remote] = pair.coordinator.remote
    remote.asked.clear()

    page = pair.queries.scroll(namespace="books", limit=1000).value

    assert len(page.records) == 1000
    assert sum(asked.arguments["limit"] for asked in remote.asked) < 500


def test_rows_that_lie_on_one_shard_in_order_make_whole_pages(pair):
    slots = ids.slots_of([ids.key_of(number) for number in range(400)])
    owners = np.arange(ids.SLOT_COUNT) % 4
    owners[slots[:200]] = 0
    pair.coordinator.spread(owners)
    namespace = pair.namespace()
    batch = VectorBatch([ids.key_of(number) for number in range(400)], np.ones((400, 3), "f4"), [b"{}"] * 400)
    pair.same(lambda queries, name: written(queries.upsert_many(batch, namespace=name)), namespace)

    for limit in (50, 199, 200, 201, 399, 400, 401):
        pair.same(lambda queries, name, limit=limit: queries.scroll(namespace=name, limit=limit), namespace)


def test_namespaces_and_totals_are_those_of_one_node(pair):
    for name, count in (("a", 7), ("b", 1)):
        batch = VectorBatch([ids.key_of(number) for number in range(count)], np.ones((count, 3), "f4"), [b"{}"] * count)
        pair.same(lambda queries, name, batch=batch: written(queries.upsert_many(batch, namespace=name)), name)
    pair.same(lambda queries, name: queries.namespace_put(name, dimension=2, metric="l2", picture="2x1").count, "c")
    pair.same(lambda queries, name: queries.namespace_put(name, dimension=5), "a")
    pair.same(lambda queries, name: queries.namespace_put(name), "new")

    def described(queries: Any, _name: str) -> Any:
        return [
            (info.name, info.dimension, info.metric, info.recall_target, info.picture, info.count)
            for info in queries.namespace_details().value
        ]

    def totals(queries: Any, _name: str) -> Any:
        info = queries.storage_info().value
        return info.total_vectors, dict(info.vectors_per_namespace)

    for read in (described, totals, lambda queries, _name: queries.list_namespaces()):
        pair.same(read, "a")
    pair.same(lambda queries, name: queries.namespace_drop(name).count, "a")
    pair.same(lambda queries, name: queries.namespace_drop(name), "a")
    for read in (described, totals, lambda queries, name: queries.count(namespace=name)):
        pair.same(read, "a")
    other = VectorBatch([ids.key_of(1)], np.ones((1, 5), "f4"), [b"{}"])
    pair.same(lambda queries, name: written(queries.upsert_many(other, namespace=name)), "a")
    pair.same(lambda queries, name: queries.scroll(namespace=name, limit=10), "a")


def test_rows_of_another_dimension_are_refused_as_by_one_node(pair):
    namespace = pair.namespace()
    first, other = (VectorBatch([ids.key_of(1)], np.ones((1, size), "f4"), [b"{}"]) for size in (3, 4))
    for batch in (first, other):
        pair.same(lambda queries, name, batch=batch: written(queries.upsert_many(batch, namespace=name)), namespace)
