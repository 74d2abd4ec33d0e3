"""The reads of the port over shards: who is asked what, and how the answers become the answer of one node.

What a namespace is, and whether there is one, is not for a shard to say; shards know rows. A search by id first
fetches the values of its row from the shard that has it, since the others have never seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from django.conf import settings

from cluster.query_processor.means import means
from cluster.query_processor.sharded.merge import merged_hits, merged_infos
from cluster.query_processor.sharded.names import known_namespace, namespace_of, namespaces_of
from cluster.query_processor.sharded.narrowing import Narrowing
from cluster.query_processor.sharded.paging import PageOfShards
from cluster.query_processor.sharded.picture import Picture, planned
from cluster.query_processor.sharded.routing import owning, parts_of
from cluster.query_processor.sharded.scatter import Scattered, gathered, scatter
from vectors.engine.filters import Filter
from vectors.engine.ids import slots_of
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import DimensionMismatch
from vectors.query_processor import (
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
from vectors.query_processor.translation import unknown_vector


class ShardedReads:
    """The reads of a coordinator; stateless."""

    def get(self, key: bytes, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[Record]:
        """Return a row, from the shard that its id leads to. Raise ShardUnavailable where that cannot be asked."""

        def do(picture: Picture) -> Answer[Record]:
            spec = known_namespace(picture, namespace)
            found = self._rows(picture, spec, [key])
            if found.failures:
                raise found.failure()
            fetched: Fetched = found.values[0]
            if not fetched.records:
                raise unknown_vector(key)
            return Answer(fetched.records[0], found.accounts)

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def fetch(
        self, keys: Sequence[bytes], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[Fetched]:
        """Return the rows of `keys`. Of a shard that failed, where that is accepted, no id is said to be missing."""

        def do(picture: Picture) -> Answer[Fetched]:
            spec = namespace_of(picture, namespace)
            if spec is None:
                return Answer(Fetched([], list(keys)), [])
            found = self._rows(picture, spec, keys)
            if found.failures and not (found.answers and options.partial):
                raise found.failure()
            records: dict[bytes, Record] = {}
            absent: set[bytes] = set()
            for fetched in found.values:
                records.update((record.key, record) for record in fetched.records)
                absent.update(fetched.missing)
            return Answer(
                Fetched([records[key] for key in keys if key in records], [key for key in keys if key in absent]),
                found.accounts,
            )

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def find_similar(
        self, request: SearchRequest, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[Hit]]:
        """Return the best rows of all shards."""
        answer = self._search([request], namespace, options, prefixes=("",))
        return Answer(answer.value[0], answer.shards)

    def search_batch(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[list[Hit]]]:
        """Answer many searches."""
        prefixes = [f"searches[{number}]." for number in range(len(requests))]
        return self._search(requests, namespace, options, prefixes=prefixes)

    def count(
        self, *, namespace: str, filter: Filter | None = None, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[int]:
        """Return how many rows match."""

        def do(picture: Picture) -> Answer[int]:
            spec = namespace_of(picture, namespace)
            if spec is None:
                return Answer(0, [])
            found = _gathered(picture, spec, "count", namespace=namespace, filter=filter)
            return Answer(sum(found.values), found.accounts)

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

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

        def do(picture: Picture) -> Answer[Page]:
            spec = namespace_of(picture, namespace)
            if spec is None:
                return Answer(Page([], None), [])
            return PageOfShards(
                picture, spec, means(), limit=limit, after=after, filter=filter, with_values=with_values
            ).answer()

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def list_namespaces(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[str]]:
        """Return the names, sorted: the registry has them, whichever shards can be asked."""

        def do(picture: Picture) -> Answer[list[str]]:
            return Answer([spec.name for spec in namespaces_of(picture)], [])

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def namespace_details(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[NamespaceInfo]]:
        """Return what is known of every namespace, sorted by name."""

        def do(picture: Picture) -> Answer[list[NamespaceInfo]]:
            found = _gathered(picture, None, "namespace_details")
            parts: dict[str, list[NamespaceInfo]] = {}
            for infos in found.values:
                for info in infos:
                    parts.setdefault(info.uid, []).append(info)
            # What a shard still has of a namespace that is no more is not among them.
            return Answer(
                [merged_infos(parts.get(spec.uid, ()), empty_info(spec)) for spec in namespaces_of(picture)],
                found.accounts,
            )

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def storage_info(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[StorageInfo]:
        """Return totals over the shards."""
        details = self.namespace_details(options=options)
        counts = {info.name: info.count for info in details.value}
        size_bytes = sum(info.size_bytes for info in details.value)
        return Answer(StorageInfo(sum(counts.values()), size_bytes, counts), details.shards)

    def _rows(self, picture: Picture, spec: NamespaceSpec, keys: Sequence[bytes]) -> Scattered:
        """Fetch rows from the shards that their ids lead to."""
        return scatter(
            picture,
            [
                picture.question(
                    part.member, spec, "fetch", keys=[keys[row] for row in part.rows.tolist()], namespace=spec.name
                )
                for part in parts_of(picture.sharding, slots_of(keys))
            ],
            means(),
        )

    def _search(
        self, requests: Sequence[SearchRequest], namespace: str, options: RequestOptions, *, prefixes: Sequence[str]
    ) -> Answer[list[list[Hit]]]:
        def do(picture: Picture) -> Answer[list[list[Hit]]]:
            spec = namespace_of(picture, namespace)
            if spec is None:
                return Answer([[] for _ in requests], [])
            asked = self._with_values(picture, spec, requests, prefixes)
            narrowing = Narrowing(asked, spec.metric)
            if len(asked) == 1:
                arguments = {"request": asked[0], "namespace": namespace}
                found = _gathered(picture, spec, "find_similar", narrowing=narrowing, **arguments)
                lists = [[hits] for hits in found.values]
            else:
                arguments = {"requests": asked, "namespace": namespace}
                found = _gathered(picture, spec, "search_batch", narrowing=narrowing, **arguments)
                lists = found.values
            hits = [
                merged_hits([of_shard[number] for of_shard in lists], request, spec.metric)
                for number, request in enumerate(requests)
            ]
            return Answer(hits, found.accounts)

        return planned(options, settings.MLVDB_READ_TIMEOUT_S, do)

    def _with_values(
        self, picture: Picture, spec: NamespaceSpec, requests: Sequence[SearchRequest], prefixes: Sequence[str]
    ) -> list[SearchRequest]:
        """Return the searches as every shard can do them: by values, and from the first hit on."""
        keys = list(dict.fromkeys(request.key for request in requests if request.key is not None))
        rows: dict[bytes, np.ndarray] = {}
        if keys:
            found = self._rows(picture, spec, keys)
            if found.failures:
                # Nobody can search by values that are not to be had, whatever the client would put up with.
                raise found.failure()
            for fetched in found.values:
                rows.update((record.key, record.values) for record in fetched.records)
        asked = []
        for request, prefix in zip(requests, prefixes, strict=True):
            values = request.query
            if values is None:
                assert request.key is not None
                values = rows.get(request.key)
                if values is None:
                    raise unknown_vector(request.key, field=prefix + "id")
            elif len(values) != spec.dimension:
                raise DimensionMismatch(
                    f"namespace {spec.name} has dimension {spec.dimension}, got {len(values)} values",
                    field=prefix + "query",
                    detail={"namespace": spec.name, "dimension": spec.dimension, "got": len(values)},
                )
            asked.append(replace(request, query=values, key=None, top_k=request.top_k + request.offset, offset=0))
        return asked


def empty_info(spec: NamespaceSpec) -> NamespaceInfo:
    """Return what there is to say of a namespace without rows."""
    return NamespaceInfo(
        spec.name, spec.uid, spec.dimension, spec.metric, spec.recall_target, spec.picture, 0, 0, 0, 0, None
    )


def _gathered(
    picture: Picture,
    spec: NamespaceSpec | None,
    operation: str,
    *,
    narrowing: Narrowing | None = None,
    **arguments: Any,
) -> Scattered:
    """Ask every shard that owns slots."""
    questions = [picture.question(member, spec, operation, **arguments) for member in owning(picture.sharding)]
    if narrowing is not None:
        questions = [replace(question, narrowing=narrowing) for question in questions]
    return gathered(picture, questions, means())
