"""Requests as no client library sends them, byte for byte, to a real node: answered 4xx or well, never 5xx or never.

What the web server refuses by itself (a request line or framing that is no HTTP) has no body; whatever reaches the
node's own code is answered in the one error shape.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.processes.node import NodeProcess, wait_for

VECTOR = b'{"values": [1, 2, 3]}'
PATH = "/vectors?namespace=raw"
ANSWER_WITHIN_S = 5.0
CHUNKED = "Transfer-Encoding: chunked"


class Answer(NamedTuple):
    """One answer on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in the one shape."""
        body = json.loads(self.body)
        assert set(body) == {"error", "request_id"}
        assert body["request_id"] == self.headers["x-request-id"]
        error = body["error"]
        assert set(error) == {"code", "message", "field", "detail"}
        return dict(error)


def request(
    method: str,
    target: str,
    body: bytes = b"",
    *headers: str,
    version: str = "1.1",
    length: object = None,
    content_type: str | None = "application/json",
    host: str | None = "localhost",
    last: bool = True,
) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if CHUNKED not in headers and (length is not None or body):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    if last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, *headers]).encode("latin-1") + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def exchange(node: NodeProcess, *sent: bytes, end: bool = False) -> list[Answer]:
    """Send pieces and return the answers, when the node closes the connection; `end` closes our side of it first."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=ANSWER_WITHIN_S) as connection:
        for piece in sent:
            connection.sendall(piece)
            time.sleep(0.02 if len(sent) > 1 else 0)
        if end:
            connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        while data := connection.recv(65536):
            received += data
    return _answers(bytes(received), head="HEAD " in sent[0][:5].decode("latin-1"))


def _answers(received: bytes, *, head: bool) -> list[Answer]:
    answers = []
    while received:
        top, _, received = received.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if status < 200:
            continue
        body = b""
        if not head and headers.get("transfer-encoding") == "chunked":
            while size := int(received.partition(b"\r\n")[0], 16):
                received = received.partition(b"\r\n")[2]
                body, received = body + received[:size], received[size + 2 :]
            received = received.partition(b"\r\n\r\n")[2]
        elif not head:
            length = int(headers.get("content-length", len(received)))
            body, received = received[:length], received[length:]
        answers.append(Answer(status, headers, body))
    return answers


