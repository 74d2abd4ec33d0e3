"""The port of `vectors` at a coordinator: reads over shards, writes to shards, namespaces in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.query_processor.sharded.delivery import Copies
from cluster.query_processor.sharded.reads import ShardedReads, empty_info
from cluster.query_processor.sharded.writes import delete, delete_by_filter, patch, upsert
from cluster.services.namespaces import namespace_drop, namespace_put
from vectors.engine.filters import Filter
from vectors.errors import Unavailable
from vectors.query_processor import (
    DEFAULT_OPTIONS,
    WHAT_IS_THERE,
    NamespaceInfo,
    RequestOptions,
    VectorBatch,
    WriteResult,
)

CLIENT = "client"
"""The actor of changes of namespaces that come in as requests."""


class ShardedQueryProcessor(ShardedReads):
    """All shards behind the port; thread-safe. Methods are those of the port, where they are described.

    `copies` has this node's own copies, to write to.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies

    def insert(self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """Write one row."""
        return upsert(batch, namespace=namespace, options=options, copies=self._copies)

    def upsert_many(
        self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Write many rows."""
        return upsert(batch, namespace=namespace, options=options, copies=self._copies)

    def patch(
        self, key: bytes, *, metadata: bytes, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Merge metadata into a row."""
        return patch(key, metadata=metadata, namespace=namespace, options=options, copies=self._copies)

    def delete(
        self,
        *,
        namespace: str,
        keys: Sequence[bytes] | None = None,
        filter: Filter | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> WriteResult:
        """Delete by keys on the shards they lead to, or by filter on all."""
        if keys is not None:
            return delete(keys, namespace=namespace, options=options, copies=self._copies)
        assert filter is not None
        return delete_by_filter(filter, namespace=namespace, options=options, copies=self._copies)

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
        """Make or change a namespace, in the registry and then on every shard."""
        spec, _ = namespace_put(
            name, dimension=dimension, metric=metric, recall_target=recall_target, picture=picture, actor=CLIENT
        )
        try:
            details = self.namespace_details(options=replace(WHAT_IS_THERE, timeout_s=options.timeout_s))
        except Unavailable:
            # It is saved; how many rows it has is all that is not known.
            return empty_info(spec)
        return next((info for info in details.value if info.uid == spec.uid), empty_info(spec))

    def namespace_drop(self, name: str, *, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """End a namespace, in the registry and then on every shard; `count` is of the shards that can be asked."""
        try:
            rows = self.count(namespace=name, options=replace(WHAT_IS_THERE, timeout_s=options.timeout_s)).value
        except Unavailable:
            rows = 0
        namespace_drop(name, actor=CLIENT)
        return WriteResult([], rows, {})
