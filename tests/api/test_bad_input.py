"""Invariant 12: bad input is answered 4xx in the one shape, names the field, and changes nothing."""

from __future__ import annotations

import gzip
from typing import Any, NamedTuple

import msgpack
import orjson
import pytest

from tests.api.conftest import Api, checked_error

MSGPACK = "application/msgpack"
DEEP = b'{"query":' + b"[" * 2000 + b"]" * 2000 + b"}"
GZIP = gzip.compress(b'{"values": [1, 2, 3]}')
LONG_ID = "x" * 256


class Bad(NamedTuple):
    """A request that must be refused, the status, and the field that the error names."""

    method: str
    path: str
    body: Any
    field: str
    status: int = 400
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    code: str | None = None


def insert(field: str, **body: Any) -> Bad:
    return Bad("POST", "/vectors", body, field)


def batch(field: str, *rows: Any, **more: Any) -> Bad:
    return Bad("PUT", "/vectors/batch", {"vectors": list(rows), **more}, field)


def search(field: str, **body: Any) -> Bad:
    return Bad("POST", "/search", {"query": [1, 2, 3], **body}, field)


def read(path: str, field: str, **headers: str) -> Bad:
    return Bad("GET", path, b"", field, headers={name.replace("_", "-"): value for name, value in headers.items()})


def packed(method: str, path: str, body: Any, field: str) -> Bad:
    data = body if isinstance(body, bytes) else msgpack.packb(body)
    return Bad(method, path, data, field, content_type=MSGPACK)


def raw(body: bytes, field: str = "body", path: str = "/vectors", **more: Any) -> Bad:
    return Bad("POST", path, body, field, **more)


OK = [1, 2, 3]

