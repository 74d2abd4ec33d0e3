"""The direct way answers what the whole way would, and leaves to it whatever is not a plain answer."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgpack
import numpy as np
import orjson
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory

from mlvdb_site import keys
from mlvdb_site.http import direct, metrics
from mlvdb_site.http.metrics import RequestCounts
from mlvdb_site.http.request_id import current_request_id
from vectors.errors import NotReady
from vectors.query_processor import query_processor

MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
SEARCH = {"query": [0.0, 1.5, 2], "top_k": 3}


class Served(NamedTuple):
    """What a WSGI application answered; `ways` are those that took part: direct, whole."""

    status: str
    headers: dict[str, str]
    body: bytes
    parts: Any
    ways: list[str]

    @property
    def document(self) -> Any:
        """The answer without what is of its moment."""
        packed = self.headers["Content-Type"] == "application/msgpack"
        document = msgpack.unpackb(self.body) if packed else orjson.loads(self.body)
        if isinstance(document, dict):
            document.pop("took_ms", None)
            document.pop("request_id", None)
            for shard in document.get("shards", ()):
                shard.pop("took_ms")
        return document


class Node:
    """The application as a server runs it, and the same without the direct way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.application = direct.NodeApplication()
        self.whole_application = WSGIHandler()
        self._ways: list[str] = []
        for name, way in (("_direct", "direct"), ("_whole", "whole")):
            monkeypatch.setattr(self.application, name, self._noted(getattr(self.application, name), way))

    def _noted(self, original: Any, way: str) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            answer = original(*arguments)
            if answer is not None:
                self._ways.append(way)
            return answer

        return noted

    def ask(
        self,
        path: str,
        body: object = b"",
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        application: Any = None,
        **environ: Any,
    ) -> Served:
        """Send a request; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {"Content-Type": "application/json", **(headers or {})}
        request = RequestFactory().generic(method, path, data, given.pop("Content-Type"), headers=given, **environ)
        # Django's own fake takes reading too far for a mistake of the test.
        request.environ["wsgi.input"] = io.BytesIO(data)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        self._ways.clear()
        parts = (application or self.application)(request.environ, lambda *line: started.append(line))
        whole = b"".join(parts)
        if hasattr(parts, "close"):
            parts.close()
        [(status, pairs)] = started
        assert len(dict(pairs)) == len(pairs)
        return Served(status, dict(pairs), whole, parts, list(self._ways))

    def whole(self, path: str, body: object = b"", **more: Any) -> Served:
        """Send it the whole way."""
        return self.ask(path, body, application=self.whole_application, **more)


@pytest.fixture
def node(api: Any, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node with six rows of dimension 3."""
    rows = [{"id": number, "values": [number, 1, 2], "metadata": {"n": number, "é": ["x"]}} for number in range(5)]
    rows.append({"id": "a text", "values": [1, 0, 0]})
    assert api.put("/vectors/batch", {"vectors": rows}).status_code == 200
    return Node(monkeypatch)


