"""The reads of one shard copy of this node."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vectors.engine import search
from vectors.engine.filters import Filter
from vectors.query_processor.describing import namespace_infos
from vectors.query_processor.opening import OpenCopy
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
    StorageInfo,
)
from vectors.query_processor.sampling import sample_queries
from vectors.query_processor.scopes import (
    check_scope,
    is_meant,
    owned_by,
    scoped_places,
    scoped_view,
    scoped_view_and_places,
)
from vectors.query_processor.translation import (
    hits_of,
    strategy_of,
    unknown_namespace,
    unknown_vector,
    wanted_search,
)


class LocalReads(OpenCopy):
    """Every read sees what was committed before it began, and answers with the account of this one copy."""

    def get(self, key: bytes, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[Record]:
        """Return a row."""
        opened, account = self._open_for_read(options, partial=False)
        spec, [place] = scoped_places(opened.engine, namespace, [key], options.scope)
        if spec is None:
            raise unknown_namespace(namespace)
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
        _spec, places = scoped_places(opened.engine, namespace, keys, options.scope)
        for key, place in zip(keys, places, strict=True):
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
        view = scoped_view(opened.engine, namespace, options.scope)
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
        view = scoped_view(opened.engine, namespace, options.scope)
        if view is None:
            return Answer(Page([], None), [account])
        rows, more = search.scroll(view, limit=limit, after=after, filter=filter)
        records = [
            Record(key, part.part.matrix[row] if with_values else None, part.part.metadata[row])
            for key, part, row in rows
        ]
        return Answer(Page(records, records[-1].key if more and records else None), [account])

    def list_namespaces(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[str]]:
        """Return the names, sorted."""
        opened, account = self._open_for_read(options, partial=False)
        return Answer(opened.engine.names(), [account])

    def namespace_details(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[NamespaceInfo]]:
        """Return what is known of every namespace, sorted by name."""
        opened, account = self._open_for_read(options, partial=False)
        engine, scope = opened.engine, options.scope
        names = [space.spec.name for space in engine.namespaces() if is_meant(space.spec, scope)]
        infos = namespace_infos(opened, names, owned=owned_by(scope))
        check_scope(engine, scope)
        return Answer(infos, [account])

    def storage_info(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[StorageInfo]:
        """Return totals."""
        opened, account = self._open_for_read(options, partial=False)
        engine = opened.engine
        views = [(name, scoped_view(engine, name, options.scope)) for name in engine.names()]
        counts = {name: view.count for name, view in views if view is not None}
        return Answer(StorageInfo(sum(counts.values()), engine.mapped_bytes + engine.tail_bytes, counts), [account])

    def _search(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions, is_batch: bool
    ) -> Answer[list[list[Hit]]]:
        started = time.perf_counter()
        opened, account = self._open_for_read(options, partial=True)
        keys = [request.key for request in requests if request.key is not None]
        view, places = scoped_view_and_places(opened.engine, namespace, keys, options.scope)
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
        sample_queries(view, wanteds)
        hits = [hits_of(result, request) for result, request in zip(results, requests, strict=True)]
        return Answer(
            hits,
            [
                account.of_search(
                    took_ms=(time.perf_counter() - started) * 1000,
                    strategy=strategy_of(results),
                    candidates=sum(result.candidates for result in results),
                )
            ],
        )
