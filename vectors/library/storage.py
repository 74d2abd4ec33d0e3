"""`StorageEngineInMemory`: one shard copy, with its own log, segments and engine in this process."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import orjson

from vectors.engine.ids import key_of
from vectors.errors import CheckpointBehind, MLVectorDBError, NamespaceNotFound
from vectors.library.environment import ensure_django
from vectors.library.vectors import AnyVector, Id, Vector, float32_matrix, id_from, keys_of

if TYPE_CHECKING:
    from vectors.query_processor.local import LocalQueryProcessor
    from vectors.query_processor.port import QueryProcessor, Record, WriteResult

logger = logging.getLogger(__name__)

NewIds = Callable[[int], Sequence[Id]]
"""Makes as many ids as it is asked for."""

_PAGE_ROWS = 1000
_RETRY_S = 0.5


class StorageEngineInMemory:
    """Vectors by namespace and id, searched in memory. Thread-safe; `close`, or the end of a `with`, drops its data.

    Nothing but this object uses its shard copy. A namespace has the dimension of its first vector.
    """

    storage_type = "in-memory"

    def __init__(self) -> None:
        ensure_django()
        # Models and all that needs them can be imported only now.
        from vectors import services
        from vectors.models import ShardHead
        from vectors.query_processor.local import LocalQueryProcessor

        # A node's first shard copy is its own: see that it exists before this one does.
        services.ensure_local_shard()
        head = ShardHead.objects.create(label=f"storage_{uuid.uuid4().hex[:12]}")
        self.shard_id: int = head.pk
        self.shard_uid: str = head.uid
        self.label: str = head.label
        self._checkpoints = _Checkpoints(head.label)
        self._local = LocalQueryProcessor(head.pk, request_checkpoint=self._checkpoints.start)
        self._processor: QueryProcessor = self._local
        self._newest: QueryProcessor = self._local
        self._new_ids: NewIds = _random_ids
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<StorageEngineInMemory {self.label}{' closed' if self._closed.is_set() else ''}>"

    @property
    def query_processor(self) -> QueryProcessor:
        """The shard copy behind the port of `vectors.query_processor`; raise ValueError when it is closed."""
        if self._closed.is_set():
            raise ValueError(f"storage engine {self.label} is closed")
        return self._processor

    @property
    def local(self) -> LocalQueryProcessor:
        """The shard copy alone, whatever stands before it."""
        return self._local

    @property
    def is_closed(self) -> bool:
        """Whether its data has been dropped."""
        return self._closed.is_set()

    def through(
        self,
        query_processor: QueryProcessor,
        *,
        newest: QueryProcessor | None = None,
        new_ids: NewIds | None = None,
        outlives: bool = False,
    ) -> Self:
        """Return this engine as it is seen through another query processor. Close the original.

        `newest` is who knows the newest namespaces (the shard copy itself), `new_ids` who makes the ids of vectors that
        have none (random UUIDs). With `outlives` it can be asked when the original is closed: there is more behind it.
        """
        seen = copy.copy(self)
        if outlives:
            seen._closed = threading.Event()
        seen.ask_through(query_processor, newest=newest, new_ids=new_ids)
        return seen

    def ask_through(
        self,
        query_processor: QueryProcessor | None,
        *,
        newest: QueryProcessor | None = None,
        new_ids: NewIds | None = None,
    ) -> None:
        """Be asked through another query processor from now on, as `through` says; None: through none any more."""
        self._processor = query_processor or self._local
        self._newest = newest or self._local
        self._new_ids = new_ids or _random_ids

    def close(self) -> None:
        """Drop the data; a second time does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._checkpoints.end()
        from vectors.models import ShardHead
        from vectors.store.manifests import segment_directory

        ShardHead.objects.filter(pk=self.shard_id).delete()
        shutil.rmtree(segment_directory(self.shard_uid, "").resolve(), ignore_errors=True)

    # Vectors.

    def write(self, vector: AnyVector, namespace: str) -> bool:
        """Write a vector; a known id is replaced. A VectorDTO without an id gets one."""
        return self.write_vectors([vector], namespace)[0]

    def write_vectors(self, vectors: Iterable[AnyVector], namespace: str) -> list[bool]:
        """Write vectors, all or none of a batch; raise InvalidInput for what cannot be stored."""
        from django.conf import settings

        from vectors.query_processor.parsing import metadata_of
        from vectors.query_processor.port import VectorBatch

        rows = list(vectors)
        if not rows:
            return []
        nameless = [row for row in rows if row.id is None]
        for row, new_id in zip(nameless, self._new_ids(len(nameless)) if nameless else (), strict=True):
            row.id = new_id
        values = float32_matrix(rows)
        keys = keys_of(row.id for row in rows)
        metadata = [metadata_of(row.metadata, field=f"vectors[{place}].metadata") for place, row in enumerate(rows)]
        for start in range(0, len(rows), settings.MLVDB_MAX_BATCH):
            part = slice(start, start + settings.MLVDB_MAX_BATCH)
            batch = VectorBatch(keys[part], values[part], metadata[part])
            self._write(partial(self.query_processor.upsert_many, batch, namespace=namespace))
        return [True] * len(rows)

    def read(self, vector_id: Id, namespace: str) -> Vector | None:
        """Return a vector, None when it is not there."""
        return self.read_vectors([vector_id], namespace)[0]

    def read_vectors(self, vector_ids: Sequence[Id], namespace: str) -> list[Vector | None]:
        """Return vectors in the order of their ids, None for those that are not there."""
        keys = keys_of(vector_ids)
        fetched = self.query_processor.fetch(keys, namespace=namespace).value
        found = {record.key: record for record in fetched.records}
        return [vector_of(found[key]) if key in found else None for key in keys]

    def delete(self, vector_id: Id, namespace: str) -> bool:
        """Delete a vector; return whether it was there."""
        return self.delete_vectors([vector_id], namespace) > 0

    def delete_vectors(self, vector_ids: Iterable[Id], namespace: str) -> int:
        """Delete vectors and return how many there were; a namespace that does not exist has none."""
        keys = keys_of(vector_ids)
        if not keys:
            return 0
        try:
            return self._write(lambda: self.query_processor.delete(namespace=namespace, keys=keys)).count
        except NamespaceNotFound:
            return 0

    def exists(self, vector_id: Id) -> bool:
        """Whether any namespace has a vector of that id."""
        key = key_of(vector_id)
        return any(self.query_processor.fetch([key], namespace=name).value.records for name in self.list_namespaces)

    def vectors(self, namespace: str) -> list[Vector]:
        """Return every vector of a namespace in id order."""
        found: list[Vector] = []
        after: bytes | None = None
        while True:
            page = self.query_processor.scroll(namespace=namespace, limit=_PAGE_ROWS, after=after).value
            found.extend(map(vector_of, page.records))
            after = page.next_after
            if after is None:
                return found

    def count(self, namespace: str) -> int:
        """Return how many vectors a namespace has."""
        return self.query_processor.count(namespace=namespace).value

    # Namespaces and totals.

    def namespace_put(self, namespace: str, *, dimension: int, metric: str) -> None:
        """Make a namespace of a dimension and metric, unless it exists."""
        port = self.query_processor
        # Looked up here, whichever copies reads are sent to: who writes knows the newest namespaces.
        if namespace not in self._newest.list_namespaces().value:
            port.namespace_put(namespace, dimension=dimension, metric=metric)

    def delete_namespace(self, namespace: str) -> bool:
        """Drop a namespace; return whether it was there."""
        try:
            self.query_processor.namespace_drop(namespace)
        except NamespaceNotFound:
            return False
        return True

    def clear_all(self) -> bool:
        """Drop every namespace."""
        for namespace in self.list_namespaces:
            self.delete_namespace(namespace)
        return True

    @property
    def list_namespaces(self) -> list[str]:
        """The names of the namespaces, sorted."""
        return self.query_processor.list_namespaces().value

    @property
    def namespace_map(self) -> Mapping[str, list[Vector]]:
        """Every vector by namespace."""
        return {namespace: self.vectors(namespace) for namespace in self.list_namespaces}

    @property
    def total_vectors(self) -> int:
        """How many vectors there are."""
        return self.query_processor.storage_info().value.total_vectors

    @property
    def storage_size(self) -> int:
        """Bytes of the engine in memory."""
        return self.query_processor.storage_info().value.size_bytes

    def get_storage_info(self) -> dict[str, Any]:
        """Return the totals, as `GET /storage/info` answers them."""
        info = self.query_processor.storage_info().value
        per_namespace = dict(info.vectors_per_namespace)
        return {
            "storage_type": self.storage_type,
            "total_vectors": info.total_vectors,
            "storage_size_bytes": info.size_bytes,
            "namespaces": list(per_namespace),
            "vectors_per_namespace": per_namespace,
            "namespace_count": len(per_namespace),
        }

    # The work of a node's background processes, done by a thread here.

    def _write(self, write: Callable[[], WriteResult]) -> WriteResult:
        try:
            return write()
        except CheckpointBehind:
            # Written faster than checkpoints follow: take part in one, then there is room.
            self._checkpoints.start(self.shard_uid).join()
            return write()


