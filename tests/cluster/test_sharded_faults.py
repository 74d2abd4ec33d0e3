"""Reads over shards that are down, silent, slow, garbled or refuse: flagged, or refused, and never a silent part."""

from __future__ import annotations

import time

import numpy as np
import pytest
from django.test import Client

from cluster.query_processor import ClusterQueryProcessor, means
from cluster.query_processor.errors import CopyBehind, ShardUnavailable
from cluster.query_processor.sharded import picture as pictures
from cluster.states import PeerHealth
from tests.api.documented import valid
from tests.cluster.shards import Coordinator, labels, rows
from vectors.engine import ids
from vectors.errors import (
    Busy,
    InvalidFilter,
    NotEnoughCopies,
    NotReady,
    ShardDamaged,
    StaleScope,
    TokenLost,
)
from vectors.query_processor import RequestOptions, SearchRequest
from vectors.tokens import parse_token, token_of

NAMESPACE = "books"
SEARCH = SearchRequest(query=np.ones(3, "f4"), top_k=100)
SOON = RequestOptions(timeout_s=0.4)
ROWS = 60


@pytest.fixture
def queries() -> ClusterQueryProcessor:
    return ClusterQueryProcessor()


@pytest.fixture
def shards(coordinator, queries) -> Coordinator:
    """One local and one remote shard, with rows in both."""
    made = coordinator(local=1, remote=1)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    made.remote[0].asked.clear()
    return made


def refuse(shards: Coordinator) -> None:
    shards.remote[0].close()


def be_silent(shards: Coordinator) -> None:
    shards.remote[0].script = lambda connection, _request: connection.hold() or True


def be_garbled(shards: Coordinator) -> None:
    shards.remote[0].script = lambda connection, _request: connection.answer(b"\x00\x01\x02\x03\xc1") or True


def hang_up(shards: Coordinator) -> None:
    shards.remote[0].script = lambda _connection, _request: True


def be_damaged(shards: Coordinator) -> None:
    def damaged(_asked, _do):
        raise ShardDamaged("lost a part")

    shards.remote[0].behaviour = damaged


def be_another_s(shards: Coordinator) -> None:
    def unknown(_asked, _do):
        error = NotReady("not my shard")
        error.code, error.status = "need_placement", 409
        raise error

    shards.remote[0].behaviour = unknown


