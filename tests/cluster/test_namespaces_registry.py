"""Namespaces of a coordinator: made once for all shards, changed and ended on all, now or when they are back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from cluster.models import NamespaceErrand, Shard, ShardedNamespace
from cluster.services import namespace_errands, namespaces, sharding_assignments
from cluster.services.namespace_errands import NamespaceChange, errands_deliver_pending
from cluster.services.namespaces import (
    namespace_change,
    namespace_create,
    namespace_drop,
    namespace_ensure,
    namespace_list,
    namespace_put,
    namespace_resolve,
    namespaces_by_uid,
)
from cluster.services.sharding import shard_add, sharding_enable
from tests.cluster.standin_node import StandInNode
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import Conflict, DimensionMismatch, InvalidInput, MLVectorDBError, NamespaceNotFound
from vectors.models import ShardHead
from vectors.namespace_uids import is_later

Nodes = Callable[..., StandInNode]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, NamespaceChange]]:
    """What the copies of this node were told, as (copy, change)."""
    told: list[tuple[int, NamespaceChange]] = []
    monkeypatch.setattr(
        namespace_errands,
        "changes_take",
        lambda shard_id, changes: told.extend((shard_id, change) for change in changes),
    )
    monkeypatch.setattr(sharding_assignments, "publish", lambda *_task: True)
    return told


@pytest.fixture
def remote(head: ShardHead, nodes: Nodes, here: object) -> StandInNode:
    """A node that is the shard `shard_r` of this one, beside `shard_0` here."""
    sharding_enable(strategy="hash", shards=1, actor="test")
    node = nodes()
    shard_add(label="shard_r", url=node.url, rebalance=False, actor="test")
    return node


def test_a_namespace_is_made_by_its_first_write_and_found_by_the_next(remote: StandInNode) -> None:
    assert namespace_resolve("books") is None

    spec = namespace_ensure("books", dimension=3)

    assert (spec.name, spec.dimension, spec.metric) == ("books", 3, "cosine")
    assert namespace_ensure("books", dimension=3) == spec
    assert namespace_resolve("books") == spec
    assert namespace_list() == [spec]
    assert remote.namespace_changes == []


def test_a_write_of_another_dimension_is_refused(remote: StandInNode) -> None:
    namespace_ensure("books", dimension=3)

    with pytest.raises(DimensionMismatch):
        namespace_ensure("books", dimension=4)


def test_of_two_first_writes_with_different_dimensions_one_wins(remote: StandInNode) -> None:
    together = threading.Barrier(2)
    outcomes: list[NamespaceSpec | MLVectorDBError] = []

    def write(dimension: int) -> None:
        try:
            together.wait(10)
            outcomes.append(namespace_ensure("books", dimension=dimension))
        except MLVectorDBError as error:
            outcomes.append(error)
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(dimension,)) for dimension in (3, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)

    [winner] = [outcome for outcome in outcomes if isinstance(outcome, NamespaceSpec)]
    [loser] = [outcome for outcome in outcomes if isinstance(outcome, MLVectorDBError)]
    assert isinstance(loser, DimensionMismatch)
    assert ShardedNamespace.objects.get().dimension == winner.dimension


def test_what_was_looked_up_is_not_asked_for_again_until_something_changes(
    remote: StandInNode, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    namespace_ensure("books", dimension=3)
    namespace_resolve("books")
    namespace_resolve("songs")

    # The marker is asked past Django.
    with django_assert_num_queries(0):
        assert namespace_resolve("books") is not None
        assert namespace_resolve("songs") is None

    namespace_ensure("songs", dimension=2)
    assert namespace_resolve("songs") is not None


def test_making_the_same_namespace_again_changes_nothing(remote: StandInNode) -> None:
    spec, is_new = namespace_create("books", dimension=3, metric="l2", actor="test")
    again, is_new_again = namespace_create("books", dimension=3, metric="l2", actor="test")

    assert (is_new, is_new_again, again) == (True, False, spec)
    with pytest.raises(Conflict):
        namespace_create("books", dimension=4, actor="test")
    with pytest.raises(Conflict):
        namespace_create("books", dimension=3, metric="ip", actor="test")


def test_bad_attributes_are_refused(remote: StandInNode) -> None:
    for wrong in ({"dimension": 0}, {"metric": "manhattan"}, {"recall_target": 2.0}, {"picture": "2x2"}):
        with pytest.raises(InvalidInput):
            namespace_put("books", **{"dimension": 3, "actor": "test", **wrong})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        namespace_put("books", actor="test")
    with pytest.raises(InvalidInput):
        namespace_put("vectors", dimension=3, actor="test")

    assert not ShardedNamespace.objects.exists()


def test_a_change_is_told_to_all_shards(remote: StandInNode, here: list[tuple[int, NamespaceChange]]) -> None:
    spec = namespace_ensure("books", dimension=4)

    changed = namespace_change("books", recall_target=0.9, picture="2x2", actor="test")

    assert (changed.uid, changed.recall_target, changed.picture) == (spec.uid, 0.9, "2x2")
    [told] = remote.namespace_changes
    assert (told["uid"], told["recall_target"], told["picture"], told["has_ended"]) == (spec.uid, 0.9, "2x2", False)
    assert [change.spec for _, change in here] == [changed]
    assert not NamespaceErrand.objects.exists()
    with pytest.raises(NamespaceNotFound):
        namespace_change("songs", recall_target=0.9, actor="test")


def test_a_change_to_what_it_is_already_tells_nobody(remote: StandInNode) -> None:
    namespace_ensure("books", dimension=4)

    namespace_put("books", dimension=4, recall_target=0.99, actor="test")

    assert remote.namespace_changes == []


def test_a_dropped_namespace_ends_here_at_once_and_on_all_shards(
    remote: StandInNode, here: list[tuple[int, NamespaceChange]]
) -> None:
    spec = namespace_ensure("books", dimension=3)

    assert namespace_drop("books") == spec

    assert namespace_resolve("books") is None
    assert namespaces_by_uid([spec.uid]) == {}
    assert [(told["uid"], told["has_ended"]) for told in remote.namespace_changes] == [(spec.uid, True)]
    assert [(change.spec.uid, change.has_ended) for _, change in here] == [(spec.uid, True)]
    with pytest.raises(NamespaceNotFound):
        namespace_drop("books")


def test_a_namespace_made_again_after_its_end_is_another(remote: StandInNode) -> None:
    first = namespace_ensure("books", dimension=3)
    namespace_drop("books")

    second = namespace_ensure("books", dimension=5)

    assert second.uid != first.uid
    assert namespace_list() == [second]


def test_a_namespace_made_again_is_later_than_all_before_it_though_the_clock_goes_back(
    remote: StandInNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = []
    for dimension, now_s in ((3, 1_800_000_000), (4, 1_700_000_000), (5, 1_750_000_000), (6, 1_900_000_000)):
        monkeypatch.setattr(namespaces.timezone, "now", lambda now_s=now_s: datetime.fromtimestamp(now_s, UTC))
        specs.append(namespace_ensure("books", dimension=dimension))
        namespace_drop("books")

    assert all(is_later(later.uid, earlier.uid) for earlier, later in pairwise(specs))


def test_a_shard_that_was_down_hears_of_the_end_when_it_is_back(remote: StandInNode) -> None:
    spec = namespace_ensure("books", dimension=3)
    remote.silent = True
    namespace_drop("books")
    errand = NamespaceErrand.objects.get()
    assert (errand.shard.label, errand.attempts) == ("shard_r", 1)
    assert errand.last_error.startswith("peer_silent")
    assert Shard.objects.get(label="shard_r").last_error.startswith("peer_silent")

    remote.silent = False
    errands_deliver_pending()

    assert [(told["uid"], told["has_ended"]) for told in remote.namespace_changes] == [(spec.uid, True)]
    assert not NamespaceErrand.objects.exists()


def test_a_late_errand_tells_what_the_namespace_is_by_then(remote: StandInNode) -> None:
    namespace_ensure("books", dimension=3)
    remote.silent = True
    namespace_change("books", recall_target=0.5, actor="test")
    namespace_drop("books")

    remote.silent = False
    errands_deliver_pending()

    assert [told["has_ended"] for told in remote.namespace_changes] == [True]


def test_an_errand_written_during_a_delivery_stays(remote: StandInNode, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace_ensure("books", dimension=3)
    row = ShardedNamespace.objects.get()

    def change_meanwhile(shard_id: int, changes: object) -> None:
        monkeypatch.setattr(namespace_errands, "changes_take", lambda *_told: None)
        namespaces._errands_write(row)

    monkeypatch.setattr(namespace_errands, "changes_take", change_meanwhile)
    namespace_change("books", recall_target=0.5, actor="test")

    assert NamespaceErrand.objects.filter(shard__label="shard_0").count() == 1


def test_there_are_not_more_namespaces_than_the_setting_says(remote: StandInNode, settings: Any) -> None:
    settings.MLVDB_MAX_NAMESPACES = 1
    namespace_ensure("books", dimension=3)

    with pytest.raises(Conflict):
        namespace_ensure("songs", dimension=3)


@pytest.mark.parametrize("part", [None, {}, {"uid": 7}, {"uid": "1" * 32, "name": "b", "metric": "l2", "picture": ""}])
def test_what_is_no_change_of_a_namespace_is_refused(part: object) -> None:
    with pytest.raises(InvalidInput):
        NamespaceChange.of(part)


def test_a_change_is_read_as_it_was_written() -> None:
    change = NamespaceChange(NamespaceSpec("1" * 32, "books", 4, "l2", 0.9, "2x2"), has_ended=True)

    assert NamespaceChange.of(change.to_document()) == change