def _random_ids(count: int) -> Sequence[Id]:
    return [uuid.uuid4() for _ in range(count)]


class _Checkpoints:
    """The checkpoints of one shard copy, one at a time, each in a thread, and the merges after them in another."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._merging: threading.Thread | None = None
        self._again = threading.Event()
        self._stop = threading.Event()

    def start(self, shard_uid: str) -> threading.Thread:
        """Start one unless one runs; return its thread."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, args=(shard_uid,), name=f"checkpoint-{self._label}", daemon=True
                )
                self._thread.start()
            return self._thread

    def end(self) -> None:
        """Begin no merge any more, and wait for what runs."""
        self._stop.set()
        for thread in (self._thread, self._merging):
            if thread is not None:
                thread.join()

    def _run(self, shard_uid: str) -> None:
        _run_checkpoint(shard_uid)
        with self._lock:
            self._again.set()
            if not self._stop.is_set() and (self._merging is None or not self._merging.is_alive()):
                self._merging = threading.Thread(
                    target=self._merge, args=(shard_uid,), name=f"merge-{self._label}", daemon=True
                )
                self._merging.start()

    def _merge(self, shard_uid: str) -> None:
        while True:
            with self._lock:
                if self._stop.is_set() or not self._again.is_set():
                    self._merging = None
                    return
                self._again.clear()
            if not _run_merges(shard_uid, self._stop):
                # Those of another engine of this program are at work.
                self._again.set()
                self._stop.wait(_RETRY_S)


def vector_of(record: Record) -> Vector:
    """Return a row as a vector."""
    values = record.values
    assert values is not None
    return Vector(values, orjson.loads(record.metadata or b"{}"), id_from(record.key))


def _run_checkpoint(shard_uid: str) -> None:
    from django.db import connection

    from vectors.store.checkpoint import checkpoint_run

    try:
        checkpoint_run(shard_uid, owner=f"library:{os.getpid()}")
    except MLVectorDBError as error:
        # The tail goes on growing; the next write that finds it too long asks again.
        logger.warning("checkpoint_failed shard=%s reason=%s", shard_uid, error.message)
    finally:
        connection.close()


def _run_merges(shard_uid: str, stop: threading.Event) -> bool:
    """Merge and index what is to be; return whether it was this program's turn."""
    from django.db import connection

    from vectors.store.merging import merge_run

    try:
        return merge_run(shard_uid, owner=f"library:{os.getpid()}", stop=stop.is_set) is not None
    except MLVectorDBError as error:
        # The segments go on as they are; the next checkpoint asks again.
        logger.warning("merge_failed shard=%s reason=%s", shard_uid, error.message)
        return True
    finally:
        connection.close()
