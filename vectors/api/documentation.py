"""The vector endpoints in OpenAPI: what each takes, answers and refuses, with examples."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from mlvdb_site.http.openapi import Schema, add_components, describe, hide, ref
from vectors.api import views
from vectors.api.options import IDEMPOTENCY_KEY, NAME_SCHEMA
from vectors.api.schemas import (
    component_schemas,
    explained_schema,
    list_schema,
    object_schema,
    optional_schema,
    written_schema,
)
from vectors.names import RESERVED_NAMESPACES

_READ_HEADERS = ("X-MLVDB-Complete", "X-MLVDB-Shards", "X-MLVDB-Failed", "X-MLVDB-Stale")
_ROW_ID: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "description": "An id: digits are an integer, a UUID form a UUID, anything else a string.",
}
_NAMESPACE_NAME: Schema = {
    **NAME_SCHEMA,
    "not": {"enum": sorted(RESERVED_NAMESPACES)},
    "description": "Name of the namespace.",
}
_SEQ = {"shard_0": "0.6f1c9d2e.1.42"}
_ROW = {"id": "shoe-1", "values": [0.1, 0.2, 0.3], "metadata": {"color": "red", "price": 9.5}}


def document(endpoints: list[Any], **context: Any) -> list[Any]:
    """Document the views (a preprocessing hook)."""
    add_components(component_schemas())
    _document_vectors()
    _document_search()
    _document_namespaces()
    return endpoints


def _document_vectors() -> None:
    describe(
        views.VectorsView,
        "POST",
        operation_id="insert",
        tag="vectors",
        summary="Insert a vector",
        description="A known id is replaced. Without an id the node makes a UUID.",
        body=ref("NewVector"),
        example=_ROW,
        status=201,
        answer=written_schema({"id": ref("Id")}),
        answer_example={"status": "success", "message": "Vector inserted", "id": "shoe-1", "seq": _SEQ},
        request_headers=(IDEMPOTENCY_KEY,),
        errors=(409, 507),
    )
    for view, method, operation_id in (
        (views.VectorsView, "DELETE", "delete"),
        (views.DeleteView, "POST", "delete_by_post"),
    ):
        describe(
            view,
            method,
            operation_id=operation_id,
            tag="vectors",
            summary="Delete vectors by ids or by filter",
            description="" if method == "DELETE" else "For clients that send no body with DELETE.",
            body=ref("Deletion"),
            example={"ids": ["shoe-1", 7]},
            answer=written_schema({"deleted": {"type": "integer", "minimum": 0}}),
            answer_example={"status": "success", "message": "2 vectors deleted", "deleted": 2, "seq": _SEQ},
            errors=(404, 409),
        )
    describe(
        views.BatchView,
        "PUT",
        operation_id="upsert",
        tag="vectors",
        summary="Upsert many vectors",
        description="All are written or none. Of a repeated id the last one wins. All rows have one dimension.",
        body=object_schema({"vectors": list_schema(ref("NewVector"), settings.MLVDB_MAX_BATCH)}, required=("vectors",)),
        example={"vectors": [_ROW, {"values": [0.3, 0.1, 0.2]}]},
        answer=written_schema({"ids": {"type": "array", "items": ref("Id")}}),
        answer_example={
            "status": "success",
            "message": "2 vectors upserted",
            "ids": ["shoe-1", "0b4ccb9c-7c3c-4a5b-9a54-0c1f7cb3c9f2"],
            "seq": _SEQ,
        },
        request_headers=(IDEMPOTENCY_KEY,),
        errors=(409, 507),
    )
    describe(
        views.FetchView,
        "POST",
        operation_id="fetch",
        tag="vectors",
        summary="Get many vectors by their ids",
        body=object_schema({"ids": list_schema(ref("Id"), settings.MLVDB_MAX_BATCH)}, required=("ids",)),
        example={"ids": ["shoe-1", 7]},
        answer=object_schema(
            {
                "vectors": {"type": "array", "items": ref("Vector")},
                "missing": {"type": "array", "items": ref("Id")},
            },
            required=("vectors", "missing"),
        ),
        answer_example={"vectors": [_ROW], "missing": [7]},
        headers=_READ_HEADERS,
        errors=(409,),
    )
    describe(
        views.RowView,
        "GET",
        operation_id="get",
        tag="vectors",
        summary="Get a vector",
        path={"row_id": _ROW_ID},
        answer=ref("Vector"),
        answer_example=_ROW,
        headers=_READ_HEADERS,
        errors=(404, 409),
    )
    describe(
        views.RowView,
        "PATCH",
        operation_id="patch",
        tag="vectors",
        summary="Merge keys into a vector's metadata",
        path={"row_id": _ROW_ID},
        body=object_schema({"metadata": ref("Metadata")}, required=("metadata",)),
        example={"metadata": {"color": "green"}},
        answer=written_schema({"id": ref("Id")}),
        answer_example={"status": "success", "message": "Vector updated", "id": "shoe-1", "seq": _SEQ},
        errors=(404, 409, 507),
    )
    for shared in (views.BatchView, views.FetchView, views.DeleteView):
        hide(shared, "GET", "PATCH")


def _document_search() -> None:
    hit = {**_ROW, "score": 0.998}
    results: Schema = {"type": "array", "items": ref("Hit")}
    describe(
        views.SearchView,
        "POST",
        operation_id="search",
        tag="search",
        summary="Find the most similar vectors",
        description="Best first; equal scores are ordered by id. With `explain=1` the answer is an object.",
        body=ref("Search"),
        example={"query": [0.1, 0.2, 0.3], "top_k": 5, "filter": {"price__lt": 10}},
        answer={"oneOf": [results, explained_schema(results)]},
        answer_example=[hit],
        headers=_READ_HEADERS,
        errors=(404, 409),
    )
    lists: Schema = {"type": "array", "items": results}
    describe(
        views.SearchBatchView,
        "POST",
        operation_id="search_batch",
        tag="search",
        summary="Answer many searches on one state",
        body=object_schema(
            {"searches": list_schema(ref("Search"), settings.MLVDB_MAX_SEARCHES)}, required=("searches",)
        ),
        example={"searches": [{"query": [0.1, 0.2, 0.3], "top_k": 5}, {"id": "shoe-1", "top_k": 5}]},
        answer={"oneOf": [lists, explained_schema(lists)]},
        answer_example=[[hit], [hit]],
        headers=_READ_HEADERS,
        errors=(404, 409),
    )
    describe(
        views.CountView,
        "POST",
        operation_id="count",
        tag="search",
        summary="Count the vectors that match a filter",
        body=object_schema({"filter": optional_schema(ref("Filter"))}),
        body_required=False,
        example={"filter": {"color__in": ["red", "blue"]}},
        answer=object_schema({"count": {"type": "integer", "minimum": 0}}, required=("count",)),
        answer_example={"count": 42},
        headers=_READ_HEADERS,
        errors=(409,),
    )


def _document_namespaces() -> None:
    name = {"name": _NAMESPACE_NAME}
    describe(
        views.NamespacesView,
        "GET",
        operation_id="namespaces",
        tag="namespaces",
        summary="List the namespaces",
        answer=object_schema(
            {"namespaces": {"type": "array", "items": {"oneOf": [NAME_SCHEMA, ref("Namespace")]}}},
            required=("namespaces",),
        ),
        answer_example={"namespaces": ["default", "digits"]},
        headers=_READ_HEADERS,
        errors=(409,),
    )
    describe(
        views.NamespaceView,
        "PUT",
        operation_id="namespace_put",
        tag="namespaces",
        summary="Create or change a namespace",
        description="A new one needs a dimension; dimension and metric are fixed once it exists.",
        path=name,
        body=ref("NamespaceSettings"),
        body_required=False,
        example={"dimension": 64, "metric": "l2", "recall_target": 0.99, "picture": "8x8"},
        answer=object_schema(
            {"status": {"const": "success"}, "message": {"type": "string"}, "namespace": ref("Namespace")},
            required=("status", "message", "namespace"),
        ),
        errors=(405, 409, 507),
    )
    describe(
        views.NamespaceView,
        "DELETE",
        operation_id="namespace_drop",
        tag="namespaces",
        summary="Drop a namespace with all its vectors",
        path=name,
        answer=written_schema({"deleted": {"type": "integer", "minimum": 0}}),
        errors=(404, 405, 409),
    )
    describe(
        views.ScrollView,
        "GET",
        operation_id="scroll",
        tag="namespaces",
        summary="The vectors of a namespace in id order",
        description="Follow the `Link` header while there is one.",
        answer={"type": "array", "items": ref("Vector")},
        answer_example=[_ROW],
        headers=(*_READ_HEADERS, "Link"),
        errors=(409,),
    )
    describe(
        views.StorageInfoView,
        "GET",
        operation_id="storage_info",
        tag="namespaces",
        summary="Totals of this node",
        answer=ref("StorageInfo"),
        headers=_READ_HEADERS,
        errors=(409,),
    )