FAULTS = [refuse, be_silent, be_garbled, hang_up, be_damaged, be_another_s]
READS = {
    "get": lambda queries, shards, options: queries.get(
        ids.key_of(shards.ids_of("remote_0")[0]), namespace=NAMESPACE, options=options
    ),
    "fetch": lambda queries, _shards, options: queries.fetch(
        [ids.key_of(number) for number in range(ROWS)], namespace=NAMESPACE, options=options
    ),
    "count": lambda queries, _shards, options: queries.count(namespace=NAMESPACE, options=options),
    "scroll": lambda queries, _shards, options: queries.scroll(namespace=NAMESPACE, limit=500, options=options),
    "details": lambda queries, _shards, options: queries.namespace_details(options=options),
    "totals": lambda queries, _shards, options: queries.storage_info(options=options),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_search_answers_what_the_others_have_and_says_who_failed(shards, queries, fault):
    fault(shards)

    began = time.monotonic()
    answer = queries.find_similar(SEARCH, namespace=NAMESPACE, options=SOON)

    assert time.monotonic() - began < 1.5
    assert answer.failed == ["remote_0"]
    assert labels(answer.shards) == ["remote_0", "shard_0"]
    assert {shards.owner_of(ids.id_of(hit.key)) for hit in answer.value} == {"shard_0"}
    batch = queries.search_batch([SEARCH, SEARCH], namespace=NAMESPACE, options=SOON)
    assert (batch.failed, [len(hits) for hits in batch.value]) == (["remote_0"], [len(answer.value)] * 2)


def test_an_explained_search_without_a_shard_is_as_the_document_says(shards):
    refuse(shards)

    body = (
        Client()
        .post(f"/search?namespace={NAMESPACE}&explain=1", {"query": [1, 1, 1]}, content_type="application/json")
        .json()
    )

    valid(body, "/search", "post")
    failed = next(shard for shard in body["shards"] if shard["shard"] == "remote_0")
    assert (body["complete"], failed["strategy"], failed["error"]) == (False, "", "shard_unavailable")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("read", READS)
def test_what_may_leave_nothing_out_is_503_and_never_missing(shards, queries, fault, read):
    fault(shards)

    with pytest.raises((ShardUnavailable, ShardDamaged)) as caught:
        READS[read](queries, shards, SOON)

    assert caught.value.status == 503
    assert caught.value.detail["shard"] == "remote_0"


@pytest.mark.parametrize("read", ["fetch", "count", "scroll", "details", "totals"])
def test_a_part_is_answered_where_the_client_accepts_one(shards, queries, read):
    refuse(shards)

    answer = READS[read](queries, shards, RequestOptions(partial=True))

    assert answer.failed == ["remote_0"]
    own = sum(shards.owner_of(number) == "shard_0" for number in range(ROWS))
    if read == "fetch":
        assert (len(answer.value.records), answer.value.missing) == (own, [])
    if read == "count":
        assert answer.value == own
    if read == "scroll":
        assert (len(answer.value.records), answer.value.next_after) == (own, None)


def test_a_shard_that_is_known_to_be_down_is_not_asked(shards, queries):
    shards.shard("remote_0", health=PeerHealth.DEAD)

    assert queries.find_similar(SEARCH, namespace=NAMESPACE).failed == ["remote_0"]
    for read in READS.values():
        with pytest.raises(ShardUnavailable):
            read(queries, shards, RequestOptions())

    assert shards.remote[0].asked == []


def test_rows_of_the_other_shards_are_read_as_ever(shards, queries):
    shards.shard("remote_0", health=PeerHealth.DEAD)
    own = [ids.key_of(number) for number in range(ROWS) if shards.owner_of(number) == "shard_0"]

    assert queries.get(own[0], namespace=NAMESPACE).complete
    assert len(queries.fetch(own, namespace=NAMESPACE).value.records) == len(own)


def test_a_search_by_an_id_whose_shard_cannot_be_asked_is_503(shards, queries):
    shards.shard("remote_0", health=PeerHealth.DEAD)
    [there], [here] = shards.ids_of("remote_0"), shards.ids_of("shard_0")
    by_id = SearchRequest(key=ids.key_of(there))

    for options in (RequestOptions(), RequestOptions(partial=True)):
        with pytest.raises(ShardUnavailable):
            queries.find_similar(by_id, namespace=NAMESPACE, options=options)
    assert queries.find_similar(SearchRequest(key=ids.key_of(here)), namespace=NAMESPACE).failed == ["remote_0"]


def test_a_search_that_may_not_leave_anything_out_is_503(shards, queries):
    shards.shard("remote_0", health=PeerHealth.DEAD)

    with pytest.raises(ShardUnavailable) as caught:
        queries.find_similar(SEARCH, namespace=NAMESPACE, options=RequestOptions(partial=False))
    assert caught.value.retry_after_s == 1


def test_a_part_of_nothing_is_none(shards, queries):
    shards.spread(np.zeros(ids.SLOT_COUNT, dtype=int))
    shards.shard("remote_0", health=PeerHealth.DEAD)

    with pytest.raises(ShardUnavailable):
        queries.find_similar(SEARCH, namespace=NAMESPACE)


def test_a_shard_without_slots_is_not_asked_and_not_missed(shards, queries):
    shards.spread(np.ones(ids.SLOT_COUNT, dtype=int))
    shards.shard("remote_0", health=PeerHealth.DEAD)

    answer = queries.find_similar(SEARCH, namespace=NAMESPACE)

    assert (answer.complete, labels(answer.shards)) == (True, ["shard_0"])


def test_errors_of_the_search_itself_are_those_of_one_node_wherever_they_are_found(shards, queries):
    def refuses(_asked, _do):
        raise InvalidFilter("no such lookup", field="filter")

    shards.remote[0].behaviour = refuses

    with pytest.raises(InvalidFilter) as caught:
        queries.count(namespace=NAMESPACE)
    assert (caught.value.field, caught.value.message) == ("filter", "no such lookup")


@pytest.mark.parametrize("error", [NotEnoughCopies, CopyBehind])
def test_a_level_or_state_that_a_shard_cannot_give_is_not_made_up_for_by_the_others(shards, queries, error):
    def refuses(_asked, _do):
        raise error("1 of 2")

    shards.remote[0].behaviour = refuses

    with pytest.raises(error):
        queries.find_similar(SEARCH, namespace=NAMESPACE, options=RequestOptions(consistency="quorum"))


def test_a_shard_asks_its_copies_itself_so_it_is_told_what_the_client_asks_for(shards, queries):
    options = RequestOptions(consistency="quorum", read_preference="replica", timeout_s=1.5)

    queries.find_similar(SEARCH, namespace=NAMESPACE, options=options)

    asked = shards.remote[0].asked[-1].options
    assert (asked.consistency, asked.read_preference, asked.partial) == ("quorum", "replica", True)
    assert 1 < asked.timeout_s < 1.5
    assert asked.scope is not None
    assert (asked.scope.epoch, asked.scope.owned) == (shards.epoch, None)
    assert asked.scope.namespace is not None
    assert asked.scope.namespace.name == NAMESPACE


# Session tokens.


def test_each_shard_gets_its_own_token_by_whatever_label_it_comes(shards, queries):
    [here], [there] = shards.ids_of("shard_0"), shards.ids_of("remote_0")
    seq = queries.upsert_many(rows(here, there), namespace=NAMESPACE).seq

    swapped = {"remote_0": seq["shard_0"], "shard_0": seq["remote_0"]}
    queries.count(namespace=NAMESPACE, options=RequestOptions(min_seq=swapped))

    asked = shards.remote[0].asked[-1].options
    assert {text: label for label, text in asked.min_seq.items()} == {seq["remote_0"]: "remote_0"}
    assert asked.read_preference is None


def test_a_token_from_before_a_change_of_the_shards_goes_to_the_primaries(shards, queries):
    seq = queries.upsert_many(rows(*range(9)), namespace=NAMESPACE).seq
    shards.change()

    options = RequestOptions(min_seq=seq, read_preference="replica")
    assert queries.count(namespace=NAMESPACE, options=options).value == ROWS

    assert shards.remote[0].asked[-1].options.read_preference == "primary"


def test_a_token_of_a_shard_that_is_no_more_is_no_obstacle_after_the_change(shards, queries):
    gone = token_of("f" * 32, term=1, seq=9, epoch=shards.epoch - 1)

    assert queries.count(namespace=NAMESPACE, options=RequestOptions(min_seq={"shard_9": gone})).value == ROWS
    assert queries.count(namespace=NAMESPACE, options=RequestOptions(min_seq={"shard_0": gone})).value == ROWS


def test_a_token_of_another_shard_under_a_label_of_now_is_lost(shards, queries):
    other = token_of("f" * 32, term=1, seq=9, epoch=shards.epoch)

    with pytest.raises(TokenLost) as caught:
        queries.count(namespace=NAMESPACE, options=RequestOptions(min_seq={"shard_0": other}))
    assert caught.value.field == "min_seq"


def test_a_token_whose_entry_a_shard_has_lost_is_409(shards, queries):
    [here] = shards.ids_of("shard_0")
    token = parse_token(queries.upsert_many(rows(here), namespace=NAMESPACE).seq["shard_0"])

    ahead = RequestOptions(min_seq={"shard_0": str(token._replace(seq=token.seq + 5))})

    with pytest.raises(TokenLost):
        queries.find_similar(SEARCH, namespace=NAMESPACE, options=ahead)


# Slots that change while a request is on its way.


def test_a_shard_whose_slots_have_changed_makes_the_whole_request_begin_again(shards, queries):
    epochs = []

    def stale_once(asked, do):
        epochs.append(asked.options.scope.epoch)
        if len(epochs) == 1:
            shards.change()
            raise StaleScope("older")
        return do()

    shards.remote[0].behaviour = stale_once

    answer = queries.find_similar(SEARCH, namespace=NAMESPACE)

    assert (len(answer.value), answer.complete) == (ROWS, True)
    assert epochs == [shards.epoch - 1, shards.epoch]


def test_slots_that_keep_changing_are_503_at_the_deadline(shards, queries):
    def stale(_asked, _do):
        raise StaleScope("older")

    shards.remote[0].behaviour = stale

    began = time.monotonic()
    with pytest.raises(ShardUnavailable):
        queries.find_similar(SEARCH, namespace=NAMESPACE, options=SOON)
    assert 0.2 < time.monotonic() - began < 1.5


# Threads.


def test_requests_that_wait_for_other_nodes_are_bounded_and_those_of_local_shards_are_not_counted(shards, queries):
    waits = means.means().waits
    taken = [waits.slot() for _ in range(waits.limit)]
    for slot in taken:
        slot.__enter__()
    try:
        with pytest.raises(Busy):
            queries.count(namespace=NAMESPACE)
        with pytest.raises(Busy):
            queries.upsert_many(rows(*range(10)), namespace=NAMESPACE)
        [here] = shards.ids_of("shard_0")
        assert queries.get(ids.key_of(here), namespace=NAMESPACE).complete
        queries.upsert_many(rows(here), namespace=NAMESPACE)
    finally:
        for slot in taken:
            slot.__exit__(None, None, None)


def test_a_request_counts_once_however_many_shards_it_waits_for(coordinator, queries, monkeypatch):
    coordinator(local=2, remote=2)
    queries.upsert_many(rows(*range(ROWS)), namespace=NAMESPACE)
    waits = means.means().waits
    taken = [waits.slot() for _ in range(waits.limit - 1)]
    for slot in taken:
        slot.__enter__()
    try:
        assert queries.count(namespace=NAMESPACE, options=RequestOptions(consistency="all")).value == ROWS
    finally:
        for slot in taken:
            slot.__exit__(None, None, None)


def test_a_node_whose_shards_are_not_known_yet_is_not_ready(head):
    with pytest.raises(NotReady):
        pictures.Picture.now(RequestOptions(), time.monotonic() + 1)
