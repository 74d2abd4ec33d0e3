"""Nodes of a cluster, as far as one process can be one: the owner of a registry, or a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster.services import promotion
from cluster.services.registry import replication_enable
from cluster.topology import topology_forget
from mlvdb_site.node import NodeFiles
from tests.cluster.members import Members
from tests.cluster.registry import Registry, owner_of
from tests.cluster.shards import Coordinator
from tests.cluster.standin_node import Nodes, standin_nodes
from vectors import runtime
from vectors.models import ShardHead
from vectors.services import ensure_local_shard


@pytest.fixture
def head(transactional_db, settings, tmp_path) -> Iterator[ShardHead]:
    """An empty shard copy of a node with files of its own, in no cluster yet."""
    files = NodeFiles(tmp_path / "node")
    files.create()
    settings.NODE_FILES = files
    runtime.reset()
    topology_forget()
    yield ensure_local_shard()
    runtime.reset()
    topology_forget()


@pytest.fixture
def owner(head, monkeypatch) -> Registry:
    """This node as the owner of a registry; no task is sent anywhere, what would have been is in `sent`."""
    registry = owner_of(head)

    def publish(task: object, *args: object) -> bool:
        registry.sent.append((str(getattr(task, "name", task)), args))
        return True

    for module in ("cluster.health.samples", "cluster.services.promotion"):
        monkeypatch.setattr(f"{module}.publish", publish)
    promotion._fenced_since.clear()
    return registry


@pytest.fixture
def members(head, monkeypatch) -> Members:
    """The other members of this node's shard: they answer what a test says, and else refuse connections."""
    found = Members()
    monkeypatch.setattr("cluster.health.probe.status_ask", found.status_ask)
    monkeypatch.setattr("cluster.replication.election.peer_client", lambda: found)
    monkeypatch.setattr("cluster.services.promotion.peer_client", lambda: found)
    monkeypatch.setattr("cluster.replication.election._PAUSE_S", 0.0)
    monkeypatch.setattr("cluster.services.promotion.placements_push", lambda **_options: None)

    def publish(task: object, *args: object) -> bool:
        found.published.append((str(getattr(task, "name", task)), args))
        return True

    monkeypatch.setattr("cluster.services.promotion.publish", publish)
    promotion._fenced_since.clear()
    return found


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, tuple[object, ...]]]:
    """The tasks that the registry's services would have published."""
    tasks: list[tuple[str, tuple[object, ...]]] = []

    def publish(task: object, *args: object) -> bool:
        tasks.append((str(getattr(task, "name", task)), args))
        return True

    monkeypatch.setattr("cluster.services.registry.publish", publish)
    monkeypatch.setattr("cluster.services.placements.knock", lambda shard_uid: tasks.append(("knock", (shard_uid,))))
    return tasks


@pytest.fixture
def primary(head, sent) -> ShardHead:
    """The shard of this node, which may have replicas."""
    assert replication_enable(actor="test")
    return head


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Make nodes that listen, and end them with the test."""
    with standin_nodes() as make:
        yield make


@pytest.fixture
def coordinator(head, monkeypatch) -> Iterator[Callable[..., Coordinator]]:
    """Make this node a coordinator, and end its remote shards with the test."""
    monkeypatch.setattr("cluster.query_processor.processor.knock", lambda _shard_uid: None)
    made: list[Coordinator] = []

    def make(**shards: object) -> Coordinator:
        made.append(Coordinator(head, **shards))
        return made[-1]

    yield make
    for coordinator in made:
        coordinator.close()
