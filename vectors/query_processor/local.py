"""The query processor of a single node: answers from its one shard copy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from django.conf import settings

from vectors import services
from vectors.engine import search
from vectors.engine.filters import Filter
from vectors.engine.namespace import NamespaceSpec, merged
from vectors.engine.operations import Delete, Operation, Patch, encode
from vectors.errors import (
    NamespaceNotFound,
    NotReady,
    ShardDamaged,
)
from vectors.query_processor.parsing import check_metadata_size
from vectors.query_processor.port import (
    DEFAULT_OPTIONS,
    Answer,
    Fetched,
    Hit,
    NamespaceInfo,
    Page,
    Record,
    RequestOptions,
    SearchRequest,
    ShardAccount,
    StorageInfo,
    VectorBatch,
    WriteResult,
)
from vectors.query_processor.translation import (
    check_tokens,
    hits_of,
    lost_entries,
    namespace_info,
    spec_of,
    unknown_vector,
    upsert_operation,
    wanted_search,
    with_generated_keys,
)
from vectors.runtime import Runtime, ShardRuntime, runtime
from vectors.store import log
from vectors.store.recovery import OpenShard
from vectors.tokens import token_of

logger = logging.getLogger(__name__)

_KNOCK_INTERVAL_S = 1.0
_ROW_OVERHEAD_BYTES = 160


class _Committed(NamedTuple):
    position: log.Position
    changed: int | None
    """Rows changed; None when this process has not seen it."""


class LocalQueryProcessor:
    """One shard copy of this node behind the port; the first one unless `shard_id` says which. Thread-safe.

    `request_checkpoint` is called with the shard's uid when its tail has reached the soft limit, at most once a second.
    """

    def __init__(
        self,
        shard_id: int | None = None,
        *,
        request_checkpoint: Callable[[str], object] = services.checkpoint_request,
    ) -> None:
        self._given = shard_id
        self._request_checkpoint = request_checkpoint
        self._found: tuple[Runtime, int] | None = None
        self._knocked_at = 0.0
        self._knocking = threading.Event()

    # Writes.

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
        spec = spec_of(opened.engine, namespace)
        place = opened.engine.find_many(namespace, [key])[0]
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
        spec = spec_of(opened.engine, namespace)
        resolved_at: int | None = None
        if keys is None:
            assert filter is not None
            with opened.engine.lock:
                resolved_at, view = opened.engine.seq, opened.engine.view(namespace)
            keys = [] if view is None else search.matching_keys(view, filter)
        else:
            keys = list(dict.fromkeys(keys))
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
        opened = self._open(shard, options)
        return namespace_info(opened.engine, name)

    def namespace_drop(self, name: str, *, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """End a namespace."""
        shard = self._shard()
        position = services.namespace_drop(shard.shard_id, name)
        opened = self._open(shard, options)
        return self._written(shard, [], opened.engine.result(position.seq) or 0, position)

    # Reads.

    def get(self, key: bytes, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[Record]:
        """Return a row."""
        opened, account = self._open_for_read(options, partial=False)
        spec_of(opened.engine, namespace)
        place = opened.engine.find_many(namespace, [key])[0]
        if place is None:
            raise unknown_vector(key)
        part, row = place
        return Answer(Record(key, part.matrix[row], part.metadata[row]), [account])

    def fetch(
        self, keys: Sequence[bytes], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[Fetched]:
        """Return the rows of `keys`."""
        opened, account = self._open_for_read(options, partial=False)
        records, missing = [], []
        for key, place in zip(keys, opened.engine.find_many(namespace, keys), strict=True):
            if place is None:
                missing.append(key)
            else:
                part, row = place
                records.append(Record(key, part.matrix[row], part.metadata[row]))
        return Answer(Fetched(records, missing), [account])

    def find_similar(
        self, request: SearchRequest, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[Hit]]:
        """Return the best rows."""
        answer = self._search([request], namespace=namespace, options=options, is_batch=False)
        return Answer(answer.value[0], answer.shards)

    def search_batch(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[list[Hit]]]:
        """Answer many searches on one state of the namespace."""
        return self._search(requests, namespace=namespace, options=options, is_batch=True)

    def count(
        self, *, namespace: str, filter: Filter | None = None, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[int]:
        """Return how many rows match."""
        opened, account = self._open_for_read(options, partial=False)
        view = opened.engine.view(namespace)
        return Answer(0 if view is None else search.count(view, filter), [account])

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
        """Return up to `limit` rows after a key, in key order."""
        opened, account = self._open_for_read(options, partial=False)
        view = opened.engine.view(namespace)
        if view is None:
            return Answer(Page([], None), [account])
        rows, more = search.scroll(view, limit=limit, after=after, filter=filter)
        records = [
            Record(key, part.part.matrix[row] if with_values else None, part.part.metadata[row])
            for key, part, row in rows
        ]
        return Answer(Page(records, records[-1].key if more and records else None), [account])

    def list_namespaces(self) -> list[str]:
        """Return the names, sorted."""
        return self._open(self._shard(), DEFAULT_OPTIONS).engine.names()

    def namespace_details(self) -> list[NamespaceInfo]:
        """Return what is known of every namespace, sorted by name."""
        engine = self._open(self._shard(), DEFAULT_OPTIONS).engine
        return [namespace_info(engine, namespace.spec.name) for namespace in engine.namespaces()]

    def storage_info(self) -> StorageInfo:
        """Return totals."""
        engine = self._open(self._shard(), DEFAULT_OPTIONS).engine
        views = [(name, engine.view(name)) for name in engine.names()]
        counts = {name: view.count for name, view in views if view is not None}
        return StorageInfo(sum(counts.values()), engine.mapped_bytes + engine.tail_bytes, counts)

    # The ways in.

    def _shard(self) -> ShardRuntime:
        engines = runtime()
        if self._given is not None:
            return engines.shard(self._given)
        found = self._found
        if found is None or found[0] is not engines:
            found = self._found = (engines, services.ensure_local_shard().pk)
        return engines.shard(found[1])

    def _open(self, shard: ShardRuntime, options: RequestOptions, *, write: bool = False) -> OpenShard:
        timeout_s = options.timeout_s or (settings.MLVDB_WRITE_TIMEOUT_S if write else settings.MLVDB_READ_TIMEOUT_S)
        return shard.fresh(timeout_s=timeout_s)

    def _open_for_read(self, options: RequestOptions, *, partial: bool) -> tuple[OpenShard, ShardAccount]:
        opened = self._open(self._shard(), options)
        check_tokens(opened, options)
        label = opened.head.label
        if not opened.damage:
            return opened, ShardAccount(label, "primary")
        if not (partial if options.partial is None else options.partial):
            raise ShardDamaged(
                f"shard {label} has lost data; partial=true answers from what is left",
                detail={"shard": label, "damage": opened.damage},
            )
        return opened, ShardAccount(label, "primary", lag=lost_entries(opened), error="shard_damaged")

    def _spec_for_write(
        self, shard: ShardRuntime, namespace: str, dimension: int, options: RequestOptions
    ) -> NamespaceSpec:
        opened = shard.opened
        spec = None if opened is None else opened.engine.spec(namespace)
        if spec is None or spec.dimension != dimension:
            # The engine may lag behind a new namespace, or behind a drop and a new one of that name.
            spec = self._open(shard, options, write=True).engine.spec(namespace)
        if spec is None:
            services.namespace_ensure(shard.shard_id, namespace, dimension=dimension)
            spec = spec_of(self._open(shard, options, write=True).engine, namespace)
        if spec.dimension != dimension:
            raise services.dimension_mismatch(namespace, spec.dimension, dimension)
        return spec

    def _commit(
        self, shard: ShardRuntime, spec: NamespaceSpec, operation: Operation, options: RequestOptions
    ) -> _Committed:
        position = shard.appender.append(
            namespace=spec.uid, kind=operation.kind, rows=operation.rows, payload=encode(operation)
        )
        if shard.appender.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
            self._knock(shard)
        timeout_s = options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S
        try:
            changed = shard.applied(position, namespace=spec.uid, operation=operation, timeout_s=timeout_s)
        except NotReady:
            # It is committed, and the next read applies it: an error would say that it was not.
            changed = None
        return _Committed(position, changed)

    def _knock(self, shard: ShardRuntime) -> None:
        now = time.monotonic()
        if now - self._knocked_at < _KNOCK_INTERVAL_S:
            return
        self._knocked_at = now
        opened = shard.opened
        if opened is not None and not self._knocking.is_set():
            self._knocking.set()
            threading.Thread(target=self._publish, args=(opened.head.uid,), name="knock", daemon=True).start()

    def _publish(self, shard_uid: str) -> None:
        # Not in the thread of the request: a silent broker takes its time to be given up, and no write waits for that.
        try:
            self._request_checkpoint(shard_uid)
        finally:
            self._knocking.clear()

    def _written(self, shard: ShardRuntime, keys: Sequence[bytes], count: int, position: log.Position) -> WriteResult:
        opened = shard.opened
        head = log.read_head(shard.shard_id) if opened is None else opened.head
        assert head is not None
        return WriteResult(keys, count, {head.label: token_of(head.uid, term=position.term, seq=position.seq)})

    def _search(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions, is_batch: bool
    ) -> Answer[list[list[Hit]]]:
        started = time.perf_counter()
        opened, account = self._open_for_read(options, partial=True)
        keys = [request.key for request in requests if request.key is not None]
        view, places = opened.engine.view_and_places(namespace, keys)
        if view is None:
            return Answer([[] for _ in requests], [account])
        where = dict(zip(keys, places, strict=True))
        wanteds = [
            wanted_search(
                request,
                view,
                None if request.key is None else where[request.key],
                prefix=f"searches[{number}]." if is_batch else "",
            )
            for number, request in enumerate(requests)
        ]
        results = [search.search(view, wanteds[0])] if len(wanteds) == 1 else search.search_batch(view, wanteds)
        hits = [hits_of(result, request) for result, request in zip(results, requests, strict=True)]
        return Answer(
            hits,
            [
                ShardAccount(
                    account.shard,
                    account.copy,
                    lag=account.lag,
                    took_ms=(time.perf_counter() - started) * 1000,
                    candidates=sum(result.candidates for result in results),
                    error=account.error,
                )
            ],
        )
