"""Reads and writes between nodes: what is packed here is the same there, and what is damaged on the way is refused."""

from __future__ import annotations

import random
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from cluster.transport import wire
from cluster.transport.wire import WireError
from tests.engine.test_filter_documents import FILTERS
from vectors.engine.filters import parse_filter
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import SlotSet
from vectors.query_processor.port import (
    Answer,
    Fetched,
    Hit,
    NamespaceInfo,
    Page,
    Record,
    RequestOptions,
    Scope,
    SearchRequest,
    ShardAccount,
    StorageInfo,
    VectorBatch,
    WriteResult,
)

ACCOUNTS = [
    ShardAccount("shard_0", "replica_1", 3, 1.5, "exact", 7, None),
    ShardAccount("shard_1", "primary", None, error="peer_silent"),
]
OPTIONS = RequestOptions("quorum", "nearest", {"shard_0": "1.0a.2.3"}, 1.25, True, "key")


def records(count: int, dimension: int = 3) -> list[Record]:
    values = np.random.default_rng(count).random((count, dimension), dtype=np.float32)
    return [Record(b"\x03%d" % n, values[n], b'{"n":%d}' % n) for n in range(count)]


def hits(count: int) -> list[Hit]:
    return [Hit(*record, 1 / 3 + number) for number, record in enumerate(records(count))]


BARE = [Hit(b"\x01a", None, None, 0.5), Hit(b"\x01b", None, b"{}", -1e300)]


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        ("get", records(1)[0]),
        ("fetch", Fetched(records(3), [b"\x03gone"])),
        ("fetch", Fetched([], [])),
        ("find_similar", hits(5)),
        ("find_similar", BARE),
        ("find_similar", []),
        ("search_batch", [hits(2), [], hits(3)]),
        ("search_batch", []),
        ("count", 12),
        ("scroll", Page(records(4), b"\x03next")),
        ("scroll", Page([], None)),
        ("scroll", Page([Record(b"\x03a", None, b"{}")], None)),
        ("list_namespaces", ["a", "é"]),
        ("namespace_details", [NamespaceInfo("a", "u", 3, "ip", 0.99, "", 4, 1, 2, 99, None)]),
        ("storage_info", StorageInfo(5, 100, {"a": 5}, {"replication": {"state": "following"}})),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_an_answer_arrives_as_it_was(operation: str, value: Any) -> None:
    sent = Answer(value, ACCOUNTS)

    received = wire.answer_of(operation, wire.answer_body(operation, sent))

    assert type(received.value) is type(value)
    assert plain(received.value) == plain(value)
    assert received.shards == ACCOUNTS


def test_values_arrive_bit_by_bit() -> None:
    values = np.array([0.1, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    sent = Answer([Hit(b"\x01a", values, b"{}", 0.1)], [])

    hit = wire.answer_of("find_similar", wire.answer_body("find_similar", sent)).value[0]

    assert hit.values.dtype == np.float32
    assert hit.values.tobytes() == values.tobytes()
    assert hit.score == 0.1


def test_searches_of_one_batch_with_and_without_values_arrive_as_they_were() -> None:
    sent = Answer([hits(2), BARE, [], hits(1)], [])

    received = wire.answer_of("search_batch", wire.answer_body("search_batch", sent))

    assert plain(received.value) == plain(sent.value)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("get", {"key": b"\x03a", "namespace": "a"}),
        ("fetch", {"keys": [b"\x03a", b"\x01b"], "namespace": "a"}),
        ("count", {"namespace": "a", "filter": None}),
        ("count", {"namespace": "a", "filter": parse_filter({"a__in": [1, 2**70, "x", True]})}),
        ("scroll", {"namespace": "a", "limit": 5, "after": b"\x03a", "filter": None, "with_values": False}),
        ("list_namespaces", {}),
    ],
    ids=str,
)
def test_a_request_arrives_as_it_was(operation: str, arguments: dict[str, Any]) -> None:
    received = wire.read_of(wire.read_request(operation, arguments, OPTIONS, (2, 17)))

    assert received == (operation, arguments, OPTIONS, (2, 17))


def test_searches_arrive_as_they_were() -> None:
    by_query = SearchRequest(
        query=np.array([0.1, 0.2], dtype=np.float32),
        top_k=7,
        metric="l2",
        filter=parse_filter({"a": 1, "NOT": {"id__in": ["x", 2]}}),
        recall=0.9,
        exact=True,
        with_values=False,
        score_threshold=np.float32(0.5),
        offset=3,
    )
    by_key = SearchRequest(key=b"\x03a")

    received = wire.read_of(wire.read_request("search_batch", {"requests": [by_query, by_key], "namespace": "a"}))

    first, second = received.arguments["requests"]
    assert first.query.tobytes() == by_query.query.tobytes()
    assert (first.filter, first.top_k, first.metric, first.offset) == (by_query.filter, 7, "l2", 3)
    assert first.score_threshold == 0.5
    assert second == by_key
    assert received.position is None


@settings(max_examples=200, deadline=None)
@given(FILTERS)
def test_every_filter_arrives_as_it_was(obj: dict[str, Any]) -> None:
    sent = parse_filter(obj)

    received = wire.read_of(wire.read_request("count", {"namespace": "a", "filter": sent}))

    assert repr(received.arguments["filter"].root) == repr(sent.root)


def test_a_request_of_nothing_but_its_name_is_one() -> None:
    assert wire.read_of(msgpack.packb({"op": "position"})).operation == "position"