PLAIN = {
    "a search": ("/search", SEARCH, {}),
    "without values": ("/search", {**SEARCH, "with_values": False}, {}),
    "without metadata": ("/search", {**SEARCH, "with_metadata": False, "with_values": False}, {}),
    "by id": ("/search", {"id": "a text", "top_k": 2}, {}),
    "with a filter": ("/search", {**SEARCH, "filter": {"n__gte": 2}, "offset": 1, "score_threshold": 0.1}, {}),
    "another metric, exact": ("/search", {**SEARCH, "metric": "l2", "exact": True, "recall": 0.9}, {}),
    "nulls": ("/search", {**SEARCH, "filter": None, "metric": None, "id": None}, {}),
    "another namespace": ("/search?namespace=other", SEARCH, {}),
    "an encoded query": ("/search?namespace=%64efault", SEARCH, {}),
    "explained": ("/search?explain=1", SEARCH, {}),
    "levels in the query": ("/search?consistency=one&timeout=3&partial=false", SEARCH, {}),
    "levels in headers": ("/search", SEARCH, {"X-MLVDB-Consistency": "all", "X-MLVDB-Timeout": "1.5"}),
    "a charset": ("/search", SEARCH, {"Content-Type": "application/json; charset=utf-8"}),
    "any form": ("/search", SEARCH, {"Accept": "*/*"}),
    "msgpack asked for": ("/search", SEARCH, {"Accept": "application/msgpack"}),
    "msgpack by parameter": ("/search?format=msgpack", SEARCH, {}),
    "msgpack": ("/search", msgpack.packb({"query": np.ones(3, "<f4").tobytes()}), MSGPACK),
    "a batch": ("/search/batch", {"searches": [SEARCH, {"id": 2}, {**SEARCH, "filter": {"n": 1}}]}, {}),
    "a batch explained": ("/search/batch?explain=true", {"searches": [SEARCH]}, {}),
    "a count": ("/count", {}, {}),
    "a count of matches": ("/count", {"filter": {"n__lt": 3}}, {}),
}
REFUSED = {
    "no JSON": ("/search", b'{"query": [1, 2', {}),
    "a list": ("/search", b"[1, 2]", {}),
    "no query": ("/search", {"top_k": 3}, {}),
    "an unknown field": ("/search", {**SEARCH, "colour": "red"}, {}),
    "another dimension": ("/search", {"query": [1, 2]}, {}),
    "a boolean": ("/search", {"query": [1.5, True, 2.5]}, {}),
    "no number": ("/search", {"query": [1.5, "2", 2.5]}, {}),
    "beyond float32": ("/search", {"query": [1e300, 1, 2]}, {}),
    "an unknown id": ("/search", {"id": "nobody"}, {}),
    "a bad search of a batch": ("/search/batch", {"searches": [SEARCH, {"query": [1, 2, 3], "top_k": 0}]}, {}),
    "an empty batch": ("/search/batch", {"searches": []}, {}),
    "a bad filter": ("/search", {**SEARCH, "filter": {"n__near": 2}}, {}),
    "a bad level": ("/search?consistency=most", SEARCH, {}),
    "a bad level in a header": ("/search", SEARCH, {"X-MLVDB-Timeout": "soon"}),
    "a bad name": ("/search?namespace=a/b", SEARCH, {}),
    "no vector in msgpack": ("/search", msgpack.packb({"query": b"abc"}), MSGPACK),
    "no msgpack": ("/search", b"\xc1", MSGPACK),
}
LEFT = {
    "a parameter that is not there": ("/search?colour=red", SEARCH, {}),
    "a parameter twice": ("/search?namespace=a&namespace=b", SEARCH, {}),
    "a query that is not UTF-8": ("/search?namespace=%ff", SEARCH, {}),
    "a form that is not there": ("/search", SEARCH, {"Accept": "image/png"}),
    "a body of another type": ("/search", b"query=1", {"Content-Type": "application/x-www-form-urlencoded"}),
    "a foreign host": ("/search", SEARCH, {"Host": "evil.example"}),
    "a foreign page": ("/search", SEARCH, {"Origin": "https://evil.example"}),
    "what a proxy forwards": ("/search", SEARCH, {"X-Forwarded-For": "192.0.2.7"}),
    "a key where there are none": ("/search", SEARCH, {"X-MLVDB-Signature": "v1=00"}),
    "no body": ("/search", b"", {}),
}


