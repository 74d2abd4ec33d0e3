"""Vectors by id: insert, upsert, get, fetch, delete, patch."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.views import NodeView, is_page
from vectors.api import examples
from vectors.api.answers import record_answer, shard_headers, write_answer
from vectors.api.body import Body, MissingField, body_of, check_fields, items, objects, required
from vectors.api.options import (
    CONSISTENCY_PARAMETERS,
    ID_TYPE,
    NAMESPACE,
    id_type_is_string,
    namespace_of,
    options_of,
)
from vectors.api.rows import row_batch, rows_batch
from vectors.engine.filters import Filter
from vectors.engine.ids import id_of, key_of_text, parse_keys
from vectors.errors import InvalidInput, NotFound
from vectors.query_processor import query_processor
from vectors.query_processor.parsing import filter_of, metadata_of

_PARAMETERS = (NAMESPACE, *CONSISTENCY_PARAMETERS)
_ROW_PARAMETERS = (NAMESPACE, ID_TYPE, *CONSISTENCY_PARAMETERS)


class VectorsView(NodeView):
    """Insert a vector (POST), or delete vectors by ids or by filter (DELETE).

    An insert of a known id replaces its values and metadata. Without an id the node makes a UUID. The first vector
    of a namespace makes the namespace.
    """

    parameters = {"POST": _PARAMETERS, "DELETE": _PARAMETERS}

    def post(self, request: Request) -> Response:
        """Insert one vector."""
        batch = row_batch(body_of(request))
        result = query_processor().insert(batch, namespace=namespace_of(request), options=options_of(request))
        return Response(write_answer(result, "Vector inserted", id=id_of(result.keys[0])), status=201)

    def delete(self, request: Request) -> Response:
        """Delete by ids or by filter."""
        return _delete(request)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Vectors"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.delete(request) if method == "DELETE" else examples.insert(request)


class RowView(NodeView):
    """One vector: get it (GET), or merge keys into its metadata (PATCH).

    An id of digits is an integer, one in UUID form a UUID, anything else a string; `id_type=string` reads digits as a
    string. An id may hold slashes.
    """

    parameters = {"GET": _ROW_PARAMETERS, "PATCH": _ROW_PARAMETERS}
    row_id = ""
    """The id in the path; the views at reserved words have theirs here."""

    def get(self, request: Request, row_id: str | None = None) -> Response:
        """Return the vector."""
        key = key_of_text(row_id or self.row_id, as_string=id_type_is_string(request))
        try:
            answer = query_processor().get(key, namespace=namespace_of(request), options=options_of(request))
        except NotFound:
            if self.row_id and is_page(request):
                return self.page()
            raise
        return Response(record_answer(answer.value), headers=shard_headers(answer))

    def patch(self, request: Request, row_id: str | None = None) -> Response:
        """Merge an object into the vector's metadata, key by key; the values stay."""
        key = key_of_text(row_id or self.row_id, as_string=id_type_is_string(request))
        body = body_of(request)
        check_fields(body, {"metadata"})
        metadata = metadata_of(required(body, "metadata"), field="metadata")
        result = query_processor().patch(
            key, metadata=metadata, namespace=namespace_of(request), options=options_of(request)
        )
        return Response(write_answer(result, "Vector updated", id=id_of(key)))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Vector"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.patch(request)


class BatchView(RowView):
    """Upsert many vectors (PUT). All are written or none; of a repeated id the last one wins.

    GET and PATCH are about the vector whose id is the string "batch".
    """

    parameters = {**RowView.parameters, "PUT": _PARAMETERS}
    row_id = "batch"

    def put(self, request: Request) -> Response:
        """Upsert many vectors."""
        body = body_of(request)
        check_fields(body, {"vectors"})
        batch = rows_batch(objects(body, "vectors", maximum=settings.MLVDB_MAX_BATCH), field="vectors")
        result = query_processor().upsert_many(batch, namespace=namespace_of(request), options=options_of(request))
        ids = [id_of(key) for key in result.keys]
        return Response(write_answer(result, f"{len(ids)} vectors upserted", ids=ids))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Upsert"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.upsert(request) if method == "PUT" else examples.patch(request)


class FetchView(RowView):
    """Get many vectors by their ids (POST); the answer says which are missing.

    GET and PATCH are about the vector whose id is the string "fetch".
    """

    parameters = {**RowView.parameters, "POST": _PARAMETERS}
    row_id = "fetch"

    def post(self, request: Request) -> Response:
        """Return the vectors of a list of ids."""
        body = body_of(request)
        check_fields(body, {"ids"})
        keys = parse_keys(items(body, "ids", maximum=settings.MLVDB_MAX_BATCH))
        answer = query_processor().fetch(keys, namespace=namespace_of(request), options=options_of(request))
        return Response(
            {
                "vectors": [record_answer(record) for record in answer.value.records],
                "missing": [id_of(key) for key in answer.value.missing],
            },
            headers=shard_headers(answer),
        )

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Fetch"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.fetch(request) if method == "POST" else examples.patch(request)


class DeleteView(RowView):
    """Delete vectors by ids or by filter (POST), for clients that send no body with DELETE.

    GET and PATCH are about the vector whose id is the string "delete".
    """

    parameters = {**RowView.parameters, "POST": _PARAMETERS}
    row_id = "delete"

    def post(self, request: Request) -> Response:
        """Delete by ids or by filter."""
        return _delete(request)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Delete"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.delete(request) if method == "POST" else examples.patch(request)


def _delete(request: Request) -> Response:
    keys, condition = _ids_or_filter(body_of(request))
    result = query_processor().delete(
        namespace=namespace_of(request), keys=keys, filter=condition, options=options_of(request)
    )
    return Response(
        write_answer(result, f"{result.count} vectors deleted", deleted=result.count), headers=shard_headers(result)
    )


def _ids_or_filter(body: Body) -> tuple[list[bytes] | None, Filter | None]:
    check_fields(body, {"ids", "filter"})
    given = [name for name in ("ids", "filter") if body.get(name) is not None]
    if not given:
        raise MissingField("ids or filter is required", field="ids")
    if len(given) == 2:
        raise InvalidInput("give ids or filter, not both", field="filter")
    if given == ["ids"]:
        return parse_keys(items(body, "ids", maximum=settings.MLVDB_MAX_BATCH)), None
    if body["filter"] == {}:
        raise InvalidInput("an empty filter matches every vector; drop the namespace instead", field="filter")
    return None, filter_of(body["filter"])