REFUSED = {
    "a hundred thousand brackets": (request("POST", "/search", b"[" * 100_000), 400, "body"),
    "a compressed body": (
        request("POST", PATH, gzip.compress(VECTOR), "Content-Encoding: gzip"),
        415,
        "Content-Encoding",
    ),
    "a body that ends early": (request("POST", PATH, VECTOR, length=5), 400, "body"),
    "a body in chunks that are none": (request("POST", PATH, b"zz\r\nabc\r\n0\r\n\r\n", CHUNKED), 400, "values"),
    "a body of a trillion bytes": (request("POST", PATH, VECTOR, length=10**12), 413, "body"),
    "a long id": (request("GET", "/vectors/" + "a" * 60_000), 400, "id"),
    "a NUL in an id": (request("GET", "/vectors/a%00b?namespace=raw"), 404, "id"),
    "a NUL in a namespace": (request("PUT", "/namespaces/a%00b", b'{"dimension": 3}'), 400, "name"),
    "a NUL for a path": (request("GET", "/%00"), 404, None),
    "a path that is not UTF-8": (request("GET", "/vectors/%ff%fe?namespace=raw"), 404, "id"),
    "a path with half an escape": (request("GET", "/vectors/%?namespace=raw"), 404, "id"),
    "a query that is not UTF-8": (request("GET", "/namespaces/vectors?after=%ff"), 400, "query"),
    "a path out of the static files": (request("GET", "/static/%2e%2e/%2e%2e/manage.py"), 404, None),
    "dots in a path": (request("GET", "/a/../health"), 404, None),
    "two slashes": (request("GET", "//health"), 404, None),
    "an unknown method": (request("BREW", "/vectors"), 405, "method"),
    "an unknown method on the schema": (request("BREW", "/schema"), 405, "method"),
    "CONNECT": (request("CONNECT", "localhost:80"), 405, "method"),
    "TRACE": (request("TRACE", "/search"), 405, "method"),
    "no host": (request("GET", "/health", host=None), 403, None),
    "two hosts": (request("GET", "/health", b"", "Host: elsewhere"), 403, None),
    "another host": (request("GET", "http://localhost/health", host="elsewhere"), 403, None),
    "a header that is not ASCII": (
        request("GET", "/vectors/1", b"", "X-MLVDB-Consistency: \xff\xfe"),
        400,
        "consistency",
    ),
    "a key that is not ASCII": (request("POST", PATH, VECTOR, "Idempotency-Key: \xff"), 400, "Idempotency-Key"),
}
NO_HTTP = {
    "a length below zero": request("POST", PATH, VECTOR, length=-5),
    "a length that is no number": request("POST", PATH, VECTOR, length="many"),
    "a length with a sign": request("POST", PATH, VECTOR, length="+21"),
    "two lengths": request("POST", PATH, VECTOR, "Content-Length: 5"),
    "another transfer coding": request("POST", PATH, gzip.compress(VECTOR), "Transfer-Encoding: gzip"),
    "a megabyte of URL": request("GET", "/vectors/" + "a" * 1_000_000),
    "five hundred headers": request("GET", "/health", b"", *[f"X-{number}: 1" for number in range(500)]),
    "bytes in the path": b"GET /vectors/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2.0 in the request line": request("GET", "/health", version="2.0"),
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xff hello\r\n\r\n",
}
UNDERSTOOD = {
    "no content type": (request("POST", PATH, VECTOR, content_type=None), 201),
    "a charset": (request("POST", PATH, VECTOR, content_type="application/json; charset=UTF-8"), 201),
    "a body in chunks": (request("POST", PATH, chunk(VECTOR[:5]) + chunk(VECTOR[5:]) + b"0\r\n\r\n", CHUNKED), 201),
    "a body that is not compressed": (request("POST", PATH, VECTOR, "Content-Encoding: identity"), 201),
    "a key given twice": (request("POST", PATH, b'{"values": [1, 2, 3], "id": 1, "id": "two"}'), 201),
    "a NUL in an id": (request("POST", PATH, b'{"values": [1, 2, 3], "id": "a\\u0000b"}'), 201),
    "HTTP/1.0": (request("GET", "/health", version="1.0"), 200),
    "an absolute URL": (request("GET", "http://localhost/health"), 200),
    "a URL with a fragment": (request("GET", "/health#top"), 200),
    "a method in lower case": (request("get", "/health"), 200),
    "an Accept that is no list of types": (request("GET", "/health", b"", "Accept: \xff;q=x,,;*/,*/*"), 200),
    "cookies that are none": (request("GET", "/health", b"", "Cookie: \xff=\xfe; sessionid=%00"), 200),
}


@pytest.fixture(autouse=True, scope="module")
def _a_namespace(shared_node: NodeProcess) -> None:
    assert shared_node.post(PATH, json.loads(VECTOR)).status_code == 201


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_the_one_shape(shared_node: NodeProcess, name: str) -> None:
    sent, status, field = REFUSED[name]

    (answer,) = exchange(shared_node, sent)

    assert answer.status == status, answer
    assert answer.error["field"] == field


@pytest.mark.parametrize("name", NO_HTTP)
def test_is_refused_by_the_web_server(shared_node: NodeProcess, name: str) -> None:
    (answer,) = exchange(shared_node, NO_HTTP[name])

    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_is_understood(shared_node: NodeProcess, name: str) -> None:
    sent, status = UNDERSTOOD[name]

    (answer,) = exchange(shared_node, sent)

    assert answer.status == status, answer


def test_a_body_cut_off_with_its_connection_is_refused(shared_node: NodeProcess) -> None:
    (answer,) = exchange(shared_node, request("POST", PATH, VECTOR, length=500), end=True)

    assert answer.status == 400
    assert answer.error["code"] == "incomplete_body"


def test_a_body_that_waits_for_100_continue_is_taken(shared_node: NodeProcess) -> None:
    waiting = request("POST", PATH, b"", "Expect: 100-continue", length=len(VECTOR))

    (answer,) = exchange(shared_node, waiting, VECTOR)

    assert answer.status == 201