def both(node: Node, case: tuple[str, Any, dict[str, str]]) -> Served:
    """Ask both ways, check that they agree, and return the answer of the application."""
    path, body, headers = case
    answer, expected = node.ask(path, body, headers=headers), node.whole(path, body, headers=headers)

    assert answer.status == expected.status
    assert answer.document == expected.document
    ids = answer.headers.pop("X-Request-ID"), expected.headers.pop("X-Request-ID")
    assert len(set(ids)) == 2
    if "explain" in path or answer.status[0] != "2":
        # Times and request ids are not equally long, or are not the same.
        assert answer.headers.pop("Content-Length", str(len(answer.body))) == str(len(answer.body))
        expected.headers.pop("Content-Length", None)
    assert answer.headers == expected.headers
    return answer


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_request_is_answered_directly_and_as_the_whole_way_would(node: Node, name: str) -> None:
    answer = both(node, PLAIN[name])

    assert answer.status == "200 OK"
    assert answer.ways == ["direct"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_request_is_refused_for_is_said_by_the_whole_way(node: Node, name: str) -> None:
    answer = both(node, REFUSED[name])

    assert answer.status[0] == "4"
    assert answer.ways == ["whole"]


@pytest.mark.parametrize("name", LEFT)
def test_an_unusual_request_is_left_to_the_whole_way(node: Node, name: str) -> None:
    answer = both(node, LEFT[name])

    assert answer.status[0] == "4"
    assert answer.ways == ["whole"]


@pytest.mark.parametrize("headers", [{"Cookie": "a=b"}, {"Accept": "text/html,*/*;q=0.8"}])
def test_what_may_come_from_a_browser_goes_the_whole_way(node: Node, headers: dict[str, str]) -> None:
    answer = node.ask("/search", SEARCH, headers=headers)

    assert answer.status == "200 OK"
    assert answer.ways == ["whole"]


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE"])
def test_other_methods_of_the_same_path_go_the_whole_way(node: Node, method: str) -> None:
    assert node.ask("/search", method=method).ways == ["whole"]


def test_a_compressed_body_is_refused(node: Node) -> None:
    answer = both(node, ("/search", SEARCH, {"Content-Encoding": "gzip"}))

    assert answer.status.startswith("415")


def test_a_body_that_is_too_large_is_refused_unread(node: Node, settings: Any) -> None:
    settings.MLVDB_MAX_BODY_BYTES = 20

    assert both(node, ("/search", SEARCH, {})).status.startswith("413")


def test_a_body_that_ends_early_is_refused(node: Node) -> None:
    answer = node.ask("/search", SEARCH, CONTENT_LENGTH="1000")

    assert answer.status.startswith("400")
    assert answer.document["error"]["code"] == "incomplete_body"


def test_an_id_that_a_client_gives_is_answered_either_way(node: Node) -> None:
    for body in (SEARCH, {"top_k": 3}):
        assert node.ask("/search", body, headers={"X-Request-ID": "mine-1"}).headers["X-Request-ID"] == "mine-1"
    assert node.ask("/search", SEARCH, headers={"X-Request-ID": "not mine!"}).headers["X-Request-ID"] != "not mine!"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], list[str]]:
    """Return a function that makes every search raise; what it returns has the request id of each of them."""

    def fail(error: Exception) -> list[str]:
        seen: list[str] = []

        def find_similar(*_arguments: Any, **_options: Any) -> Any:
            seen.append(current_request_id())
            raise error

        monkeypatch.setattr(type(query_processor()), "find_similar", find_similar)
        return seen

    return fail


def test_a_search_that_fails_is_not_done_twice(node: Node, failing: Any) -> None:
    seen = failing(NotReady("the shard is being opened", retry_after_s=3))

    answer = node.ask("/search", SEARCH)

    assert answer.status.startswith("503")
    assert answer.headers["Retry-After"] == "3"
    assert orjson.loads(answer.body)["error"]["code"] == "not_ready"
    assert seen == [answer.headers["X-Request-ID"]]
    assert orjson.loads(answer.body)["request_id"] == seen[0]


def test_an_error_is_answered_in_the_form_that_was_asked_for(node: Node, failing: Any) -> None:
    failing(NotReady("the shard is being opened", retry_after_s=3))

    answer = node.ask("/search", SEARCH, headers={"Accept": "application/msgpack"})

    assert msgpack.unpackb(answer.body)["error"]["code"] == "not_ready"


