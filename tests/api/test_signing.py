"""Requests between nodes: what a signature covers, and who is let in with one, without one, with a wrong one."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
import pytest
from django.db import DatabaseError
from django.http import HttpResponse
from django.test import Client

from cluster.transport import PROTOCOL
from mlvdb_site import keys
from mlvdb_site.http import access
from mlvdb_site.http.signing import NO_BODY_SHA256, SignatureCheck, check_signature, sign
from tests.api.conftest import Api, checked_error
from tests.api.routes import Route, node_routes

SECRET = "a secret of the cluster"
NODE = "0123456789abcdef" * 2
ALIVE = "/cluster/node/alive"
STATUS = "/cluster/node/status"
ELSEWHERE = {"REMOTE_ADDR": "192.0.2.7", "HTTP_HOST": "db.example:8000"}


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def signed(method: str, path: str, body: bytes = b"", *, secret: str = SECRET, node: str = NODE) -> dict[str, str]:
    return sign(secret, node=node, method=method, path_and_query=path, body_sha256=digest(body))


def meta_of(method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, Any]:
    names = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    return {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **names}


# The signature itself


def test_a_signature_is_valid_where_it_was_meant() -> None:
    headers = signed("PUT", "/cluster/node/x?a=1&b=%2F", b"body")

    assert check_signature(SECRET, meta_of("PUT", "/cluster/node/x", "a=1&b=%2F", headers)) is SignatureCheck.VALID


def test_without_a_secret_nothing_is_signed() -> None:
    headers = sign("", node=NODE, method="GET", path_and_query="/a", body_sha256=NO_BODY_SHA256)

    assert headers == {"X-MLVDB-Node": NODE}
    assert check_signature("", meta_of("GET", "/a", "", headers)) is SignatureCheck.ABSENT
    assert check_signature(SECRET, meta_of("GET", "/a", "", headers)) is SignatureCheck.ABSENT
    assert check_signature("", meta_of("GET", "/a", "", signed("GET", "/a"))) is SignatureCheck.UNEXPECTED


@pytest.mark.parametrize("path", ["/a%20b", "/caf%C3%A9", "/%ff", "/a%2Fb", "/a+b;c=d,e"])
def test_a_percent_encoded_path_is_signed_as_what_it_means(path: str) -> None:
    meta = meta_of("GET", unquote_to_bytes(path).decode("latin-1"), "q=%C3%A9", signed("GET", f"{path}?q=%C3%A9"))

    assert check_signature(SECRET, meta) is SignatureCheck.VALID


@pytest.mark.parametrize(
    "change",
    [
        {"REQUEST_METHOD": "POST"},
        {"PATH_INFO": "/cluster/node/y"},
        {"QUERY_STRING": "a=2"},
        {"QUERY_STRING": ""},
        {"PATH_INFO": "/cluster/node/x?a=1", "QUERY_STRING": ""},
        {"PATH_INFO": "/cluster/node/xa", "QUERY_STRING": "=1"},
        {"SCRIPT_NAME": "/elsewhere"},
        {"HTTP_X_MLVDB_NODE": "f" * 32},
        {"HTTP_X_MLVDB_NODE": ""},
        {"HTTP_X_MLVDB_CONTENT_SHA256": "0" * 64},
        {"HTTP_X_MLVDB_CONTENT_SHA256": ""},
        {"HTTP_X_MLVDB_SIGNATURE": ""},
        {"HTTP_X_MLVDB_SIGNATURE": "v1="},
        {"HTTP_X_MLVDB_SIGNATURE": "v1=" + "0" * 64},
        {"HTTP_X_MLVDB_SIGNATURE": "v1=é" + "0" * 63},
        {"HTTP_X_MLVDB_SIGNATURE": "v0=" + "0" * 64},
    ],
    ids=str,
)
def test_a_signature_is_worth_nothing_for_anything_else(change: dict[str, str]) -> None:
    meta = meta_of("PUT", "/cluster/node/x", "a=1", signed("PUT", "/cluster/node/x?a=1", b"body"))

    assert check_signature(SECRET, {**meta, **change}) is SignatureCheck.WRONG
    assert check_signature("another secret", meta) is SignatureCheck.WRONG


def test_every_part_of_a_request_changes_its_signature() -> None:
    requests = [
        ("PUT", "/a", b""),
        ("POST", "/a", b""),
        ("PUT", "/b", b""),
        ("PUT", "/a?b", b""),
        ("PUT", "/ab", b""),
        ("PUT", "/a", b"x"),
    ]

    signatures = {signed(*request)["X-MLVDB-Signature"] for request in requests}

    assert len(signatures) == len(requests)
    assert signed("PUT", "/a", node="f" * 32)["X-MLVDB-Signature"] not in signatures


# Who is let in


@pytest.fixture
def secret(settings: Any) -> None:
    settings.MLVDB_CLUSTER_SECRET = SECRET


@pytest.fixture
def key(api: Api, monkeypatch: pytest.MonkeyPatch) -> str:
    """An API key with every scope: the node leaves protected mode."""
    monkeypatch.setattr(access, "last_used", keys.LastUsed())
    monkeypatch.setattr(keys, "_last_used_write", lambda key_id: None)
    return keys.key_create(name="test", scopes=["read", "write", "operate"])[1]


def test_nodes_of_one_machine_need_no_secret(api: Api) -> None:
    response = api.get(STATUS, headers={"X-MLVDB-Node": NODE})

    assert response.status_code == 200
    assert response.json()["protocol"] == PROTOCOL


@pytest.mark.parametrize("path", [STATUS, ALIVE])
def test_nodes_of_other_machines_do(api: Api, path: str) -> None:
    response = api.get(path, headers={"X-MLVDB-Node": NODE}, **ELSEWHERE)

    assert response.status_code == 403
    assert checked_error(response)["code"] == "protected_mode"


@pytest.mark.parametrize("path", [STATUS, ALIVE])
@pytest.mark.parametrize("named", [{}, {"X-MLVDB-Node": "me"}, {"X-MLVDB-Node": NODE.upper()}])
def test_what_names_no_node_is_no_node(api: Api, path: str, named: dict[str, str]) -> None:
    response = api.get(path, headers=named)

    assert response.status_code == 403
    error = checked_error(response)
    assert (error["code"], error["field"]) == ("nodes_only", "X-MLVDB-Node")


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Content-Type": "text/plain"},
    ],
)
def test_no_page_in_a_browser_reaches_the_routes_between_nodes(api: Api, sent: dict[str, str]) -> None:
    # A page may send any method with a plain content type to any site, but no header of its own without being asked.
    for method in ("GET", "POST"):
        response = api.send(method, STATUS, b"{}" if method == "POST" else b"", content_type="text/plain", headers=sent)
        assert response.status_code == 403


def test_no_site_is_told_that_its_pages_may_send_that_header(api: Api) -> None:
    preflight = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-mlvdb-node",
    }

    response = api.send("OPTIONS", STATUS, headers=preflight)

    assert response.status_code == 403
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_a_signed_request_is_let_in_from_anywhere(api: Api, secret: None) -> None:
    body = b'{"heads": {}}'
    read = api.get(STATUS, headers=signed("GET", STATUS), **ELSEWHERE)
    sent = api.post(STATUS, body, headers=signed("POST", STATUS, body), **ELSEWHERE)
    alive = api.get(ALIVE, headers=signed("GET", ALIVE), **ELSEWHERE)

    assert (read.status_code, sent.status_code, alive.status_code) == (200, 200, 204)


def test_a_signed_request_is_let_in_with_keys_too(api: Api, key: str, secret: None) -> None:
    assert api.get(STATUS, headers=signed("GET", STATUS), **ELSEWHERE).status_code == 200


@pytest.mark.parametrize("path", [STATUS, ALIVE])
def test_with_a_secret_an_unsigned_request_is_refused_also_from_this_machine(api: Api, secret: None, path: str) -> None:
    response = api.get(path, headers={"X-MLVDB-Node": NODE})

    assert response.status_code == 401
    error = checked_error(response)
    assert error["code"] == "cluster_secret_mismatch"
    assert "MLVDB_CLUSTER_SECRET" in error["message"]


@pytest.mark.parametrize("path", [STATUS, ALIVE])
def test_a_signed_request_to_a_node_without_a_secret_is_refused(api: Api, path: str) -> None:
    response = api.get(path, headers=signed("GET", path))

    assert response.status_code == 401
    error = checked_error(response)
    assert error["code"] == "cluster_secret_mismatch"
    assert "no MLVDB_CLUSTER_SECRET" in error["message"]


@pytest.mark.parametrize("path", [STATUS, ALIVE])
def test_another_secret_is_refused(api: Api, secret: None, path: str) -> None:
    response = api.get(path, headers=signed("GET", path, secret="another"))

    assert response.status_code == 401
    assert checked_error(response)["code"] == "cluster_secret_mismatch"


def test_with_keys_and_no_secret_nodes_are_told_what_is_missing(api: Api, key: str) -> None:
    unsigned = api.get(STATUS, headers={"X-MLVDB-Node": NODE})
    with_key = api.get(STATUS, headers={"X-MLVDB-Node": NODE, "Authorization": f"Bearer {key}"})

    for response in (unsigned, with_key):
        assert response.status_code == 401
        error = checked_error(response)
        assert error["code"] == "cluster_secret_required"
        assert "MLVDB_CLUSTER_SECRET" in error["message"]


def test_a_key_is_no_signature(api: Api, key: str, secret: None) -> None:
    response = api.get(STATUS, headers={"X-MLVDB-Node": NODE, "Authorization": f"Bearer {key}"})

    assert response.status_code == 401
    assert checked_error(response)["code"] == "cluster_secret_mismatch"


@pytest.mark.parametrize("sent", [b'{"heads": {"a": [1, 2]}}', b'{"heads": {}} ', b""])
def test_a_body_that_was_not_signed_is_refused_when_it_is_read(api: Api, secret: None, sent: bytes) -> None:
    response = api.post(STATUS, sent, headers=signed("POST", STATUS, b'{"heads": {}}'))

    assert response.status_code == 401
    assert checked_error(response)["code"] == "cluster_signature_mismatch"


def test_a_node_may_operate_another_and_read_it_but_not_write(api: Api, secret: None) -> None:
    path = "/replication/replicas?replica_id=a"
    search, row = orjson.dumps({"query": [1.0]}), orjson.dumps({"values": [1.0]})

    operate = api.post(path, b"", headers=signed("POST", path), **ELSEWHERE)
    read = api.post("/search", search, headers=signed("POST", "/search", search), **ELSEWHERE)
    write = api.post("/vectors", row, headers=signed("POST", "/vectors", row), **ELSEWHERE)

    assert checked_error(operate)["code"] == "replication_not_enabled"
    assert read.status_code == 200
    assert write.status_code == 403
    assert checked_error(write)["code"] == "missing_scope"


def test_a_forged_signature_does_not_open_what_a_key_would(api: Api, key: str, secret: None) -> None:
    headers = signed("GET", "/namespaces", secret="another")

    assert api.get("/namespaces", headers=headers).status_code == 401
    assert api.get("/namespaces", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_signature_opens_no_page_of_the_admin(api: Api, secret: None) -> None:
    response = api.get("/admin/", headers=signed("GET", "/admin/"))

    assert response.status_code == 302
    assert "/admin/login/" in response["Location"]


# The routes themselves


def no_database(*arguments: object, **options: object) -> None:
    raise DatabaseError("the disk is gone")


@pytest.mark.parametrize("is_signed", [False, True])
def test_alive_is_answered_when_the_database_is_not_there(
    api: Api, settings: Any, monkeypatch: pytest.MonkeyPatch, is_signed: bool
) -> None:
    settings.MLVDB_CLUSTER_SECRET = SECRET if is_signed else ""

    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.base.base.BaseDatabaseWrapper.ensure_connection", no_database)
        response = api.get(ALIVE, headers=signed("GET", ALIVE) if is_signed else {"X-MLVDB-Node": NODE})

    assert response.status_code == 204
    assert response["X-MLVDB-Node"] == settings.MLVDB_NODE_ID


def test_a_status_says_what_the_node_is_and_has(api: Api, settings: Any) -> None:
    api.post("/vectors", {"values": [1, 2, 3]})

    response = api.get(STATUS, headers={"X-MLVDB-Node": NODE})

    status = response.json()
    assert (status["node"], status["protocol"], status["cluster"]) == (settings.MLVDB_NODE_ID, PROTOCOL, "")
    assert (status["empty"], status["rows"], status["replicas"], status["is_owner"]) == (False, 1, 0, False)
    (shard,) = status["shards"]
    assert (shard["role"], shard["term"], shard["promised_term"], shard["quarantined"]) == ("primary", 1, 1, False)
    assert (shard["seq"], shard["oldest_seq"], shard["terms"], shard["damage"]) == (2, 1, [[1, 1]], None)
    assert response["X-MLVDB-Epoch"] == "0"


def test_an_empty_node_says_so(api: Api) -> None:
    assert api.get(STATUS, headers={"X-MLVDB-Node": NODE}).json()["empty"] is True
    api.post("/vectors", {"values": [1, 2, 3]})
    api.delete("/namespaces/default")
    assert api.get(STATUS, headers={"X-MLVDB-Node": NODE}).json()["empty"] is True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"heads": [], "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": 1}, "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": [1]}, "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": [1, True]}, "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": [1, -1]}, "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": [1, 2**63]}, "cluster": "c", "epoch": 1}, "heads"),
        ({"heads": {"a": [1, 2]}, "epoch": 1}, "cluster"),
        ({"heads": {"a": [1, 2]}, "cluster": "c"}, "epoch"),
        ({"heads": {"a": [1, 2]}, "cluster": "c", "epoch": "1"}, "epoch"),
    ],
    ids=str,
)
def test_a_head_of_the_wrong_form_is_refused(api: Api, body: Any, field: str) -> None:
    response = api.post(STATUS, body, headers={"X-MLVDB-Node": NODE})

    assert response.status_code == 400
    assert checked_error(response)["field"] == field


ROUTES = [route for route in node_routes() if route.view]
each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)


def ask(method: str, path: str, **headers: str) -> HttpResponse:
    client = Client(raise_request_exception=False)
    return client.generic(method, path, b"", headers={"X-MLVDB-Node": NODE, **headers})


@each_route
def test_every_route_between_nodes_answers_errors_in_the_one_shape(
    standing_api: Api, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("nobody expected this")

    missing = next(method for method in ("TRACE", "PATCH") if method not in route.methods)
    method = route.methods[0]

    not_there = ask(missing, route.path)
    unknown = ask(method, f"{route.path}?colour=red")
    page = ask(method, route.path, Accept="text/html")
    monkeypatch.setattr(route.view, method.lower(), fail)
    failed = ask(method, route.path)

    assert (not_there.status_code, checked_error(not_there)["code"]) == (405, "method_not_allowed")
    assert (unknown.status_code, checked_error(unknown)["field"]) == (400, "colour")
    assert page.status_code == 406
    assert (failed.status_code, checked_error(failed)["code"]) == (500, "internal_error")


@each_route
def test_no_route_between_nodes_is_open_to_others(standing_api: Api, route: Route) -> None:
    for method in route.methods:
        response = standing_api.send(method, route.path)
        assert response.status_code == 403, method
        assert checked_error(response)["code"] == "nodes_only"