def test_requests_sent_without_waiting_are_answered_in_turn(shared_node: NodeProcess) -> None:
    answers = exchange(
        shared_node,
        request("GET", "/healthz", last=False)
        + request("POST", PATH, b"{bad", last=False)
        + request("GET", "/count", last=False)
        + request("GET", "/healthz"),
    )

    assert [answer.status for answer in answers] == [200, 400, 405, 200]
    assert answers[1].error["code"] == "invalid_json"


def test_a_refused_body_is_not_read_as_the_next_request(shared_node: NodeProcess) -> None:
    smuggled = request("DELETE", "/namespaces/raw")
    first = request("POST", PATH, smuggled, "Content-Encoding: gzip", last=False)

    answers = exchange(shared_node, first + request("GET", "/healthz"))

    assert [answer.status for answer in answers] == [415, 200]
    assert answers[1].body == b'{"status":"alive"}'


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "BREW"])
def test_every_path_of_the_schema_answers_every_method(shared_node: NodeProcess, method: str) -> None:
    schema = shared_node.get("/schema").json()
    assert len(schema["paths"]) > 40
    shared = {f"#/components/parameters/{name}": part for name, part in schema["components"]["parameters"].items()}

    for path, operations in schema["paths"].items():
        (answer,) = exchange(shared_node, request(method, path.replace("{", "").replace("}", "")))
        known = {"HEAD": (200, 404, 405), "OPTIONS": (200,), "BREW": (405,)}[method]
        parts = [shared.get(part.get("$ref"), part) for part in operations.get("get", {}).get("parameters", ())]
        if method == "HEAD" and any(part["in"] == "query" and part.get("required") for part in parts):
            known = (400,)
        assert answer.status in known, (path, answer)
        assert "allow" in answer.headers or path == "/metrics", path
        if method == "HEAD":
            assert answer.body == b""
        elif method == "BREW":
            assert answer.error["field"] == "method"


def test_metadata_as_deep_as_it_may_be_comes_back_whole(shared_node: NodeProcess) -> None:
    depth = 250
    metadata = {"a": json.loads("[" * depth + "1" + "]" * depth)}
    row = {"id": "deep", "values": [1.0, 2.0, 3.0], "metadata": metadata}

    assert shared_node.post("/vectors?namespace=deep", row).status_code == 201

    assert shared_node.get("/vectors/deep?namespace=deep").json() == row
    assert shared_node.get("/namespaces/vectors?namespace=deep").json() == [row]
    found = shared_node.post(
        "/search/batch?namespace=deep", {"searches": [{"id": "deep", "filter": {"a": 1}}, {"id": "deep"}]}
    )
    assert found.json()[1][0]["metadata"] == metadata
    for accept in ("application/msgpack", "text/html"):
        assert shared_node.get("/vectors/deep?namespace=deep", headers={"Accept": accept}).status_code == 200
    assert shared_node.post("/count?namespace=deep", {"filter": {"a__isnull": False}}).json() == {"count": 1}


def test_clients_that_never_finish_their_bodies_do_not_take_the_node_from_others() -> None:
    with NodeProcess(options=("--workers", "1", "--threads", "4")) as node, ExitStack() as stalled:
        for _ in range(4):
            connection = socket.create_connection(("127.0.0.1", node.port), timeout=ANSWER_WITHIN_S)
            stalled.enter_context(connection)
            connection.sendall(request("POST", PATH, b'{"values"', length=100))
        wait_for(lambda: node.post(PATH, json.loads(VECTOR)).status_code == 503, what="two bodies that are waited for")

        assert node.get("/healthz").status_code == 200
        assert node.get("/namespaces").status_code == 200
        refused = node.post("/search", {"query": [1, 2, 3]})
        assert refused.json()["error"]["code"] == "busy"
        assert refused.headers["Retry-After"] == "1"

        stalled.close()
        wait_for(lambda: node.post(PATH, json.loads(VECTOR)).status_code == 201, what="the end of the waiting")


def test_nothing_of_this_was_a_failure_of_the_node(shared_node: NodeProcess) -> None:
    log = (shared_node.data_dir / "logs" / "web.log").read_text()

    assert "Traceback" not in log, log[-6000:]
    assert "ERROR" not in log, log[-6000:]
