"""Writes of a coordinator: to the shards their ids lead to, all said of each, nothing lost and nothing misplaced."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from cluster.query_processor import ClusterQueryProcessor
from cluster.query_processor.errors import PartialWrite, ShardUnavailable, SlotsMoving
from cluster.states import PeerHealth
from tests.cluster.shards import Coordinator, labels, rows
from vectors.engine import ids
from vectors.engine.filters import parse_filter
from vectors.errors import (
    DimensionMismatch,
    MemoryLimitReached,
    NamespaceNotFound,
    NotEnoughCopies,
    NotPrimary,
    SlotsClosed,
    StaleScope,
    VectorNotFound,
)
from vectors.query_processor import DEFAULT_OPTIONS, RequestOptions, VectorBatch
from vectors.tokens import parse_token

NAMESPACE = "books"
SOON = RequestOptions(timeout_s=0.4)


@pytest.fixture
def queries() -> ClusterQueryProcessor:
    return ClusterQueryProcessor()


def upsert(queries, *keys, options=DEFAULT_OPTIONS, **more):
    return queries.upsert_many(rows(*keys, **more), namespace=NAMESPACE, options=options)


def fetched(queries) -> list[object]:
    page = queries.scroll(namespace=NAMESPACE, limit=1000).value
    return [ids.id_of(record.key) for record in page.records]


def owners(coordinator: Coordinator, keys) -> Counter[str]:
    return Counter(coordinator.owner_of(ids.id_of(key)) for key in keys)


def test_rows_go_to_the_shards_that_their_ids_lead_to_in_one_part_each(coordinator, queries):
    shards = coordinator(local=1, remote=1)

    upsert(queries, *range(100))

    [remote] = shards.remote
    [write] = remote.asked
    there = [ids.id_of(key) for key in write.arguments["batch"].keys]
    assert there == [number for number in range(100) if shards.owner_of(number) == "remote_0"]
    assert fetched(queries) == list(range(100))


def test_tokens_are_the_coordinator_s_one_for_each_shard_that_has_written(coordinator, queries):
    shards = coordinator(local=2, remote=1)

    result = upsert(queries, *shards.ids_of("remote_0"), *shards.ids_of("shard_1"))

    assert set(result.seq) == {"remote_0", "shard_1"}
    for label, text in result.seq.items():
        token = parse_token(text)
        assert token.epoch == shards.epoch
        uid, term, seq = result.positions[label]
        assert (token.names(uid), token.term, token.seq) == (True, term, seq)


def test_of_a_repeated_id_the_last_wins_and_all_keys_are_answered_in_order(coordinator, queries):
    coordinator(local=3)
    batch = VectorBatch(
        [ids.key_of(number) for number in (1, 2, 1, 3, 2)], np.arange(15, dtype="f4").reshape(5, 3), [b"{}"] * 5
    )

    result = queries.upsert_many(batch, namespace=NAMESPACE)

    assert ([ids.id_of(key) for key in result.keys], result.count) == ([1, 2, 1, 3, 2], 5)
    assert queries.get(ids.key_of(2), namespace=NAMESPACE).value.values.tolist() == [12, 13, 14]


def test_generated_ids_are_spread_by_slots_or_by_turn(coordinator, queries):
    shards = coordinator(local=3)
    shards.spread((np.arange(ids.SLOT_COUNT) % 4).clip(max=2))

    by_slots = owners(shards, upsert(queries, *[None] * 1000).keys)
    shards.change(strategy="round_robin")
    by_turn = owners(shards, [key for _ in range(9) for key in upsert(queries, None).keys])
    in_one = owners(shards, upsert(queries, *[None] * 300).keys)

    assert by_slots["shard_2"] > by_slots["shard_0"] + 100
    assert by_turn == {"shard_0": 3, "shard_1": 3, "shard_2": 3}
    assert in_one == {"shard_0": 100, "shard_1": 100, "shard_2": 100}


@pytest.mark.parametrize("strategy", ["hash", "round_robin"])
def test_generated_ids_leave_out_a_shard_that_is_down(coordinator, queries, strategy):
    shards = coordinator(local=2, remote=1, strategy=strategy)
    shards.shard("remote_0", health=PeerHealth.DEAD)

    result = upsert(queries, *[None] * 100)

    assert set(owners(shards, result.keys)) == {"shard_0", "shard_1"}
    assert shards.remote[0].asked == []


def test_an_idempotency_key_makes_the_same_ids_whichever_shards_are_down(coordinator, queries):
    shards = coordinator(local=2, remote=1)
    options = RequestOptions(idempotency_key="k1")

    first = upsert(queries, None, None, None, options=options)
    again = upsert(queries, None, None, None, options=options)

    assert first.keys == again.keys
    assert len(fetched(queries)) == 3
    shards.shard("remote_0", health=PeerHealth.DEAD)
    try:
        keys = upsert(queries, None, None, None, options=options).keys
    except PartialWrite as partial:
        keys = [ids.key_of(text) for text in partial.detail["ids"]]
    except ShardUnavailable as refused:
        keys = [ids.key_of(text) for text in refused.detail["ids"]]
    assert keys == first.keys


def test_a_client_s_id_whose_shard_is_down_is_refused_and_nothing_is_written(coordinator, queries):
    shards = coordinator(local=2, remote=1)
    upsert(queries, 0)
    shards.shard("remote_0", health=PeerHealth.DEAD)
    shards.remote[0].asked.clear()

    [lost] = shards.ids_of("remote_0", start=1)
    with pytest.raises(ShardUnavailable) as caught:
        upsert(queries, lost)

    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    assert caught.value.detail["shard"] == "remote_0"
    assert caught.value.detail["ids"] == [lost]
    assert shards.remote[0].asked == []


def test_a_batch_that_a_shard_has_not_committed_says_so_shard_by_shard_and_can_be_repeated(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    here, there = shards.ids_of("shard_0", 2), shards.ids_of("remote_0", 2)
    shards.shard("remote_0", health=PeerHealth.DEAD)

    with pytest.raises(PartialWrite) as caught:
        upsert(queries, here[0], there[0], here[1], there[1])

    detail = caught.value.detail
    assert detail["ids"] == [here[0], there[0], here[1], there[1]]
    assert detail["failed_ids"] == there
    assert detail["shards"]["shard_0"]["status"] == "committed"
    assert parse_token(detail["shards"]["shard_0"]["seq"]).epoch == shards.epoch
    assert detail["shards"]["remote_0"]["status"] == "refused"
    assert detail["shards"]["remote_0"]["code"] == "shard_unavailable"

    shards.shard("remote_0", health=PeerHealth.ALIVE)
    upsert(queries, *detail["ids"])
    assert fetched(queries) == sorted(here + there)


def test_rows_with_generated_ids_go_elsewhere_when_their_shard_refuses_connections(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    upsert(queries, 0)
    shards.remote[0].close()

    result = upsert(queries, *[None] * 50)

    assert set(owners(shards, result.keys)) == {"shard_0"}
    assert len(set(result.keys)) == 50
    assert set(result.seq) == {"shard_0"}


def test_ids_of_a_client_are_refused_when_their_shard_refuses_connections(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    shards.remote[0].close()
    [here], [there] = shards.ids_of("shard_0"), shards.ids_of("remote_0")

    with pytest.raises(PartialWrite) as caught:
        upsert(queries, here, there, None, None, None, None, None, None)

    assert caught.value.detail["shards"]["remote_0"] == {
        "status": "refused",
        "code": "peer_refused",
        "message": caught.value.detail["shards"]["remote_0"]["message"],
    }
    assert caught.value.detail["failed_ids"] == [there]


def test_a_write_to_one_shard_that_refuses_connections_says_that_the_shard_cannot_be_asked(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    shards.remote[0].close()
    [there] = shards.ids_of("remote_0")

    with pytest.raises(ShardUnavailable) as caught:
        upsert(queries, there)

    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("shard_unavailable", 503, 1)
    assert (caught.value.detail["shard"], caught.value.detail["ids"]) == ("remote_0", [there])


def test_a_write_whose_connection_is_lost_is_sent_again_and_a_delete_is_not(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [remote] = shards.remote
    there = shards.ids_of("remote_0", 3)
    lost = []

    def lose_once(connection, request):
        if lost:
            return False
        lost.append(request)
        remote.script = None
        return True

    remote.script = lose_once
    upsert(queries, *there)
    assert len(lost) == 1

    lost.clear()
    remote.script = lose_once
    with pytest.raises(PartialWrite) as caught:
        queries.delete(keys=[ids.key_of(there[0])], namespace=NAMESPACE)
    assert caught.value.detail["shards"]["remote_0"]["status"] == "unknown"
    assert queries.delete(keys=[ids.key_of(there[0])], namespace=NAMESPACE).count == 1


def test_a_shard_that_says_nothing_until_the_deadline_leaves_it_unknown(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    upsert(queries, 0, 1, 2)
    shards.remote[0].script = lambda connection, _request: connection.hold() or True
    [here], [there] = shards.ids_of("shard_0"), shards.ids_of("remote_0")

    began = time.monotonic()
    with pytest.raises(PartialWrite) as caught:
        upsert(queries, here, there, options=SOON)

    assert time.monotonic() - began < 2
    assert caught.value.detail["shards"]["remote_0"]["status"] == "unknown"
    assert caught.value.detail["shards"]["shard_0"]["status"] == "committed"


def test_a_garbled_answer_leaves_it_unknown(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [there] = shards.ids_of("remote_0")
    shards.remote[0].script = lambda connection, _request: connection.answer(b"\x00\x01\x02\x03\xc1") or True

    with pytest.raises(PartialWrite) as caught:
        upsert(queries, there)

    assert caught.value.detail["shards"]["remote_0"]["status"] == "unknown"
    assert caught.value.detail["shards"]["remote_0"]["code"] == "peer_garbled"


def test_an_error_of_a_lone_shard_that_has_written_nothing_is_answered_as_it_is(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [there] = shards.ids_of("remote_0")

    def full(_asked, _do):
        raise MemoryLimitReached("no room", detail={"limit_bytes": 1})

    shards.remote[0].behaviour = full

    with pytest.raises(MemoryLimitReached) as caught:
        upsert(queries, there)
    assert caught.value.detail["limit_bytes"] == 1


def test_a_level_that_a_shard_has_not_reached_is_not_enough_copies_with_all_ids_and_tokens(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [here], [there] = shards.ids_of("shard_0"), shards.ids_of("remote_0")

    def one_copy(_asked, do):
        result = do()
        raise NotEnoughCopies(
            "1 of 2", detail={"acknowledged": 1, "required": 2, "ids": [there], "seq": dict(result.seq)}
        )

    shards.remote[0].behaviour = one_copy

    with pytest.raises(NotEnoughCopies) as caught:
        upsert(queries, here, there)

    detail = caught.value.detail
    assert (detail["acknowledged"], detail["required"]) == (1, 2)
    assert detail["ids"] == [here, there]
    assert set(detail["seq"]) == {"shard_0", "remote_0"}
    assert {parse_token(token).epoch for token in detail["seq"].values()} == {shards.epoch}
    shards.remote[0].behaviour = None
    assert fetched(queries) == sorted([here, there])


def test_what_a_client_did_wrong_is_found_before_anything_is_written(coordinator, queries):
    shards = coordinator(local=2, remote=1)
    upsert(queries, 0)
    shards.remote[0].asked.clear()

    with pytest.raises(DimensionMismatch):
        upsert(queries, *range(20), dimension=4)
    with pytest.raises(NamespaceNotFound):
        queries.delete(keys=[ids.key_of(1)], namespace="nowhere")
    with pytest.raises(NamespaceNotFound):
        queries.patch(ids.key_of(1), metadata=b"{}", namespace="nowhere")

    assert shards.remote[0].asked == []
    assert fetched(queries) == [0]


def test_a_patch_and_a_delete_of_rows_that_are_not_there_are_answered_as_by_one_node(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [here], [there] = shards.ids_of("shard_0"), shards.ids_of("remote_0")
    upsert(queries, here)

    for absent in (there, shards.ids_of("shard_0", start=here + 1)[0]):
        with pytest.raises(VectorNotFound) as caught:
            queries.patch(ids.key_of(absent), metadata=b'{"a":1}', namespace=NAMESPACE)
        assert (caught.value.field, caught.value.detail) == ("id", {})
        assert queries.delete(keys=[ids.key_of(absent)], namespace=NAMESPACE).count == 0


@pytest.mark.parametrize("error", [SlotsClosed, StaleScope])
def test_rows_that_a_shard_refuses_because_its_slots_have_changed_are_routed_again(coordinator, queries, error):
    shards = coordinator(local=2, remote=1)
    upsert(queries, 0, 1, 2, 3)
    there = shards.ids_of("remote_0", 5, start=10)
    refused = []

    def moved(asked, _do):
        refused.append(asked.options.scope.epoch)
        if len(refused) == 2:
            shards.spread(np.arange(ids.SLOT_COUNT) % 3 % 2 + 1)
        raise error("not mine any more", detail={"slots": []})

    shards.remote[0].behaviour = moved

    result = upsert(queries, *there)

    assert len(refused) == 2
    assert set(result.seq) <= {"shard_0", "shard_1"}
    shards.remote[0].behaviour = None
    answer = queries.fetch([ids.key_of(number) for number in there], namespace=NAMESPACE).value
    assert answer.missing == []


def test_writes_to_closed_slots_wait_and_the_others_do_not_have_to(coordinator, queries):
    shards = coordinator(local=2)
    upsert(queries, 0)
    done = threading.Event()
    with shards.closed(1):
        writer = threading.Thread(target=lambda: (upsert(queries, 1, 2), done.set()))
        writer.start()
        assert not done.wait(0.2)
        upsert(queries, 3, *[None] * 20)
    writer.join(5)

    assert done.is_set()
    assert {1, 2, 3} <= set(fetched(queries))


def test_slots_that_stay_closed_are_503_with_nothing_written(coordinator, queries):
    shards = coordinator(local=2)
    upsert(queries, 0)
    with shards.closed(1), pytest.raises(SlotsMoving) as caught:
        upsert(queries, 1, options=RequestOptions(timeout_s=0.1))

    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("slots_closed", 503, 1)
    assert caught.value.detail["ids"] == [1]
    assert fetched(queries) == [0]


def test_slots_of_several_shards_that_stay_closed_are_503_as_well(coordinator, queries):
    shards = coordinator(local=2)
    keys = shards.ids_of("shard_0") + shards.ids_of("shard_1")
    with shards.closed(*keys), pytest.raises(SlotsMoving) as caught:
        upsert(queries, *keys, options=RequestOptions(timeout_s=0.1))

    assert caught.value.detail["ids"] == keys


def test_closed_slots_beside_rows_that_are_written_make_a_partial_write(coordinator, queries):
    shards = coordinator(local=2)
    [closed], [open_] = shards.ids_of("shard_0"), shards.ids_of("shard_1")
    with shards.closed(closed), pytest.raises(PartialWrite) as caught:
        upsert(queries, closed, open_, options=RequestOptions(timeout_s=1.0))

    assert caught.value.detail["failed_ids"] == [closed]
    assert {label: account["status"] for label, account in caught.value.detail["shards"].items()} == {
        "shard_0": "refused",
        "shard_1": "committed",
    }
    assert caught.value.detail["shards"]["shard_0"]["code"] == "slots_closed"


def test_a_namespace_that_changes_under_a_waiting_write_refuses_the_rest_of_it(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    upsert(queries, 0, 1)
    [here], [there] = shards.ids_of("shard_0", start=5), shards.ids_of("remote_0", start=5)
    refused = []

    def dropped(asked, do):
        if asked.operation != "upsert_many":
            return do()
        if not refused:
            refused.append(asked)
            queries.namespace_drop(NAMESPACE)
            queries.namespace_put(NAMESPACE, dimension=7)
        raise SlotsClosed("moved")

    shards.remote[0].behaviour = dropped

    with pytest.raises(PartialWrite) as caught:
        upsert(queries, here, there)
    assert caught.value.detail["failed_ids"] == [there]
    assert caught.value.detail["shards"]["remote_0"]["code"] == "dimension_mismatch"


def test_a_shard_whose_primary_is_elsewhere_now_is_503_and_not_sent_on_by_clients(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    [there] = shards.ids_of("remote_0")

    def deposed(_asked, _do):
        raise NotPrimary("not me", detail={"primary_url": "http://10.0.0.9"})

    shards.remote[0].behaviour = deposed

    with pytest.raises(ShardUnavailable):
        upsert(queries, there)
    assert shards.owner_of(ids.id_of(upsert(queries, None).keys[0])) == "shard_0"


def test_a_delete_by_filter_is_done_on_every_shard_and_counted(coordinator, queries):
    coordinator(local=2, remote=1)
    upsert(queries, *range(50))
    queries.patch(ids.key_of(7), metadata=b'{"kept":true}', namespace=NAMESPACE)

    result = queries.delete(filter=parse_filter({"kept__isnull": True}), namespace=NAMESPACE)

    assert (result.count, list(result.shards)) == (49, [])
    assert fetched(queries) == [7]


def test_a_delete_by_filter_that_cannot_reach_a_shard_deletes_nothing_unless_a_part_will_do(coordinator, queries):
    shards = coordinator(local=2, remote=1)
    upsert(queries, *range(50))
    shards.shard("remote_0", health=PeerHealth.DEAD)
    everything = parse_filter({"a__isnull": True})

    with pytest.raises(ShardUnavailable):
        queries.delete(filter=everything, namespace=NAMESPACE)
    assert queries.count(namespace=NAMESPACE, options=RequestOptions(partial=True)).value > 0

    result = queries.delete(filter=everything, namespace=NAMESPACE, options=RequestOptions(partial=True))
    shards.shard("remote_0", health=PeerHealth.ALIVE)

    left = fetched(queries)
    assert result.count == 50 - len(left)
    assert {shards.owner_of(number) for number in left} == {"remote_0"}
    assert {account.shard: account.error for account in result.shards} == {
        "remote_0": "shard_unavailable",
        "shard_0": None,
        "shard_1": None,
    }
    assert labels(result.shards) == ["remote_0", "shard_0", "shard_1"]


def test_a_delete_by_filter_is_done_again_everywhere_when_slots_have_changed_under_it(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    upsert(queries, *range(40))
    [remote] = shards.remote
    seen = []

    def stale_once(asked, do):
        seen.append(asked.operation)
        if len(seen) == 1:
            shards.change()
            raise StaleScope("older")
        return do()

    remote.behaviour = stale_once

    assert queries.delete(filter=parse_filter({"a__isnull": True}), namespace=NAMESPACE).count == 40
    assert seen == ["delete", "delete"]


def test_no_shard_that_can_be_written_is_503(coordinator, queries):
    shards = coordinator(local=1, remote=1)
    upsert(queries, 0)
    shards.spread(np.zeros(ids.SLOT_COUNT, dtype=int))
    shards.shard("remote_0", health=PeerHealth.DEAD)

    with pytest.raises(ShardUnavailable) as caught:
        upsert(queries, None)
    assert caught.value.retry_after_s == 1
