"""Nodes for the tests of this directory; tests that only look share one, tests that kill have their own.

A module whose tests share a cluster says in its fixture `running` what cluster that is, and in `FIXED_ROWS` how many
rows nobody is to change; the fixtures about a cluster here are those of `running`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest

from tests.processes.cluster import NodeGroup
from tests.processes.history import History
from tests.processes.node import NodeProcess, wait_for
from tests.processes.redis_server import RedisServer
from tests.processes.sharded_clients import FixedRows, ShardingRecorder
from tests.processes.sharded_cluster import ShardedCluster
from tests.processes.sharded_history import ShardingHistory

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


@pytest.fixture
def make() -> Iterator[Callable[..., NodeProcess]]:
    """Make nodes, not started yet, that end with the test."""
    with ExitStack() as stack:

        def node(*options: str, **environ: str) -> NodeProcess:
            process = NodeProcess(options=options, **environ)
            stack.callback(process.close)
            return process

        yield node


@pytest.fixture
def two_nodes(make: Callable[..., NodeProcess]) -> list[NodeProcess]:
    """Two empty nodes, running; they start at the same time."""
    nodes = [make(), make()]
    for node in nodes:
        node.launch()
    for node in nodes:
        wait_for(node._is_ready, timeout_s=60)
    return nodes


@pytest.fixture(scope="module")
def broker() -> Iterator[RedisServer]:
    """A broker that may be killed."""
    with RedisServer() as server:
        yield server


# -- a cluster that the tests of a module share ----------------------------------------------------------------------


@pytest.fixture
def cluster(running: NodeGroup) -> Iterator[NodeGroup]:
    """The cluster of the module, well again after each test, whatever it did."""
    yield running
    running.heal()


@pytest.fixture(scope="module")
def history() -> History:
    """What all tests of the module wrote to a cluster of one shard."""
    return History()


@pytest.fixture(scope="module")
def recorder(running: ShardedCluster) -> ShardingRecorder:
    """What sends single requests to a sharded cluster; its history is that of all tests of the module."""
    return ShardingRecorder(running.coordinator, ShardingHistory())


@pytest.fixture(scope="module")
def fixed(recorder: ShardingRecorder, request: pytest.FixtureRequest) -> FixedRows:
    """Rows that nobody changes, spread over all shards."""
    return recorder.write_fixed(request.module.FIXED_ROWS)