BODIES = [
    raw(b"", "values", code="missing_field"),
    raw(b"{", code="invalid_json"),
    raw(b"[]"),
    raw(b"null"),
    raw(b'"text"'),
    raw(b"7"),
    raw(b"\xff\xfe"),
    raw(b'{"values": [1, 2, 3]} trailing'),
    raw(b'{"values": [1, 2, NaN]}'),
    raw(b'{"values": [1, 2, Infinity]}'),
    raw(b'{"values": [1, 2, -Infinity]}'),
    raw(b'{"values": [1, 2, 1e999]}'),
    raw(b'{"values": [1, 2, 3], "id": "\\ud800"}'),
    raw(b"{'values': [1, 2, 3]}"),
    raw(b'{"values": [1, 2, 3],}'),
    raw(DEEP, path="/search"),
    raw(b"[" * 100_000),
    raw(b'{"values": [1, 2, 3], "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    raw(b'{"values": [1, 2, 3], "metadata": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}", "metadata"),
    raw(b'{"values": [1, 2, ' + b"9" * 5000 + b"]}"),
    raw(b'{"values": [1, 2, 3], "metadata": {"\\ud800": 1}}'),
    raw(b'{"values": [1, 2, 3], "id": "\xff\xfe"}'),
    raw(b'\xef\xbb\xbf{"values": [1, 2, 3]}'),
    raw('{"values": [1, 2, 3]}'.encode("utf-16")),
    raw('{"values": [1, 2, 3]}'.encode("utf-16"), content_type="application/json; charset=utf-16"),
    raw(GZIP, "Content-Encoding", headers={"Content-Encoding": "gzip"}, status=415),
    raw(GZIP, "Content-Encoding", headers={"Content-Encoding": "identity, gzip"}, status=415),
    raw(b"{}", "Content-Encoding", path="/count", headers={"Content-Encoding": "br"}, status=415),
    raw(b'{"values": [1, 2, 3]}', "Content-Type", content_type="/", status=415),
    raw(b'{"values": [1, 2, 3]}', "Content-Type", content_type="multipart/form-data", status=415),
    raw(b'{"values": [1, 2, 3]}', "Accept", headers={"Accept": "application/json;q=nan"}, status=406),
    raw(b'{"values": [1, 2, 3]}', "Content-Type", content_type="text/plain", status=415),
    raw(b"values=1", "Content-Type", content_type="application/x-www-form-urlencoded", status=415),
    raw(b'{"values": [1, 2, 3]}', "Accept", headers={"Accept": "image/png"}, status=406),
    raw(b'{"values": [1, 2, 3]}', "format", path="/vectors?format=xml"),
]
VALUES = [
    insert("values"),
    insert("values", values=None),
    insert("values", values="1,2,3"),
    insert("values", values={"0": 1}),
    insert("values", values=7),
    insert("values", values=[]),
    insert("values", values=[1, 2]),
    insert("values", values=[1, 2, 3, 4]),
    insert("values", values=[1, 2, True]),
    insert("values", values=[False, False, False]),
    insert("values", values=[1, 2, None]),
    insert("values", values=[1, 2, "3"]),
    insert("values", values=[1, 2, [3]]),
    insert("values", values=[[1, 2, 3]]),
    insert("values", values=[1, 2, {}]),
    insert("values", values=[1, 2, 1e39]),
    insert("values", values=[1, 2, -3.5e38]),
    insert("values", values=[0.0] * 4097),
]
ROWS = [
    insert("id", values=OK, id=1.5),
    insert("id", values=OK, id=10.0),
    insert("id", values=OK, id=True),
    insert("id", values=OK, id=[1]),
    insert("id", values=OK, id={}),
    insert("id", values=OK, id=""),
    insert("id", values=OK, id=LONG_ID),
    insert("id", values=OK, id="é" * 128),
    insert("id", values=OK, id=2**63),
    raw(b'{"values": [1, 2, 3], "id": -9223372036854775809}', "id"),
    raw(b'{"values": [1, 2, 3], "id": 123456789012345678901234567890}', "id"),
    insert("metadata", values=OK, metadata="text"),
    insert("metadata", values=OK, metadata=[1]),
    insert("metadata", values=OK, metadata=False),
    insert("metadata", values=OK, metadata={"big": "x" * 65536})._replace(status=413),
    insert("vector", values=OK, vector=OK),
    insert("Values", values=OK, Values=OK),
    batch("vectors"),
    batch("vectors[0]", 7),
    batch("vectors[1]", {"values": OK}, None),
    batch("vectors[0]", OK),
    batch("vectors[1].values", {"values": OK}, {"id": 1}),
    batch("vectors[1].values", {"values": OK}, {"values": None}),
    batch("vectors[1].values", {"values": OK}, {"values": [1, 2]}),
    batch("vectors[2].values", {"values": OK}, {"values": OK}, {"values": [0, 0, True]}),
    batch("vectors[1].values", {"values": OK}, {"values": [1, 2, 1e300]}),
    batch("vectors[1].id", {"values": OK}, {"values": OK, "id": 1.5}),
    batch("vectors[1].metadata", {"values": OK}, {"values": OK, "metadata": []}),
    batch("vectors[1].meta", {"values": OK}, {"values": OK, "meta": {}}),
    batch("upsert", {"values": OK}, upsert=True),
    batch("vectors", *[{"values": [1]}] * 10_001),
    Bad("PUT", "/vectors/batch", {}, "vectors"),
    Bad("PUT", "/vectors/batch", {"vectors": {"values": OK}}, "vectors"),
    Bad("PUT", "/vectors/batch", {"vectors": "all"}, "vectors"),
    Bad("PATCH", "/vectors/1", {}, "metadata"),
    Bad("PATCH", "/vectors/1", {"metadata": None}, "metadata"),
    Bad("PATCH", "/vectors/1", {"metadata": [1]}, "metadata"),
    Bad("PATCH", "/vectors/1", {"metadata": {"a": 1}, "values": OK}, "values"),
    Bad("PATCH", "/vectors/99", {"metadata": {"a": 1}}, "id", status=404),
    Bad("PATCH", "/vectors/1?namespace=nowhere", {"metadata": {"a": 1}}, "namespace", status=404),
]
IDS = [
    Bad("POST", "/vectors/fetch", {}, "ids"),
    Bad("POST", "/vectors/fetch", {"ids": []}, "ids"),
    Bad("POST", "/vectors/fetch", {"ids": 1}, "ids"),
    Bad("POST", "/vectors/fetch", {"ids": [1, None]}, "ids[1]"),
    Bad("POST", "/vectors/fetch", {"ids": [1.0]}, "ids[0]"),
    Bad("POST", "/vectors/fetch", {"ids": list(range(10_001))}, "ids"),
    Bad("DELETE", "/vectors", b"", "ids"),
    Bad("DELETE", "/vectors", {"ids": []}, "ids"),
    Bad("DELETE", "/vectors", {"ids": [[1]]}, "ids[0]"),
    Bad("DELETE", "/vectors", {"ids": [1], "filter": {"n": 1}}, "filter"),
    Bad("DELETE", "/vectors", {"filter": {}}, "filter"),
    Bad("DELETE", "/vectors", {"filter": []}, "filter"),
    Bad("DELETE", "/vectors", {"id": 1}, "id"),
    Bad("DELETE", "/vectors?namespace=nowhere", {"ids": [1]}, "namespace", status=404),
    Bad("POST", "/vectors/delete", {"ids": []}, "ids"),
    Bad("POST", "/vectors/delete", {"filter": {"n__near": 1}}, "filter.n__near", code="invalid_filter"),
    read("/vectors/99", "id")._replace(status=404),
    read("/vectors/1?id_type=string", "id")._replace(status=404),
    read("/vectors/1?id_type=integer", "id_type"),
    read("/vectors/9223372036854775808", "id"),
    read("/vectors/" + "9" * 400, "id"),
    read("/vectors/" + LONG_ID, "id"),
    read("/vectors/1?namespace=nowhere", "namespace")._replace(status=404),
    read("/vectors/1?fields=id", "fields"),
    read("/vectors/a%00b", "id")._replace(status=404),
    read("/vectors/%ff%fe", "id")._replace(status=404),
    read("/vectors/%zz", "id")._replace(status=404),
]
SEARCHES = [
    Bad("POST", "/search", {}, "query"),
    Bad("POST", "/search", {"top_k": 3}, "query"),
    search("id", id=1),
    search("query", query=[]),
    search("query", query=[1, 2]),
    search("query", query="abc"),
    search("query", query=[1, 2, True]),
    search("query", query=[1, 2, 1e39]),
    Bad("POST", "/search", {"id": 1.5}, "id"),
    Bad("POST", "/search", {"id": 99}, "id", status=404),
    search("top_k", top_k=0),
    search("top_k", top_k=-1),
    search("top_k", top_k=1001),
    search("top_k", top_k=10.0),
    search("top_k", top_k="10"),
    search("top_k", top_k=True),
    search("top_k", top_k=1e30),
    search("metric", metric="euclid"),
    search("metric", metric=["l2"]),
    search("recall", recall=0),
    search("recall", recall=1.01),
    search("recall", recall="high"),
    search("recall", recall=True),
    search("exact", exact=1),
    search("exact", exact="true"),
    search("with_values", with_values=0),
    search("with_metadata", with_metadata="no"),
    search("score_threshold", score_threshold="0.5"),
    search("score_threshold", score_threshold=True),
    search("offset", offset=-1),
    search("offset", offset=10_001),
    search("offset", offset=1.5),
    search("filter", filter=[]),
    search("filter", filter="n=1"),
    search("filter.n__near", filter={"n__near": 1}),
    search("filter.n__in", filter={"n__in": 1}),
    search("filter.n__range", filter={"n__range": [1]}),
    search("filter.n__isnull", filter={"n__isnull": 1}),
    search("filter.OR", filter={"OR": []}),
    search("filter.AND", filter={"AND": {"n": 1}}),
    search("k", k=10),
    search("vector", vector=OK),
    Bad("POST", "/search/batch", {}, "searches"),
    Bad("POST", "/search/batch", {"searches": []}, "searches"),
    Bad("POST", "/search/batch", {"searches": [1]}, "searches[0]"),
    Bad("POST", "/search/batch", {"searches": [{"query": OK}, {"query": OK, "top_k": 0}]}, "searches[1].top_k"),
    Bad("POST", "/search/batch", {"searches": [{"query": [1, 2, True]}]}, "searches[0].query"),
    Bad("POST", "/search/batch", {"searches": [{"query": [*OK, 1.0]}]}, "searches[0].query"),
    Bad("POST", "/search/batch", {"searches": [{"query": OK, "filter": {"n__x": 1}}]}, "searches[0].filter.n__x"),
    Bad("POST", "/search/batch", {"searches": [{"id": 1, "limit": 1}]}, "searches[0].limit"),
    Bad("POST", "/search/batch", {"searches": [{"id": 1}], "top_k": 1}, "top_k"),
    Bad("POST", "/search/batch", {"searches": [{"id": 1}] * 1001}, "searches"),
    Bad("POST", "/count", {"where": {}}, "where"),
    Bad("POST", "/count", {"filter": 1}, "filter"),
    Bad("POST", "/search?explain=yes", {"id": 1}, "explain"),
    Bad("POST", "/search?top_k=3", {"id": 1}, "top_k"),
]
QUERIES = [
    read("/namespaces/vectors?limit=0", "limit"),
    read("/namespaces/vectors?limit=100001", "limit"),
    read("/namespaces/vectors?limit=ten", "limit"),
    read("/namespaces/vectors?limit=", "limit"),
    read("/namespaces/vectors?limit=1.0", "limit"),
    read("/namespaces/vectors?after=", "after"),
    read("/namespaces/vectors?after=99999999999999999999", "after"),
    read("/namespaces/vectors?filter=n", "filter"),
    read("/namespaces/vectors?filter=[]", "filter"),
    read("/namespaces/vectors?filter=%7B%22n__x%22:1%7D", "filter.n__x"),
    read("/namespaces/vectors?offset=1", "offset"),
    read("/namespaces/vectors?namespace=.hidden", "namespace"),
    read("/namespaces/vectors?namespace=", "namespace"),
    read("/namespaces/vectors?namespace=a/b", "namespace"),
    read("/namespaces/vectors?namespace=vectors", "namespace"),
    read("/namespaces/vectors?namespace=" + "n" * 129, "namespace"),
    read("/namespaces/vectors?namespace=%D0%B8%D0%BC%D1%8F", "namespace"),
    read("/namespaces?detail=maybe", "detail"),
    read("/namespaces?namespace=default", "namespace"),
    read("/storage/info?verbose=1", "verbose"),
    read("/vectors/1?consistency=two", "consistency"),
    read("/vectors/1", "consistency", X_MLVDB_Consistency="most"),
    read("/vectors/1?read_preference=far", "read_preference"),
    read("/vectors/1", "read_preference", X_MLVDB_Read_Preference="any"),
    read("/vectors/1?timeout=0", "timeout"),
    read("/vectors/1?timeout=-1", "timeout"),
    read("/vectors/1?timeout=nan", "timeout"),
    read("/vectors/1?timeout=inf", "timeout"),
    read("/vectors/1?timeout=soon", "timeout"),
    read("/vectors/1?timeout=301", "timeout"),
    read("/vectors/1?timeout=1e400", "timeout"),
    read("/vectors/1?timeout=1_0", "timeout"),
    read("/vectors/1?timeout=%D9%A1", "timeout"),
    read("/vectors/1?timeout=%201", "timeout"),
    read("/namespaces/vectors?limit=%D9%A1", "limit"),
    read("/namespaces/vectors?limit=0&limit=1", "limit"),
    read("/vectors/1?namespace=default&namespace=other", "namespace"),
    read("/namespaces?format=msgpack&format=json", "format"),
    read("/namespaces/vectors?after=%ff", "query"),
    read("/namespaces/vectors?after=%ed%a0%80", "query"),
    read("/vectors/1?%ff=1", "query"),
    read("/vectors/1?namespace=%zz", "namespace"),
    read("/vectors/1?namespace=a%00b", "namespace"),
    read("/vectors/1?namespace=" + "n" * 60_000, "namespace"),
    read("/vectors/1?" + "&".join(f"a{number}=1" for number in range(1001)), "query"),
    read("/vectors/1?consistency=one", "consistency", X_MLVDB_Consistency="most"),
    read("/vectors/1?partial=1", "timeout", X_MLVDB_Timeout="fast"),
    Bad("POST", "/log/level?level=info", {"level": "loud"}, "level"),
    Bad("POST", "/log/level", {"level": 7}, "level"),
    Bad("POST", "/log/level", {"level": "info", "logger": "root"}, "logger"),
    read("/vectors/1", "timeout", X_MLVDB_Timeout="fast"),
    read("/vectors/1?partial=perhaps", "partial"),
    read("/vectors/1", "partial", X_MLVDB_Partial="2"),
    read("/vectors/1?min_seq=abc", "min_seq"),
    read("/namespaces?min_seq=shard_0:abc", "min_seq"),
    Bad("POST", "/vectors?min_seq=garbage:garbage", {"values": OK}, "min_seq"),
    read("/vectors/1?min_seq=shard_0:", "min_seq"),
    read("/vectors/1?min_seq=shard_0:1,shard_0:2", "min_seq"),
    read("/vectors/1?min_seq=a%20b:1", "min_seq"),
    read("/vectors/1", "min_seq", X_MLVDB_Min_Seq=","),
    Bad("POST", "/vectors", {"values": OK}, "Idempotency-Key", headers={"Idempotency-Key": "k" * 256}),
    Bad("POST", "/vectors?namespace=vectors", {"values": OK}, "namespace"),
    Bad("POST", "/vectors?ns=default", {"values": OK}, "ns"),
]
NAMESPACES = [
    Bad("PUT", "/namespaces/new", {}, "dimension"),
    Bad("PUT", "/namespaces/new", {"metric": "l2"}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": 0}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": 4097}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": 3.0}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": "3"}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": True}, "dimension"),
    Bad("PUT", "/namespaces/new", {"dimension": 3, "metric": "dot"}, "metric"),
    Bad("PUT", "/namespaces/new", {"dimension": 3, "recall_target": 0}, "recall_target"),
    Bad("PUT", "/namespaces/new", {"dimension": 3, "recall_target": 2}, "recall_target"),
    Bad("PUT", "/namespaces/new", {"dimension": 4, "picture": "3x2"}, "picture"),
    Bad("PUT", "/namespaces/new", {"dimension": 4, "picture": "square"}, "picture"),
    Bad("PUT", "/namespaces/new", {"dimension": 4, "picture": 4}, "picture"),
    Bad("PUT", "/namespaces/new", {"dimension": 4, "shards": 2}, "shards"),
    Bad("PUT", "/namespaces/-new", {"dimension": 4}, "name"),
    Bad("PUT", "/namespaces/a%20b", {"dimension": 4}, "name"),
    Bad("PUT", "/namespaces/a/b", {"dimension": 4}, "name"),
    Bad("PUT", "/namespaces/" + "n" * 129, {"dimension": 4}, "name"),
    Bad("PUT", "/namespaces/default", {"dimension": 4}, "dimension", status=409),
    Bad("PUT", "/namespaces/default", {"metric": "l2"}, "metric", status=409),
    Bad("DELETE", "/namespaces/nowhere", b"", "namespace", status=404),
    Bad("DELETE", "/namespaces/..", b"", "name"),
    Bad("PUT", "/namespaces/vectors", {"dimension": 4}, "method", status=405),
    Bad("POST", "/namespaces", {"name": "new"}, "method", status=405),
]
BINARY = [
    packed("POST", "/vectors", b"\xc1", "body"),
    packed("POST", "/vectors", b"\x93\x01", "body"),
    packed("POST", "/vectors", msgpack.packb([1]), "body"),
    packed("POST", "/vectors", msgpack.packb({"values": OK}) + b"\x00", "body"),
    packed("POST", "/vectors", b"\xdd\xff\xff\xff\xff", "body"),
    packed("POST", "/vectors", b"\x91" * 5000, "body"),
    packed("POST", "/vectors", {1: 2}, "body"),
    packed("POST", "/vectors", b"\x81\xa2\xff\xfe\x01", "body"),
    packed("POST", "/vectors", {"values": b"\x00" * 13}, "values"),
    packed("POST", "/vectors", {"values": b""}, "values"),
    packed("POST", "/vectors", {"values": b"\x00\x00\xc0\x7f" * 3}, "values"),
    packed("POST", "/vectors", {"values": [1, 2, float("nan")]}, "values"),
    packed("POST", "/vectors", {"values": [1, 2, float("inf")]}, "values"),
    packed("POST", "/vectors", {"values": [1, 2, True]}, "values"),
    packed("POST", "/vectors", {"values": OK, "metadata": {"x": float("nan")}}, "metadata"),
    packed("POST", "/vectors", {"values": OK, "metadata": {"x": b"raw"}}, "metadata"),
    packed("POST", "/vectors", {"values": OK, b"more": 1}, "b'more'"),
    packed("POST", "/vectors", {"values": OK, "id": b"raw"}, "id"),
    packed("PUT", "/vectors/batch", {"vectors": [{"values": OK}, {"values": b"\x00" * 8}]}, "vectors[1].values"),
    packed("PUT", "/vectors/batch", {"vectors": [{"values": b"\x00" * 12}, {"values": [1, 2]}]}, "vectors[1].values"),
    packed("POST", "/search", {"query": b"\x00" * 8}, "query"),
    packed("POST", "/search", {"query": OK, "score_threshold": float("inf")}, "score_threshold"),
    packed("POST", "/search", {"query": OK, "filter": {"n": float("nan")}}, "filter.n"),
]
METHODS = [
    Bad("GET", "/vectors", b"", "method", status=405),
    Bad("PUT", "/vectors", {"values": OK}, "method", status=405),
    Bad("DELETE", "/vectors/1", b"", "method", status=405),
    Bad("GET", "/search", b"", "method", status=405),
    Bad("DELETE", "/count", b"", "method", status=405),
    Bad("POST", "/storage/info", {}, "method", status=405),
    Bad("TRACE", "/search", b"", "method", status=405),
    Bad("BREW", "/vectors", b"", "method", status=405),
    Bad("CONNECT", "/vectors", b"", "method", status=405),
]
TABLE = [*BODIES, *VALUES, *ROWS, *IDS, *SEARCHES, *QUERIES, *NAMESPACES, *BINARY, *METHODS]


def _label(bad: Bad) -> str:
    return f"{bad.method} {bad.path[:60]} {bad.field[:40]}"


@pytest.mark.parametrize("bad", TABLE, ids=_label)
def test_bad_input_is_refused_by_name_and_changes_nothing(standing_api: Api, bad: Bad) -> None:
    before = _state(standing_api)

    response = standing_api.send(bad.method, bad.path, bad.body, content_type=bad.content_type, headers=bad.headers)

    error = checked_error(response)
    assert response.status_code == bad.status, error
    assert error["field"] == bad.field, error
    if bad.code is not None:
        assert error["code"] == bad.code
    assert _state(standing_api) == before


def _state(api: Api) -> tuple[bytes, bytes]:
    return orjson.dumps(api.get("/storage/info").json()), orjson.dumps(api.get("/namespaces/vectors").json())
