"""What every test stands on: a database in a file, and clients on the node's machine. See also `tests.settings`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.test import Client, RequestFactory


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Keep the test database in a file: threads and processes cannot share one in memory."""
    from django.db import connections

    database = connections["default"].settings_dict
    if database["ENGINE"].endswith("sqlite3"):
        database["TEST"]["NAME"] = str(settings.NODE_FILES.root / "test.sqlite3")


@pytest.fixture(autouse=True, scope="session")
def _clients_on_this_machine() -> Iterator[None]:
    """Let test clients name the host they connect to, as every real one does; protected mode asks for it."""
    original = RequestFactory._base_environ

    def with_host(self: RequestFactory, **request: Any) -> dict[str, Any]:
        environ: dict[str, Any] = original(self, **request)
        environ.setdefault("HTTP_HOST", "localhost")
        return environ

    RequestFactory._base_environ = with_host  # type: ignore[method-assign]
    yield
    RequestFactory._base_environ = original  # type: ignore[method-assign]


#: What keeps threads in this process, and the function of each module that ends them.
_WITH_THREADS = (
    "cluster.query_processor.staleness",
    "cluster.replication.lanes",
    "cluster.replication.knocks",
    "vectors.runtime",
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """End the threads that would go on with a database that is taken away: before the fixtures end, which take it."""
    _end_threads()
    try:
        return (yield)
    finally:
        # What the fixtures have begun in ending.
        _end_threads()


def _end_threads() -> None:
    for name in _WITH_THREADS:
        if module := sys.modules.get(name):
            module.reset()


@pytest.fixture
def node_client() -> Client:
    """A program on the node's machine, which sees errors as answers."""
    return Client(raise_request_exception=False)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """Return a function that calls `condition` until it is true, and returns what it returned."""

    def wait(condition: Callable[[], Any], *, timeout_s: float = 10.0, what: str = "the condition") -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
            time.sleep(0.02)
        return value

    return wait
