"""Bodies that work, for the forms of the browsable API: of the dimension of the namespace that the page is about."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request

from mlvdb_site.http.errors import RequestError
from vectors.api.options import DEFAULT_NAMESPACE, namespace_of
from vectors.engine.ids import id_of
from vectors.errors import MLVectorDBError
from vectors.query_processor import WHAT_IS_THERE, NamespaceInfo, Record, query_processor

NEW_DIMENSION = 3
NEW_ID = "example-1"
METADATA = {"color": "red", "price": 9.5, "tags": ["new"]}


def insert(request: Request) -> dict[str, Any]:
    """Return the body of an insert."""
    return {"id": NEW_ID, "values": _values(_dimension(request)), "metadata": METADATA}


def upsert(request: Request) -> dict[str, Any]:
    """Return the body of an upsert."""
    dimension = _dimension(request)
    return {
        "vectors": [
            {"id": NEW_ID, "values": _values(dimension), "metadata": METADATA},
            {"id": 2, "values": _values(dimension, first=5), "metadata": {"color": "blue", "price": 4}},
            {"values": _values(dimension, first=3)},
        ]
    }


def patch(request: Request) -> dict[str, Any]:
    """Return the body of a metadata patch."""
    return {"metadata": {"color": "green"}}


def fetch(request: Request) -> dict[str, Any]:
    """Return the body of a fetch."""
    return {"ids": _ids(request)}


def delete(request: Request) -> dict[str, Any]:
    """Return the body of a delete: by an id that an example insert has made."""
    return {"ids": [NEW_ID]}


def search(request: Request) -> dict[str, Any]:
    """Return the body of a search by the values of a row that is there."""
    records = _records(request)
    if records and records[0].values is not None:
        query = [round(float(value), 4) for value in records[0].values]
    else:
        query = _values(_dimension(request))
    return {"query": query, "top_k": 5}


def search_batch(request: Request) -> dict[str, Any]:
    """Return the body of a batch of two searches."""
    one = search(request)
    return {"searches": [{**one, "top_k": 2}, {**one, "top_k": 2, "metric": "l2", "with_values": False}]}


def count(request: Request) -> dict[str, Any]:
    """Return the body of a count."""
    return {"filter": {"color__in": ["red", "blue"], "price__lt": 10}}


def namespace(name: str) -> dict[str, Any]:
    """Return the body that makes a namespace, or that keeps the one there is as it is."""
    info = _details().get(name)
    if info is not None:
        return {"dimension": info.dimension, "metric": info.metric, "recall_target": info.recall_target}
    return {"dimension": NEW_DIMENSION, "metric": "cosine", "recall_target": 0.99}


def _namespace(request: Request) -> str:
    try:
        return namespace_of(request)
    except RequestError:
        return DEFAULT_NAMESPACE


def _records(request: Request) -> list[Record]:
    try:
        return query_processor().scroll(namespace=_namespace(request), limit=2).value.records
    except MLVectorDBError:
        return []


def _ids(request: Request) -> list[int | str]:
    return [id_of(record.key) for record in _records(request)] or [NEW_ID]


def _dimension(request: Request) -> int:
    info = _details().get(_namespace(request))
    return NEW_DIMENSION if info is None else info.dimension


def _details() -> dict[str, NamespaceInfo]:
    try:
        return {info.name: info for info in query_processor().namespace_details(options=WHAT_IS_THERE).value}
    except MLVectorDBError:
        return {}


def _values(dimension: int, *, first: int = 1) -> list[float]:
    return [(first + place) % 10 / 10 for place in range(dimension)]
