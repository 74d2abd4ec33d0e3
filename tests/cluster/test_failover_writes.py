"""Writes through a coordinator while a shard is given to another node: none is acknowledged that may be lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from cluster.models import Shard, ShardCopy
from cluster.query_processor import ClusterQueryProcessor, remote
from cluster.query_processor.errors import PartialWrite, ShardUnavailable
from cluster.query_processor.sharded import writes
from cluster.replication import knocks
from cluster.states import FailoverState
from cluster.transport import wire
from tests.cluster.pauses import on_first_pause
from tests.cluster.shards import Coordinator, RemoteShard, rows
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.errors import NotPrimary, Unavailable, VectorNotFound
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor, RequestOptions

NAMESPACE = "books"
SOON = RequestOptions(timeout_s=0.5)


class Moving:
    """A coordinator with one local shard and `remote_0`, which `give` gives to another node, as a failover does."""

    def __init__(self, coordinator: Callable[..., Coordinator], queries: ClusterQueryProcessor) -> None:
        self.shards = coordinator(local=1, remote=1)
        self.queries = queries
        self.former = self.shards.remote[0]
        head = ShardHead.objects.create(label="successor")
        self.successor = RemoteShard(self.former.uid, head.pk)
        self.shards.remote.append(self.successor)
        self.there, self.here = self.shards.ids_of("remote_0")[0], self.shards.ids_of("shard_0")[0]

    def give(self) -> None:
        self.shards.shard("remote_0", url=self.successor.url, failover="", node_epoch=self.shards.epoch + 1)

    def fail_over(self, state: FailoverState = FailoverState.RUNNING) -> None:
        self.shards.shard("remote_0", failover=state, node_epoch=self.shards.epoch + 1)

    def has(self, processor: LocalQueryProcessor, key: int) -> bool:
        try:
            processor.get(ids.key_of(key), namespace=NAMESPACE)
        except VectorNotFound:
            return False
        return True


@pytest.fixture
def queries() -> ClusterQueryProcessor:
    return ClusterQueryProcessor()


@pytest.fixture
def looked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The shards whose primary was to be looked for."""
    found: list[int] = []
    monkeypatch.setattr(knocks, "publish", lambda _task, *number: not found.extend(number))
    knocks._looked_at.clear()
    yield found
    knocks._looked_at.clear()


@pytest.fixture
def moving(coordinator, queries: ClusterQueryProcessor, looked_for: list[int]) -> Moving:
    made = Moving(coordinator, queries)
    queries.upsert_many(rows(made.there, made.here), namespace=NAMESPACE)
    return made


def test_what_the_former_node_still_answers_is_repeated_at_its_successor(moving: Moving) -> None:
    def answer_late(_asked, do):
        answer = do()
        moving.give()
        return answer

    moving.former.behaviour = answer_late

    result = moving.queries.upsert_many(rows(moving.there, moving.here, value=2.0), namespace=NAMESPACE)

    assert len(result.keys) == 2
    assert moving.has(moving.successor.processor, moving.there)
    # The part of the other shard counts, and is not sent again.
    assert len(moving.former.asked) == 2


def test_generated_ids_that_the_former_node_has_taken_are_kept(moving: Moving) -> None:
    def answer_late(_asked, do):
        answer = do()
        moving.give()
        return answer

    moving.former.behaviour = answer_late

    result = moving.queries.upsert_many(rows(*[None] * 20), namespace=NAMESPACE)

    first = moving.former.asked[-1].arguments["batch"].keys
    assert set(first) <= set(result.keys)
    assert moving.successor.asked[-1].arguments["batch"].keys == first


def test_a_write_that_was_void_and_could_not_be_repeated_is_not_said_to_be_refused(moving: Moving) -> None:
    def answer_late(_asked, do):
        answer = do()
        moving.fail_over()
        return answer

    moving.former.behaviour = answer_late

    with pytest.raises(PartialWrite) as raised:
        moving.queries.upsert_many(rows(moving.there), namespace=NAMESPACE, options=SOON)

    assert raised.value.detail["shards"]["remote_0"]["status"] == "unknown"


def test_a_lost_answer_of_the_former_node_is_repeated_as_well(moving: Moving) -> None:
    def hang_up(_connection, _request):
        moving.give()
        return True

    moving.former.script = hang_up

    assert moving.queries.delete(keys=[ids.key_of(moving.there)], namespace=NAMESPACE).count == 0
    assert moving.successor.asked


