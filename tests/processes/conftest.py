"""Nodes for the tests of this directory; tests that only look share one, tests that kill have their own."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.processes.node import NodeProcess

STARTS_NODES = {"NodeProcess", "ReplicationCluster", "ShardedCluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start nodes."""
    for item in items:
        if STARTS_NODES & vars(getattr(item, "module", None) or object).keys():
            item.add_marker(pytest.mark.processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the nodes of the test wrote."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            # A cluster, or a node.
            if hasattr(value, "log_tail"):
                report.sections.append((f"output and logs of {name}", value.log_tail()))
    return report


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    """A node of the test's own, running."""
    process = NodeProcess()
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture(scope="module")
def shared_node() -> Iterator[NodeProcess]:
    """A running node that no test here may harm."""
    process = NodeProcess()
    try:
        yield process.start()
    finally:
        process.close()
