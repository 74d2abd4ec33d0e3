"""The writes of one shard copy of this node: into its log, then into this process's engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from django.conf import settings

from vectors import services
from vectors.engine import search
from vectors.engine.filters import Filter
from vectors.engine.namespace import NamespaceSpec, merged
from vectors.engine.operations import Delete, Patch, Upsert, encode
from vectors.errors import NamespaceNotFound, NotReady, ShardDamaged
from vectors.query_processor.describing import namespace_infos
from vectors.query_processor.opening import OpenCopy
from vectors.query_processor.parsing import check_metadata_size
from vectors.query_processor.port import DEFAULT_OPTIONS, NamespaceInfo, RequestOptions, VectorBatch, WriteResult
from vectors.query_processor.scopes import scoped_places, scoped_view
from vectors.query_processor.translation import (
    spec_of,
    unknown_namespace,
    unknown_vector,
    upsert_operation,
    with_generated_keys,
)
from vectors.runtime import ShardRuntime, runtime
from vectors.store import log
from vectors.store.adoption import namespace_adopt
from vectors.tokens import token_of

logger = logging.getLogger(__name__)

_ASK_INTERVAL_S = 1.0
_ROW_OVERHEAD_BYTES = 160


class _Committed(NamedTuple):
    position: log.Position
    changed: int | None
    """Rows changed; None when this process has not seen it."""


class LocalWrites(OpenCopy):
    """A write is answered when it is committed; it is refused with NotPrimary by a copy that only follows another."""

    def insert(self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """Write one row; a known id is replaced."""
        return self.upsert_many(batch, namespace=namespace, options=options)

    def upsert_many(
        self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Write many rows in one log entry; of a repeated id the last wins."""
        keys = with_generated_keys(batch.keys, namespace, options.idempotency_key)
        shard = self._shard()
        size_bytes = batch.values.nbytes + sum(map(len, batch.metadata)) + _ROW_OVERHEAD_BYTES * len(keys)
        with runtime().reserved_memory(size_bytes):
            return self._upsert(shard, keys, batch, namespace, options)

    def _upsert(
        self,
        shard: ShardRuntime,
        keys: list[bytes],
        batch: VectorBatch,
        namespace: str,
        options: RequestOptions,
    ) -> WriteResult:
        operation = upsert_operation(keys, batch)
        dimension = int(batch.values.shape[1])
        deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S)
        while True:
            try:
                spec = self._spec_for_write(shard, namespace, dimension, options)
                committed = self._commit(shard, spec, operation, options)
            except NamespaceNotFound:
                if _meant(options) is not None:
                    # Whether there is one by now is for the registry to say.
                    raise
                # Dropped between the look and the append: the next look makes it anew.
                if time.monotonic() > deadline:
                    raise NotReady(f"namespace {namespace} is being dropped all the time", retry_after_s=1) from None
                self._open(shard, options, write=True)
                continue
            return self._written(shard, keys, len(keys), committed.position)

    def patch(
        self, key: bytes, *, metadata: bytes, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Merge a compact JSON object into a row's metadata."""
        shard = self._shard()
        opened = self._open(shard, options, write=True)
        if opened.damage:
            raise ShardDamaged(
                f"shard {opened.head.label} has lost data and is read-only", detail={"shard": opened.head.label}
            )
        spec, [place] = scoped_places(opened.engine, namespace, [key], options.scope)
        if spec is None:
            raise unknown_namespace(namespace)
        if place is None:
            raise unknown_vector(key)
        check_metadata_size(len(merged(place[0].metadata[place[1]], metadata)), field="metadata")
        committed = self._commit(shard, spec, Patch([key], [metadata]), options)
        if committed.changed == 0:
            raise unknown_vector(key)
        return self._written(shard, [key], 1, committed.position)

    def delete(
        self,
        *,
        namespace: str,
        keys: Sequence[bytes] | None = None,
        filter: Filter | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> WriteResult:
        """Delete by keys, or the rows that match a filter now and do not change until their deletion is logged."""
        shard = self._shard()
        opened = self._open(shard, options, write=True)
        if opened.damage:
            raise ShardDamaged(
                f"shard {opened.head.label} has lost data and is read-only", detail={"shard": opened.head.label}
            )
        resolved_at: int | None = None
        if keys is None:
            assert filter is not None
            # The seq first, without the engine's lock, which the mask of slots had to be computed under: a row that is
            # written between the two is spared, as one that is written a moment later.
            resolved_at = opened.engine.seq
            view = scoped_view(opened.engine, namespace, options.scope)
            spec = None if view is None else view.spec
            keys = [] if view is None else search.matching_keys(view, filter)
        else:
            spec, _places = scoped_places(opened.engine, namespace, (), options.scope)
            keys = list(dict.fromkeys(keys))
        if spec is None:
            raise unknown_namespace(namespace)
        deleted = 0
        position = log.Position(opened.engine.term, opened.engine.seq)
        for start in range(0, len(keys), settings.MLVDB_MAX_BATCH):
            some = keys[start : start + settings.MLVDB_MAX_BATCH]
            committed = self._commit(shard, spec, Delete(some, resolved_at), options)
            if committed.changed is None:
                # The engine was exchanged in between: as many as there were when the rows were looked for.
                deleted += sum(place is not None for place in opened.engine.find_many(namespace, some))
            else:
                deleted += committed.changed
            position = committed.position
        return self._written(shard, keys, deleted, position)

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
        shard = self._shard()
        services.namespace_put(
            shard.shard_id,
            name,
            dimension=dimension,
            metric=metric,
            recall_target=recall_target,
            picture=picture,
        )
        self._tell_senders(shard)
        opened = self._open(shard, options)
        return namespace_infos(opened, [name])[0]

    def namespace_drop(self, name: str, *, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """End a namespace."""
        shard = self._shard()
        position = services.namespace_drop(shard.shard_id, name)
        self._tell_senders(shard)
        opened = self._open(shard, options)
        return self._written(shard, [], opened.engine.result(position.seq) or 0, position)

    def _spec_for_write(
        self, shard: ShardRuntime, namespace: str, dimension: int, options: RequestOptions
    ) -> NamespaceSpec:
        meant = _meant(options)
        if meant is not None:
            return self._adopted(shard, meant, dimension, options)
        opened = shard.opened
        spec = None if opened is None else opened.engine.spec(namespace)
        if spec is None or spec.dimension != dimension:
            # The engine may lag behind a new namespace, or behind a drop and a new one of that name.
            spec = self._open(shard, options, write=True).engine.spec(namespace)
        if spec is None:
            services.namespace_ensure(shard.shard_id, namespace, dimension=dimension)
            self._tell_senders(shard)
            spec = spec_of(self._open(shard, options, write=True).engine, namespace)
        if spec.dimension != dimension:
            raise services.dimension_mismatch(namespace, spec.dimension, dimension)
        return spec

    def _adopted(
        self, shard: ShardRuntime, meant: NamespaceSpec, dimension: int, options: RequestOptions
    ) -> NamespaceSpec:
        """Return the namespace that the registry means, made here if need be. Raise NamespaceNotFound if it has ended
        here: the registry knows of another by now, or of none."""
        if meant.dimension != dimension:
            raise services.dimension_mismatch(meant.name, meant.dimension, dimension)
        opened = shard.opened
        spec = None if opened is None else opened.engine.spec(meant.name)
        if spec is None or spec.uid != meant.uid:
            spec = self._open(shard, options, write=True).engine.spec(meant.name)
        if spec is None or spec.uid != meant.uid:
            with log.append_transaction(shard.shard_id) as open_log:
                lives = namespace_adopt(open_log, meant)
            if not lives:
                raise unknown_namespace(meant.name)
            self._tell_senders(shard)
        return meant

    def _commit(
        self, shard: ShardRuntime, spec: NamespaceSpec, operation: Upsert | Delete | Patch, options: RequestOptions
    ) -> _Committed:
        position = shard.appender.append(
            namespace=spec.uid, kind=operation.kind, keys=operation.keys, payload=encode(operation)
        )
        if self.on_knock is not None and shard.appender.take_knock():
            self._tell_senders(shard)
        if shard.appender.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
            self._ask_for_checkpoint(shard)
        timeout_s = options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S
        try:
            changed = shard.applied(position, namespace=spec.uid, operation=operation, timeout_s=timeout_s)
        except NotReady:
            # It is committed, and the next read applies it: an error would say that it was not.
            changed = None
        return _Committed(position, changed)

    def _tell_senders(self, shard: ShardRuntime) -> None:
        if self.on_knock is None:
            return
        opened = shard.opened
        head = log.read_head(shard.shard_id) if opened is None else opened.head
        try:
            if head is not None:
                self.on_knock(head.uid)
        except Exception:
            # The sweep finds what was not told.
            logger.exception("knock_failed shard_id=%d", shard.shard_id)

    def _ask_for_checkpoint(self, shard: ShardRuntime) -> None:
        now = time.monotonic()
        if now - self._asked_at < _ASK_INTERVAL_S:
            return
        self._asked_at = now
        opened = shard.opened
        if opened is not None and not self._asking.is_set():
            self._asking.set()
            threading.Thread(
                target=self._publish, args=(opened.head.uid,), name="checkpoint-request", daemon=True
            ).start()

    def _publish(self, shard_uid: str) -> None:
        # Not in the thread of the request: a silent broker takes its time to be given up, and no write waits for that.
        try:
            self._request_checkpoint(shard_uid)
        finally:
            self._asking.clear()

    def _written(self, shard: ShardRuntime, keys: Sequence[bytes], count: int, position: log.Position) -> WriteResult:
        opened = shard.opened
        head = log.read_head(shard.shard_id) if opened is None else opened.head
        assert head is not None
        term, seq = position
        return WriteResult(
            keys, count, {head.label: token_of(head.uid, term=term, seq=seq)}, {head.label: (head.uid, term, seq)}
        )


def _meant(options: RequestOptions) -> NamespaceSpec | None:
    """Return the namespace that a registry says is written to, None where this copy decides."""
    return None if options.scope is None else options.scope.namespace
