"""`ReplicationManagerImpl`: the replicas of a storage engine, over the services that REST and the admin use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from cluster.library.background import background_processes
from cluster.library.engines import engine_session
from cluster.library.preparation import ACTOR, interval_check, prepare
from vectors.errors import InvalidInput

if TYPE_CHECKING:
    from cluster.library.session import Session
    from vectors.library import StorageEngineInMemory
    from vectors.library.vectors import AnyVector, Id

HEALTH_TASK = "cluster.tasks.health_replicas"
DEFAULT_NAMESPACE = "default"


class ReplicationManagerImpl:
    """A storage engine as primary, and the nodes that keep copies of it. Thread-safe; used as a context or shut down.

    Whatever is written to the engine from now on, through this object or not, is shipped to the replicas by Celery: a
    broker, a worker and beat run as processes of the program until `shutdown`, the end of a `with`, or exit. Replicas
    are empty nodes at URLs; each keeps one storage engine. Other nodes cannot reach a program. When it ends, one of its
    replicas can be promoted (docs/promotion.md); a program that finds out that one was takes no writes any more.

    `primary_replica_id` is what the primary is called in `get_replica_info`. `health_check_interval` is in seconds, and
    the program's: the last manager that was made decides.
    """

    def __init__(
        self,
        primary_storage: StorageEngineInMemory,
        primary_replica_id: str = "primary",
        health_check_interval: float = 5.0,
    ) -> None:
        interval_check(health_check_interval)
        self.primary_storage = primary_storage
        self._primary_replica_id = primary_replica_id
        self._lock = threading.Lock()
        self._is_shut_down = False
        prepare(health_task=HEALTH_TASK, health_check_interval=health_check_interval)
        background_processes().enter()
        _have_knocks(primary_storage, wanted=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End what runs in the background; a second time does nothing.

        The replicas stay registered and keep what they have. Another manager of the same engine goes on with them.
        """
        with self._lock:
            if self._is_shut_down:
                return
            self._is_shut_down = True
        _have_knocks(self.primary_storage, wanted=False)
        background_processes().leave()

    # Replicas.

    @property
    def primary_replica(self) -> str:
        """What the primary is called."""
        return self._primary_replica_id

    @property
    def replica_count(self) -> int:
        """How many replicas are healthy, by the newest probe of each."""
        return int(self.get_replica_info()["healthy_replicas"])

    def list_replicas(self) -> list[str]:
        """Return the ids of the replicas, sorted."""
        from cluster.models import Replica

        return list(Replica.objects.filter(shard=self.primary_storage.shard_uid).values_list("name", flat=True))

    def add_replica(self, replica_id: str, replica_url: str) -> bool:
        """Register a node as replica; return whether it is new. What the engine has is copied in the background.

        A node that is not up yet is registered all the same. Raise ReplicaExists when the id or the URL is another
        replica's (of this program: two engines cannot share them), InvalidInput, and Conflict with the reason when a
        node cannot be a replica: it holds data, belongs to another cluster, is of another version.
        """
        from cluster.services import registry

        self._check_running()
        if replica_id == self._primary_replica_id:
            raise InvalidInput(f"{replica_id} is the primary", field="replica_id")
        _forget_closed_engines()
        _, is_new = registry.replica_add(
            name=replica_id, url=replica_url, shard=self.primary_storage.shard_uid, actor=ACTOR
        )
        registry.replica_check(name=replica_id)
        return is_new

    def remove_replica(self, replica_id: str, *, force: bool = False) -> bool:
        """Remove a replica; return whether there was one. Its node keeps its copy, read-only.

        Raise Conflict while that might lose what only it has; `force` removes it all the same.
        """
        from cluster.services.removal import replica_remove

        self._check_running()
        if replica_id not in self.list_replicas():
            return False
        replica_remove(name=replica_id, force=force, actor=ACTOR)
        return True

    def check_replica_health(self, replica_id: str) -> bool:
        """Probe a replica now; return whether it answers as it should. Raise ReplicaNotFound."""
        from cluster.services import registry

        return registry.replica_check(name=self._known(replica_id))

    def check_all_replicas_health(self) -> dict[str, bool]:
        """Probe all replicas now, at once; return {id: whether it answers as it should}."""
        from cluster.health.rounds import probe_now
        from cluster.models import Replica

        return probe_now(list(Replica.objects.filter(shard=self.primary_storage.shard_uid)))

    def sync_replica(self, replica_id: str, namespace: str | None = None) -> int:
        """Start a catch-up, or the full sync that a copy needs; return the number of the move that shows how far it is.

        The log has all namespaces, so all are synced. Raise ReplicaNotFound.
        """
        from cluster.services import registry

        self._check_running()
        move = registry.replica_sync(name=self._known(replica_id), namespace=namespace, actor=ACTOR)
        return int(move.pk)

    def get_replica_info(self) -> dict[str, Any]:
        """Return what `GET /replication/info` answers, of this engine's replicas.

        When one of them was promoted, this is what the program knows as a replica of it.
        """
        from cluster.overview import replication_info

        info = replication_info()
        if info["role"] != "primary":
            return info
        mine = set(self.list_replicas())
        replicas = {name: replica for name, replica in info["replicas"].items() if name in mine}
        return {
            **info,
            "primary_replica": self._primary_replica_id,
            "total_replicas": len(replicas),
            "healthy_replicas": sum(bool(replica["is_healthy"]) for replica in replicas.values()),
            "replicas": replicas,
        }

    # Writes.

    def replicate_write(
        self, vector: AnyVector, namespace: str = DEFAULT_NAMESPACE, *, timeout_s: float | None = None
    ) -> dict[str, bool]:
        """Write a vector, wait until every replica has it, and return {replica: whether it has}.

        One that cannot be reached is not waited for, others for `timeout_s` (MLVDB_WRITE_TIMEOUT_S) at most; they get
        the write later. Raise NotPrimary, and what the storage engine raises.
        """
        return self.replicate_batch_write([vector], namespace, timeout_s=timeout_s)

    def replicate_batch_write(
        self, vectors: Iterable[AnyVector], namespace: str = DEFAULT_NAMESPACE, *, timeout_s: float | None = None
    ) -> dict[str, bool]:
        """Write vectors, wait until every replica has them, and return {replica: whether it has}."""
        session, storage = self._session()
        storage.write_vectors(vectors, namespace)
        return self._wait(session.written(self.primary_storage.shard_uid), timeout_s)

    def replicate_delete(
        self, vector_id: Id, namespace: str = DEFAULT_NAMESPACE, *, timeout_s: float | None = None
    ) -> dict[str, bool]:
        """Delete a vector, wait until every replica has done it, and return {replica: whether it has}."""
        session, storage = self._session()
        storage.delete(vector_id, namespace)
        return self._wait(session.written(self.primary_storage.shard_uid), timeout_s)

    def _session(self) -> tuple[Session, StorageEngineInMemory]:
        self._check_running()
        return engine_session(self.primary_storage)

    def _wait(self, position: Any, timeout_s: float | None) -> dict[str, bool]:
        """Wait for a position of the log; a call that wrote nothing (no such row) waits for the log's end."""
        from django.conf import settings

        from cluster.replication import lanes
        from vectors.store import log

        deadline = time.monotonic() + (settings.MLVDB_WRITE_TIMEOUT_S if timeout_s is None else timeout_s)
        if position is None:
            head = log.read_head(self.primary_storage.shard_id)
            assert head is not None
            position = head.position
        return lanes.wait_for_each(self.primary_storage.shard_uid, position, deadline=deadline)

    def _known(self, replica_id: str) -> str:
        from cluster.services.registry import ReplicaNotFound

        if replica_id not in self.list_replicas():
            raise ReplicaNotFound(f"there is no replica {replica_id}", field="replica_id")
        return replica_id

    def _check_running(self) -> None:
        if self._is_shut_down:
            raise ValueError("the replication manager is shut down")
        background_processes().ensure()


def _have_knocks(storage: StorageEngineInMemory, *, wanted: bool) -> None:
    """Have writes that go to the engine itself tell the senders too, or no more."""
    from cluster.replication.knocks import knock

    if wanted and storage.is_closed:
        raise ValueError(f"storage engine {storage.label} is closed")
    storage.local.on_knock = knock if wanted else None


def _forget_closed_engines() -> None:
    """Drop the replicas of storage engines that are no more: nobody will send to them, and their ids are free."""
    from cluster.models import PlacementPush, Replica
    from cluster.services.changes import Unchanged, registry_change
    from vectors.models import ShardHead

    def left() -> list[Replica]:
        return list(Replica.objects.exclude(shard="").exclude(shard__in=ShardHead.objects.values("uid")))

    if not left():
        return
    with registry_change(actor=ACTOR, action="replica_removed", subject="closed storage engines") as change:
        gone = left()
        if not gone:
            raise Unchanged
        change.before = {replica.name: replica.url for replica in gone}
        PlacementPush.objects.filter(shard__in=[replica.shard for replica in gone]).delete()
        Replica.objects.filter(pk__in=[replica.pk for replica in gone]).delete()