def odd(operation: str, arguments: Any, options: Any, position: Any) -> bytes:
    body = msgpack.packb([arguments, options, position])
    return msgpack.packb({"op": operation, "body": body, "crc": zlib.crc32(body)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"{}",
        msgpack.packb(7),
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"op": 7}),
        msgpack.packb({"op": "get", "body": b"", "crc": 0}),
        msgpack.packb({"op": "get", "body": "text", "crc": 0}),
        odd("insert", {}, {}, None),
        odd("upsert_many", {"batch": b"rows"}, {}, None),
        odd("upsert_many", {"batch": msgpack.ExtType(6, msgpack.packb([[b"a"], b"", []]))}, {}, None),
        odd("upsert_many", {"batch": msgpack.ExtType(6, msgpack.packb([[b"a"]]))}, {}, None),
        odd("count", {}, {"scope": msgpack.ExtType(5, msgpack.packb([1, b"short", None]))}, None),
        odd("count", {}, {"scope": msgpack.ExtType(5, msgpack.packb(["1", None, None]))}, None),
        odd("count", {}, {"scope": msgpack.ExtType(5, msgpack.packb([1, None, {"nonsense": 1}]))}, None),
        odd("__class__", {}, {}, None),
        odd("get", {"key": "text", "namespace": "a"}, {}, None),
        odd("get", {"key": b"a", "namespace": "a", "options": 1}, {}, None),
        odd("scroll", {"limit": True}, {}, None),
        odd("scroll", {"limit": "5"}, {}, None),
        odd("get", [], {}, None),
        odd("get", {}, {"unknown": 1}, None),
        odd("get", {}, [], None),
        odd("get", {}, {}, 7),
        odd("get", {}, {}, ["a", 1]),
        odd("count", {"filter": {"a": 1}}, {}, None),
        odd("count", {"filter": msgpack.ExtType(2, msgpack.packb({"a__nonsense": 1}))}, {}, None),
        odd("count", {"filter": msgpack.ExtType(2, b"\xc1")}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(3, msgpack.packb({"nonsense": 1}))}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(1, msgpack.packb([5]) + b"1234")}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(1, msgpack.packb("x"))}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(1, b"")}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(4, b"seven")}, {}, None),
        odd("find_similar", {"request": msgpack.ExtType(99, b"")}, {}, None),
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.read_of(data)


def test_a_changed_byte_is_noticed_wherever_it_is() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chosen = random.Random(seed)
    answer = wire.answer_body("scroll", Answer(Page(records(5), None), ACCOUNTS))
    for _ in range(300):
        place, change = chosen.randrange(len(answer)), chosen.randrange(1, 256)
        damaged = bytearray(answer)
        damaged[place] ^= change
        with pytest.raises(WireError):
            wire.answer_of("scroll", bytes(damaged))


def test_a_changed_argument_is_noticed() -> None:
    data = wire.read_request("get", {"key": b"\x03abcdef", "namespace": "books"})

    with pytest.raises(WireError, match="checksum"):
        wire.read_of(data.replace(b"books", b"looks"))


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 40])
def test_a_cut_answer_is_refused(cut: int) -> None:
    answer = wire.answer_body("scroll", Answer(Page(records(5), None), ACCOUNTS))

    with pytest.raises(WireError):
        wire.answer_of("scroll", answer[:cut])


def test_the_answer_of_another_read_is_refused() -> None:
    with pytest.raises(WireError):
        wire.answer_of("scroll", wire.answer_body("count", Answer(3, [])))


@pytest.mark.parametrize(
    "scope",
    [
        Scope(7),
        Scope(2**53, SlotSet.of([0, 5, 16383])),
        Scope(1, None, NamespaceSpec("a" * 32, "books", 384, "l2", 0.95, "24x16")),
    ],
)
def test_what_of_a_shard_counts_arrives_as_it_was(scope: Scope) -> None:
    asked = wire.read_of(wire.read_request("count", {"namespace": "books"}, RequestOptions(scope=scope)))

    assert asked.options.scope == scope


def test_rows_to_write_arrive_bit_by_bit() -> None:
    values = np.array([[1.0, np.float32(0.1), -0.0], [np.float32(1e-45), 3.4e38, 5.0]], dtype=np.float32)
    batch = VectorBatch([b"\x01a", b"\x03b"], values, [b"{}", b'{"n":1}'])

    asked = wire.read_of(wire.read_request("upsert_many", {"batch": batch, "namespace": "books"}, OPTIONS))

    arrived = asked.arguments["batch"]
    assert (arrived.keys, arrived.metadata) == (batch.keys, batch.metadata)
    assert (arrived.values.tobytes(), arrived.values.dtype) == (values.tobytes(), np.dtype("f4"))
    assert asked.options == OPTIONS


@pytest.mark.parametrize(
    "result",
    [
        WriteResult([b"\x01a", b"\x03b"], 2, {"shard_r": "0.0a0a0a0a.1.5"}, {"shard_r": ("a" * 32, 1, 5)}),
        WriteResult([], 0, {}),
    ],
)
def test_the_answer_of_a_write_arrives_as_it_was(result: WriteResult) -> None:
    assert wire.write_answer_of(wire.write_answer_body(result)) == result


def test_the_answer_of_a_write_that_is_damaged_or_none_is_refused() -> None:
    answer = wire.write_answer_body(WriteResult([b"\x01a"], 1, {}))

    for data in (b"", answer[:-1], answer[:4] + b"x" + answer[5:], wire.answer_body("count", Answer(3, []))):
        with pytest.raises(WireError):
            wire.write_answer_of(data)


def plain(value: Any) -> Any:
    """Return a value with its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
