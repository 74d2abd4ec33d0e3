"""A real node for the tests of clients and of commands that speak HTTP: one per pytest process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings

from tests.clients.faults import FaultServer
from vectors.bench.private_node import private_node
from vectors.client import Client


@pytest.fixture(scope="session")
def node_url() -> Iterator[str]:
    """The URL of a running node."""
    with private_node(settings.BASE_DIR / "manage.py") as url:
        yield url


@pytest.fixture
def client(node_url: str) -> Iterator[Client]:
    """A client of an empty node."""
    with Client(node_url) as client:
        for namespace in client.namespaces():
            client.namespace_drop(namespace)
        client.forget_writes()
        yield client


@pytest.fixture
def faults() -> Iterator[FaultServer]:
    """A server that answers what the test says, request by request."""
    with FaultServer() as server:
        yield server
