"""A node of its own for each test, asked over HTTP with the whole stack: middleware, views, log, engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
import pytest
from django.core.management import call_command
from django.db import connection
from django.http import HttpResponse
from django.test import Client, override_settings
from django.test.utils import setup_databases, teardown_databases

from cluster.services import sharding_assignments
from cluster.services.sharding import sharding_enable
from cluster.topology import topology_forget
from mlvdb_site import logging_config
from mlvdb_site.node import NodeFiles
from tests.cluster.standin_node import Nodes, standin_nodes
from vectors import runtime
from vectors.services import ensure_local_shard

ERROR_FIELDS = {"code", "message", "field", "detail"}


class Api:
    """A program that speaks JSON with the node."""

    def __init__(self) -> None:
        self._client = Client(raise_request_exception=False)

    def send(
        self,
        method: str,
        path: str,
        body: object = b"",
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **environ: Any,
    ) -> HttpResponse:
        """Send a request; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return self._client.generic(method, path, data, content_type=content_type, headers=headers, **environ)

    def get(self, path: str, **more: Any) -> HttpResponse:
        """GET."""
        return self.send("GET", path, **more)

    def post(self, path: str, body: object = b"", **more: Any) -> HttpResponse:
        """POST."""
        return self.send("POST", path, body, **more)

    def put(self, path: str, body: object = b"", **more: Any) -> HttpResponse:
        """PUT."""
        return self.send("PUT", path, body, **more)

    def patch(self, path: str, body: object = b"", **more: Any) -> HttpResponse:
        """PATCH."""
        return self.send("PATCH", path, body, **more)

    def delete(self, path: str, body: object = b"", **more: Any) -> HttpResponse:
        """DELETE."""
        return self.send("DELETE", path, body, **more)

    def page(self, path: str, **more: Any) -> HttpResponse:
        """GET as a browser does."""
        return self.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, **more)


@pytest.fixture
def api(transactional_db, settings, tmp_path) -> Iterator[Api]:
    """A node with an empty shard."""
    files = NodeFiles(tmp_path / "node")
    files.create()
    settings.NODE_FILES = files
    runtime.reset()
    ensure_local_shard()
    yield Api()
    runtime.reset()


@pytest.fixture
def coordinator(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An empty coordinator of shard_0 and shard_1; moves are asked for, and nobody runs them."""
    for module in ("moves.control", "services.sharding_assignments", "health.shards", "health.samples"):
        monkeypatch.setattr(f"cluster.{module}.publish", lambda *_task: True)
    monkeypatch.setattr(sharding_assignments, "_has_said_url", True)
    topology_forget()
    assert sharding_enable(strategy="hash", shards=2, actor="test")
    yield api
    topology_forget()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Make nodes that listen, and end them with the test."""
    with standin_nodes() as make:
        yield make


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker) -> Iterator[None]:
    """Make the database also where all tests that run have it from `standing_api`, which pytest-django does not see."""
    with django_db_blocker.unblock():
        made = setup_databases(0, False) if not connection.introspection.table_names() else []
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, 0)


@pytest.fixture(scope="module")
def standing_api(django_db_setup, django_db_blocker, tmp_path_factory) -> Iterator[Api]:
    """A node that stands for a whole module, whose tests must leave it as it is: five rows of dimension 3."""
    files = NodeFiles(tmp_path_factory.mktemp("node"))
    files.create()
    with django_db_blocker.unblock(), override_settings(NODE_FILES=files):
        runtime.reset()
        ensure_local_shard()
        standing = Api()
        rows = [{"id": number, "values": [number, 1, 2], "metadata": {"n": number}} for number in range(5)]
        assert standing.put("/vectors/batch", {"vectors": rows}).status_code == 200
        yield standing
        runtime.reset()
        call_command("flush", interactive=False, verbosity=0)


@pytest.fixture
def error_of() -> Callable[[HttpResponse], dict[str, Any]]:
    """Return a function that checks that an answer is an error in the one shape, and returns what is in it."""
    return checked_error


def checked_error(response: HttpResponse) -> dict[str, Any]:
    """Check that an answer is an error in the one shape and return what is in it."""
    assert response.status_code >= 400, response.content[:500]
    assert response["Content-Type"] == "application/json"
    body = orjson.loads(response.content)
    assert set(body) == {"error", "request_id"}
    error = body["error"]
    assert set(error) == ERROR_FIELDS
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["field"] is None or isinstance(error["field"], str)
    assert isinstance(error["detail"], dict)
    assert body["request_id"] == response["X-Request-ID"]
    return error


@pytest.fixture
def restored_log_level() -> Iterator[None]:
    """Put the levels of the project's loggers back."""
    names = ["", *logging_config.OWN_LOGGERS]
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
