"""The port of `vectors` on every node: which of the ways to answer is this node's.

A single node answers from its shard copy. A coordinator plans over shards (`cluster.query_processor.sharded`), and so
do, for reads, its replicas, by what their placements say. Every other node has a copy of one shard: as a primary or a
replica it answers for that shard from its copies; as another coordinator's shard it takes writes from that coordinator
alone, and a client that asks it directly sees the rows that it owns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.overview import storage_section
from cluster.query_processor.reading import Read
from cluster.query_processor.reads import read_shard
from cluster.query_processor.shard_node import not_coordinator, read_own_slots
from cluster.query_processor.sharded.processor import ShardedQueryProcessor
from cluster.query_processor.writes import not_primary, write_namespace, write_rows
from cluster.replication.knocks import knock
from cluster.shards_overview import sharding_section
from cluster.topology import ShardView, TopologyView, topology
from vectors import services
from vectors.engine.filters import Filter
from vectors.errors import NotReady
from vectors.query_processor import (
    DEFAULT_OPTIONS,
    Answer,
    Fetched,
    Hit,
    LocalQueryProcessor,
    NamespaceInfo,
    Page,
    Record,
    RequestOptions,
    SearchRequest,
    StorageInfo,
    VectorBatch,
    WriteResult,
)


class ClusterQueryProcessor:
    """Behind the views of every node; thread-safe. Methods are those of the port, where they are described.

    `shard_id` says which of this node's shard copies is meant; the first one unless it is given.
    """

    def __init__(
        self, shard_id: int | None = None, *, request_checkpoint: Callable[[str], object] = services.checkpoint_request
    ) -> None:
        self._shard_id = shard_id
        self._request_checkpoint = request_checkpoint
        self._single = LocalQueryProcessor(shard_id, request_checkpoint=request_checkpoint, on_knock=knock)
        self._local: dict[int, LocalQueryProcessor] = {}
        self._sharded = ShardedQueryProcessor(self._copy)

    # Writes.

    def insert(self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """Write one row."""
        if (sharded := self._coordinator()) is not None:
            return sharded.insert(batch, namespace=namespace, options=options)
        local = self._primary()
        return write_rows(options, lambda: local.insert(batch, namespace=namespace, options=options))

    def upsert_many(
        self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Write many rows."""
        if (sharded := self._coordinator()) is not None:
            return sharded.upsert_many(batch, namespace=namespace, options=options)
        local = self._primary()
        return write_rows(options, lambda: local.upsert_many(batch, namespace=namespace, options=options))

    def patch(
        self, key: bytes, *, metadata: bytes, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Merge metadata into a row."""
        if (sharded := self._coordinator()) is not None:
            return sharded.patch(key, metadata=metadata, namespace=namespace, options=options)
        local = self._primary()
        return write_rows(options, lambda: local.patch(key, metadata=metadata, namespace=namespace, options=options))

    def delete(
        self,
        *,
        namespace: str,
        keys: Sequence[bytes] | None = None,
        filter: Filter | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> WriteResult:
        """Delete by keys or by filter."""
        if (sharded := self._coordinator()) is not None:
            return sharded.delete(namespace=namespace, keys=keys, filter=filter, options=options)
        local = self._primary()
        return write_rows(options, lambda: local.delete(namespace=namespace, keys=keys, filter=filter, options=options))

    def namespace_put(
        self,
        name: str,
        *,
        dimension: int | None = None,
        metric: str | None = None,
        recall_target: float | None = None,
        picture: str | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> NamespaceInfo:
        """Make or change a namespace."""
        given: dict[str, Any] = {
            "dimension": dimension,
            "metric": metric,
            "recall_target": recall_target,
            "picture": picture,
            "options": options,
        }
        if (sharded := self._coordinator()) is not None:
            return sharded.namespace_put(name, **given)
        local = self._primary()
        return write_namespace(local, options, lambda: local.namespace_put(name, **given))

    def namespace_drop(self, name: str, *, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """End a namespace."""
        if (sharded := self._coordinator()) is not None:
            return sharded.namespace_drop(name, options=options)
        local = self._primary()
        return write_rows(options, lambda: local.namespace_drop(name, options=options))

    def _coordinator(self) -> ShardedQueryProcessor | None:
        """Return what plans over shards, where this node has any and not one of its copies was meant."""
        return self._sharded if self._shard_id is None and topology().sharding is not None else None

    def _primary(self) -> LocalQueryProcessor:
        """Return the primary's copy of the node's shard, which must be here; raise NotPrimary."""
        view = topology()
        if view.is_single:
            return self._single
        shard = self._shard(view)
        assignment = view.assignment_of(shard)
        if assignment is not None:
            raise not_coordinator(assignment)
        if not shard.is_local_primary or shard.shard_id is None:
            raise not_primary(shard)
        return self._copy(shard.shard_id)

    def _copy(self, shard_id: int) -> LocalQueryProcessor:
        """Return a copy of this node to write to, which tells the senders."""
        local = self._local.get(shard_id)
        if local is None:
            made = LocalQueryProcessor(shard_id, request_checkpoint=self._request_checkpoint, on_knock=knock)
            local = self._local.setdefault(shard_id, made)
        return local

    # Reads.

    def get(self, key: bytes, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[Record]:
        """Return a row."""
        view = topology()
        if view.is_single:
            return self._single.get(key, namespace=namespace, options=options)
        return self._read(view, options, "get", key=key, namespace=namespace)

    def fetch(
        self, keys: Sequence[bytes], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[Fetched]:
        """Return the rows of `keys`."""
        view = topology()
        if view.is_single:
            return self._single.fetch(keys, namespace=namespace, options=options)
        return self._read(view, options, "fetch", keys=keys, namespace=namespace)

    def find_similar(
        self, request: SearchRequest, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[Hit]]:
        """Return the best rows."""
        view = topology()
        if view.is_single:
            return self._single.find_similar(request, namespace=namespace, options=options)
        return self._read(view, options, "find_similar", request=request, namespace=namespace)

    def search_batch(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[list[Hit]]]:
        """Answer many searches on one state of the namespace."""
        view = topology()
        if view.is_single:
            return self._single.search_batch(requests, namespace=namespace, options=options)
        return self._read(view, options, "search_batch", requests=requests, namespace=namespace)

    def count(
        self, *, namespace: str, filter: Filter | None = None, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[int]:
        """Return how many rows match."""
        view = topology()
        if view.is_single:
            return self._single.count(namespace=namespace, filter=filter, options=options)
        return self._read(view, options, "count", namespace=namespace, filter=filter)

    def scroll(
        self,
        *,
        namespace: str,
        limit: int,
        after: bytes | None = None,
        filter: Filter | None = None,
        with_values: bool = True,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> Answer[Page]:
        """Return a page of rows in key order."""
        given: dict[str, Any] = {
            "namespace": namespace,
            "limit": limit,
            "after": after,
            "filter": filter,
            "with_values": with_values,
        }
        view = topology()
        if view.is_single:
            return self._single.scroll(**given, options=options)
        return self._read(view, options, "scroll", **given)

    def list_namespaces(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[str]]:
        """Return the names, sorted."""
        view = topology()
        if view.is_single:
            return self._single.list_namespaces(options=options)
        return self._read(view, options, "list_namespaces")

    def namespace_details(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[NamespaceInfo]]:
        """Return what is known of every namespace."""
        view = topology()
        if view.is_single:
            return self._single.namespace_details(options=options)
        return self._read(view, options, "namespace_details")

    def storage_info(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[StorageInfo]:
        """Return totals, and what this node is in its cluster."""
        view = topology()
        answer: Answer[StorageInfo] = (
            self._single.storage_info(options=options) if view.is_single else self._read(view, options, "storage_info")
        )
        told = {"replication": storage_section(), "sharding": sharding_section()}
        sections = {name: section for name, section in told.items() if section is not None}
        if not sections:
            return answer
        value = replace(answer.value, sections={**answer.value.sections, **sections})
        return replace(answer, value=value)

    def _read(self, view: TopologyView, options: RequestOptions, operation: str, **arguments: Any) -> Answer[Any]:
        if view.routes is not None and self._shard_id is None:
            answer: Answer[Any] = getattr(self._sharded, operation)(**arguments, options=options)
            return answer
        shard = self._shard(view)
        if view.assignment_of(shard) is not None:
            return read_own_slots(shard.uid, Read(operation, arguments), options)
        return read_shard(view, shard, Read(operation, arguments), options)

    def _shard(self, view: TopologyView) -> ShardView:
        """Return the shard that has the rows; raise NotReady while this node has none."""
        kept = [shard for shard in view.shards.values() if self._shard_id in (None, shard.shard_id)]
        # Copies of shards that are clusters of their own come last: what this node is, it is by its own cluster.
        for shard in sorted(kept, key=lambda shard: view.cluster_of(shard) != view.cluster):
            return shard
        raise NotReady("this node has no shard yet", retry_after_s=1)