def test_writes_wait_while_a_copy_takes_the_place_of_a_dead_node(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving.fail_over()
    asked = len(moving.former.asked)
    pauses = on_first_pause(monkeypatch, writes, moving.give)

    moving.queries.upsert_many(rows(moving.there, value=3.0), namespace=NAMESPACE)

    assert pauses
    assert moving.has(moving.successor.processor, moving.there)
    assert len(moving.former.asked) == asked


def test_rows_that_get_their_ids_here_do_not_wait(moving: Moving) -> None:
    moving.fail_over()
    began = time.monotonic()

    result = moving.queries.upsert_many(rows(*[None] * 20), namespace=NAMESPACE)

    assert time.monotonic() - began < 0.5
    assert {moving.shards.owner_of(ids.id_of(key)) for key in result.keys} == {"shard_0"}


def test_a_write_that_waited_in_vain_says_that_nothing_was_written(moving: Moving) -> None:
    moving.fail_over()

    with pytest.raises(ShardUnavailable) as raised:
        moving.queries.upsert_many(rows(moving.there), namespace=NAMESPACE, options=SOON)

    assert raised.value.status == 503
    assert "a copy is taking its place" in raised.value.message


def test_nobody_waits_where_no_copy_could_take_the_place(moving: Moving) -> None:
    moving.fail_over(FailoverState.STUCK)
    began = time.monotonic()

    with pytest.raises(ShardUnavailable, match="no copy could take its place"):
        moving.queries.upsert_many(rows(moving.there), namespace=NAMESPACE)
    with pytest.raises(ShardUnavailable):
        moving.queries.get(ids.key_of(moving.there), namespace=NAMESPACE)

    assert time.monotonic() - began < 1.0


def test_a_node_that_is_not_the_primary_any_more_is_asked_once_and_its_successor_looked_for(
    moving: Moving, looked_for: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def demoted(_asked, _do):
        raise NotPrimary("another node is", detail={"primary_url": moving.successor.url})

    asked = len(moving.former.asked)
    moving.former.behaviour = demoted
    on_first_pause(monkeypatch, writes, moving.give)

    moving.queries.upsert_many(rows(moving.there, value=3.0), namespace=NAMESPACE)

    assert moving.has(moving.successor.processor, moving.there)
    assert len(moving.former.asked) == asked + 1
    assert looked_for == [Shard.objects.get(label="remote_0").pk]


def test_a_read_that_meets_a_demoted_node_is_no_redirect(moving: Moving, looked_for: list[int]) -> None:
    def demoted(_asked, _do):
        raise NotPrimary("another node is", detail={"primary_url": moving.successor.url})

    moving.former.behaviour = demoted

    with pytest.raises(ShardUnavailable):
        moving.queries.get(ids.key_of(moving.there), namespace=NAMESPACE)
    assert looked_for


def test_a_node_that_is_silent_has_the_nodes_probed_soon_and_seldom(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[str] = []
    monkeypatch.setattr(knocks, "publish", lambda task, *_ids: not tasks.append(task))
    monkeypatch.setattr(knocks, "_probed_at", float("-inf"))
    moving.former.script = lambda connection, _request: connection.hold() or True

    for _ in range(2):
        with pytest.raises(Unavailable):
            moving.queries.get(ids.key_of(moving.there), namespace=NAMESPACE, options=SOON)

    assert tasks == [knocks.SHARD_HEALTH_TASK]


def test_a_delete_by_filter_is_done_again_where_the_node_has_changed(moving: Moving) -> None:
    def answer_late(_asked, do):
        answer = do()
        moving.give()
        return answer

    moving.former.behaviour = answer_late

    moving.queries.delete(filter=parse_filter({"NOT": {"a": "b"}}), namespace=NAMESPACE)

    assert [asked.operation for asked in moving.successor.asked] == ["delete"]


# -- copies that lag ---------------------------------------------------------------------------------------------


def test_a_copy_that_lags_is_out_of_sync_before_the_write_is_acknowledged(moving: Moving) -> None:
    shard = Shard.objects.get(label="remote_0")
    for name in ("near", "far"):
        ShardCopy.objects.create(shard=shard, name=name, url=f"http://{name}.test:8000")

    def answer(connection, request):
        if not request.target.partition("?")[0].endswith("/write"):
            return False
        asked = wire.read_of(request.body)
        done = getattr(moving.former.processor, asked.operation)(**asked.arguments, options=asked.options)
        connection.answer(wire.write_answer_body(done), headers=f"{remote.LAGGING_HEADER}: far\r\n")
        return True

    moving.former.script = answer

    moving.queries.upsert_many(rows(moving.there), namespace=NAMESPACE)

    assert dict(ShardCopy.objects.values_list("name", "in_sync")) == {"near": True, "far": False}
