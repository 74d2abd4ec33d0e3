"""A database that fails under a request: 503 in the one shape, whichever layer meets it first, and never a 500."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connection

ROW = {"id": "x", "values": [1.0, 2.0, 3.0, 4.0]}
REQUESTS = [
    ("post", "/vectors", ROW),
    ("put", "/vectors/batch", {"vectors": [ROW]}),
    ("get", "/vectors/x", None),
    ("patch", "/vectors/x", {"metadata": {}}),
    ("post", "/vectors/fetch", {"ids": ["x"]}),
    ("post", "/vectors/delete", {"ids": ["x"]}),
    ("post", "/search", {"query": [1.0, 2.0, 3.0, 4.0]}),
    ("post", "/search/batch", {"searches": [{"query": [1.0, 2.0, 3.0, 4.0]}]}),
    ("post", "/count", {}),
    ("get", "/namespaces", None),
    ("get", "/namespaces?detail=1", None),
    ("put", "/namespaces/other", {"dimension": 3}),
    ("delete", "/namespaces/default", None),
    ("get", "/namespaces/vectors", None),
    ("get", "/storage/info", None),
]


@contextmanager
def without(table: str) -> Iterator[None]:
    """Take a table away for a while, which is what an SQLite file can be made to fail with."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")


def send(client: Any, method: str, path: str, body: Any) -> Any:
    return getattr(client, method)(path, **({} if body is None else {"data": body, "content_type": "application/json"}))


def assert_refused(answer: Any) -> None:
    assert answer.status_code == 503, answer.content
    assert int(answer["Retry-After"]) >= 1
    body = answer.json()
    assert body["error"]["code"] == "storage_error"
    assert body["request_id"] == answer["X-Request-ID"]
    assert "\n" not in body["error"]["message"]


@pytest.mark.parametrize("table", ["vectors_shardhead", "mlvdb_site_changemarker"])
def test_every_request_is_refused_while_the_database_fails_and_answered_again_afterwards(
    served: Any, node_client: Any, table: str
) -> None:
    assert send(node_client, "post", "/vectors", ROW).status_code == 201
    with without(table):
        for method, path, body in REQUESTS:
            assert_refused(send(node_client, method, path, body))
        assert node_client.get("/healthz").status_code == 200
    assert node_client.get("/vectors/x").json()["values"] == ROW["values"]


def test_an_error_that_no_domain_code_has_met_is_refused_all_the_same(
    served: Any, node_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> None:
        raise OperationalError("server closed the connection unexpectedly\n\tThis probably means…")

    monkeypatch.setattr("mlvdb_site.http.health.process_states", away)
    assert_refused(node_client.get("/health"))
    monkeypatch.setattr("mlvdb_site.http.access.last_used.touch", away)
    monkeypatch.setattr("mlvdb_site.http.access.AccessMiddleware.refusal", away)
    assert_refused(node_client.get("/count"))


def test_a_node_whose_database_fails_is_not_ready_until_it_is_back(
    served: Any, node_client: Any, wait_for: Callable[..., Any]
) -> None:
    wait_for(lambda: node_client.get("/readyz").status_code == 200)
    with without("vectors_shardhead"):
        wait_for(lambda: node_client.get("/readyz").status_code == 503, what="/readyz to say so")
        error = node_client.get("/readyz").json()["error"]
        assert error["code"] == "not_ready"
        assert "the database failed" in error["message"]
    wait_for(lambda: node_client.get("/readyz").status_code == 200)
