"""`QueryProcessor`: insert, search and delete in a storage engine, and the `Index` that says how rows are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from vectors.engine.distances import METRICS
from vectors.errors import InvalidInput
from vectors.library.storage import StorageEngineInMemory, vector_of
from vectors.library.vectors import AnyVector, Id, Vector, VectorDTO, float32_vector

DEFAULT_NAMESPACE = "default"


class Index:
    """How the rows of a processor are compared: cosine, ip or l2.

    It holds no rows: the storage engine's segments do, and any metric can be asked of them.
    """

    def __init__(self, space: str = "cosine", *, metric: str | None = None) -> None:
        self.metric = metric or space
        if self.metric not in METRICS:
            raise InvalidInput(f"metric is one of {', '.join(METRICS)}", field="metric")

    def __repr__(self) -> str:
        return f"Index({self.metric!r})"


class SimilarVectors(list[dict[str, Any]]):
    """What a search found, best first. `failed` are the shards whose part is missing: empty for a complete answer."""

    def __init__(self, found: Iterable[dict[str, Any]], failed: Iterable[str] = ()) -> None:
        super().__init__(found)
        self.failed = list(failed)

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return not self.failed


class QueryProcessor:
    """Vectors of one storage engine: written, searched, counted. Thread-safe. Its end closes the engine."""

    def __init__(self, storage_engine: StorageEngineInMemory, index: Index | None = None) -> None:
        self.storage_engine = storage_engine
        self.index = index or Index()
        # What is read and written; `cluster.library` puts the same engine here, seen through all of its copies.
        self._engine = storage_engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the storage engine, which drops its data."""
        self.storage_engine.close()

    def insert(self, vector: AnyVector, namespace: str = DEFAULT_NAMESPACE) -> Id:
        """Write a vector and return its id, which is also set on a VectorDTO; a known id is replaced."""
        return self.upsert_many([vector], namespace)[0]

    def upsert_many(self, vectors: Iterable[AnyVector], namespace: str = DEFAULT_NAMESPACE) -> list[Id]:
        """Write vectors and return their ids in order; of a repeated id the last vector wins."""
        rows = list(vectors)
        if not rows:
            return []
        dimension = len(float32_vector(rows[0].values, field="vectors[0].values"))
        self._engine.namespace_put(namespace, dimension=dimension, metric=self.index.metric)
        self._engine.write_vectors(rows, namespace)
        return [row.id for row in rows if row.id is not None]

    def find_similar(
        self,
        query: AnyVector | ArrayLike,
        top_k: int = 10,
        namespace: str = DEFAULT_NAMESPACE,
        filter: Mapping[str, Any] | None = None,
        metric: str | None = None,
    ) -> SimilarVectors:
        """Return the `top_k` most similar vectors, best first: dicts of id, values (float32), metadata and score.

        cosine and ip: a higher score is better; l2 (squared distance): a lower one. `metric` None is the index's.
        Raise DimensionMismatch for a query of another length than the namespace's vectors.
        """
        from django.conf import settings

        from vectors.query_processor.parsing import filter_of
        from vectors.query_processor.port import Record, SearchRequest

        if metric is not None:
            Index(metric)
        if isinstance(top_k, bool) or not 1 <= top_k <= settings.MLVDB_MAX_TOP_K:
            raise InvalidInput(f"top_k is 1 to {settings.MLVDB_MAX_TOP_K}", field="top_k")
        values = query.values if isinstance(query, (VectorDTO, Vector)) else query
        request = SearchRequest(
            query=float32_vector(values, field="query"),
            top_k=top_k,
            metric=metric or self.index.metric,
            filter=None if filter is None else filter_of(filter),
        )
        answer = self._engine.query_processor.find_similar(request, namespace=namespace)
        rows = []
        for hit in answer.value:
            found = vector_of(Record(hit.key, hit.values, hit.metadata))
            rows.append({"id": found.id, "values": found.values, "metadata": found.metadata, "score": hit.score})
        return SimilarVectors(rows, answer.failed)

    def delete(self, ids: Id | Iterable[Id], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete the vector of an id, or those of many; return how many there were."""
        is_one = isinstance(ids, (int, str, np.integer)) or not isinstance(ids, Iterable)
        return self._engine.delete_vectors([ids] if is_one else ids, namespace)  # type: ignore[list-item,arg-type]

    def list_namespaces(self) -> list[str]:
        """Return the names of the namespaces, sorted."""
        return self._engine.list_namespaces

    def get_namespace_vectors(self, namespace: str = DEFAULT_NAMESPACE) -> list[Vector]:
        """Return every vector of a namespace in id order."""
        return self._engine.vectors(namespace)

    def get_namespace_count(self, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Return how many vectors a namespace has."""
        return self._engine.count(namespace)

    def get_storage_info(self) -> dict[str, Any]:
        """Return the totals, as `GET /storage/info` answers them."""
        return self._engine.get_storage_info()