def test_an_error_that_nobody_expected_is_logged_with_its_cause(
    node: Node, failing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failing(ZeroDivisionError("a bug"))

    with caplog.at_level(logging.ERROR):
        answer = node.ask("/search", SEARCH)

    assert answer.status.startswith("500")
    assert orjson.loads(answer.body)["error"]["code"] == "internal_error"
    assert caplog.text.count("ZeroDivisionError: a bug") == 1
    assert "find_similar" in caplog.text


def test_every_request_is_counted_once_under_its_route(node: Node) -> None:
    before = counted()
    node.ask("/search", SEARCH)
    node.ask("/search", {"top_k": 3})
    node.ask("/search?colour=red", SEARCH)
    after = counted()

    assert after["200"] - before.get("200", 0) == 1
    assert after["400"] - before.get("400", 0) == 2


def test_the_time_of_a_failed_search_is_that_of_both_ways(
    node: Node, monkeypatch: pytest.MonkeyPatch, failing: Any
) -> None:
    times: list[float] = []
    monkeypatch.setattr(RequestCounts, "count", lambda self, *counts: times.append(counts[-1]))
    clock = iter((100.0, 107.0))
    monkeypatch.setattr("mlvdb_site.http.direct.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("mlvdb_site.http.metrics.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    failing(NotReady("the shard is being opened", retry_after_s=3))

    node.ask("/search", SEARCH)

    assert times == [7.0]


def counted() -> dict[str, float]:
    """Return how many searches this process has counted, by status."""
    return {
        sample.labels["status"]: sample.value
        for metric in metrics._requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and (sample.labels["method"], sample.labels["route"]) == ("POST", "search")
    }


def test_with_keys_their_holders_are_answered_directly_and_nobody_else(node: Node) -> None:
    _, reader = keys.key_create(name="reader", scopes=["read"])
    _, writer = keys.key_create(name="writer", scopes=["write"])

    good = both(node, ("/search", SEARCH, {"Authorization": f"Bearer {reader}"}))
    nobody = both(node, ("/search", SEARCH, {}))
    wrong = both(node, ("/search", SEARCH, {"Authorization": "Bearer mlvdb_1_2"}))
    other = both(node, ("/search", SEARCH, {"Authorization": f"Bearer {writer}"}))

    assert (good.status, good.ways) == ("200 OK", ["direct"])
    assert [nobody.status[:3], wrong.status[:3], other.status[:3]] == ["401", "401", "403"]


def test_a_revoked_key_ends_with_the_next_request(node: Node) -> None:
    row, reader = keys.key_create(name="reader", scopes=["read"])
    keys.key_create(name="other", scopes=["read"])
    headers = {"Authorization": f"Bearer {reader}"}
    assert node.ask("/search", SEARCH, headers=headers).ways == ["direct"]

    keys.key_revoke(row)

    assert node.ask("/search", SEARCH, headers=headers).status.startswith("401")


def test_a_node_whose_access_cannot_be_decided_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("mlvdb_site.http.access.markers_read", broken)

    assert node.ask("/search", SEARCH).status.startswith("500")


def test_whoever_wants_a_line_for_each_request_gets_it(
    node: Node, restored_log_level: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="mlvdb_site.http.request_id"):
        answer = node.ask("/search", SEARCH)

    assert answer.ways == ["whole"]
    assert "path='/search' status=200" in caplog.text


def test_the_whole_way_sends_in_one_piece_what_it_has_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectors.api.views.namespaces.STREAM_ROWS", 3)

    listed = node.ask("/namespaces", method="GET")
    streamed = node.ask("/namespaces/vectors", method="GET")

    assert type(listed.parts) is list
    assert type(streamed.parts) is not list
    assert len(orjson.loads(streamed.body)) == 6


def test_routes_are_answered_directly_only_where_the_view_allows_it(node: Node) -> None:
    assert set(node.application._routes) == {"/search", "/search/batch", "/count"}
