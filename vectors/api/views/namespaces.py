"""Namespaces: list, create or change, drop, and their vectors page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson
from django.conf import settings
from django.http import HttpResponseBase, StreamingHttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.parameters import QueryParameter, whole_number
from mlvdb_site.http.views import NodeView, is_page
from vectors.api import examples
from vectors.api.answers import namespace_answer, record_answer, shard_headers, write_answer
from vectors.api.body import body_of, check_fields, integer, metric, recall
from vectors.api.options import (
    CONSISTENCY_PARAMETERS,
    FLAG_SCHEMA,
    ID_TYPE,
    NAMESPACE,
    flag_of,
    id_type_is_string,
    namespace_name,
    namespace_of,
    options_of,
)
from vectors.engine.filters import Filter
from vectors.engine.ids import id_of, key_of_text
from vectors.errors import InvalidInput
from vectors.query_processor import Record, query_processor
from vectors.query_processor.parsing import filter_of

DEFAULT_LIMIT: Final = 1000
STREAM_ROWS: Final = 1000
"""A page of more rows is sent as it is rendered, and never held whole as text."""

DETAIL = QueryParameter(
    "detail", "`1` adds dimension, metric, counts, segments and measured recall.", schema=FLAG_SCHEMA
)
LIMIT = QueryParameter(
    "limit",
    "Rows in a page.",
    schema={"type": "integer", "minimum": 1, "maximum": settings.MLVDB_MAX_SCROLL, "default": DEFAULT_LIMIT},
)
AFTER = QueryParameter(
    "after", "The id after which the page begins.", schema={"type": "string", "minLength": 1, "maxLength": 255}
)
FILTER = QueryParameter(
    "filter",
    'A filter as JSON, such as `{"price__lt": 10}`.',
    schema={"$ref": "#/components/schemas/Filter"},
    json=True,
)

_NAMESPACE_FIELDS = frozenset({"dimension", "metric", "recall_target", "picture"})
_PICTURE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class NamespacesView(NodeView):
    """The namespaces of this node (GET)."""

    parameters = {"GET": (DETAIL, *CONSISTENCY_PARAMETERS)}

    def get(self, request: Request) -> Response:
        """Return the names; with `detail=1` what is known of each."""
        options = options_of(request)
        if flag_of(request, "detail"):
            details = query_processor().namespace_details(options=options)
            described = [namespace_answer(info) for info in details.value]
            return Response({"namespaces": described}, headers=shard_headers(details))
        names = query_processor().list_namespaces(options=options)
        return Response({"namespaces": names.value}, headers=shard_headers(names))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Namespaces"


class NamespaceView(NodeView):
    """One namespace: create or change it (PUT), or drop it with all its vectors (DELETE).

    Dimension and metric are fixed once it exists.
    """

    parameters = {"PUT": CONSISTENCY_PARAMETERS, "DELETE": CONSISTENCY_PARAMETERS}

    def put(self, request: Request, name: str) -> Response:
        """Create or change the namespace."""
        name = namespace_name(name, field="name")
        body = body_of(request)
        check_fields(body, _NAMESPACE_FIELDS)
        dimension = integer(body, "dimension", 0, minimum=1, maximum=settings.MLVDB_MAX_DIMENSION) or None
        info = query_processor().namespace_put(
            name,
            dimension=dimension,
            metric=metric(body),
            recall_target=recall(body, "recall_target"),
            picture=_picture(body.get("picture"), dimension),
            options=options_of(request),
        )
        return Response(
            {"status": "success", "message": f"Namespace {name} saved", "namespace": namespace_answer(info)}
        )

    def delete(self, request: Request, name: str) -> Response:
        """Drop the namespace."""
        name = namespace_name(name, field="name")
        result = query_processor().namespace_drop(name, options=options_of(request))
        return Response(write_answer(result, f"Namespace {name} dropped", deleted=result.count))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Namespace"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.namespace(self.kwargs["name"]) if method == "PUT" else None


class ScrollView(NodeView):
    """The vectors of a namespace in id order, page by page (GET): follow the `Link` header while there is one."""

    parameters = {"GET": (NAMESPACE, LIMIT, AFTER, ID_TYPE, FILTER, *CONSISTENCY_PARAMETERS)}

    def get(self, request: Request) -> HttpResponseBase:
        """Return a page."""
        query = request._request.GET
        answer = query_processor().scroll(
            namespace=namespace_of(request),
            limit=whole_number(
                query.get("limit", str(DEFAULT_LIMIT)), field="limit", minimum=1, maximum=settings.MLVDB_MAX_SCROLL
            ),
            after=_after(request),
            filter=_filter(query.get("filter")),
            options=options_of(request),
        )
        headers = dict(shard_headers(answer))
        if answer.value.next_after is not None:
            headers["Link"] = f'<{_next_url(request, answer.value.next_after)}>; rel="next"'
        records = answer.value.records
        if len(records) > STREAM_ROWS and not is_page(request):
            renderer: Any = request.accepted_renderer
            return StreamingHttpResponse(
                renderer.stream(_rows(records), len(records)), content_type=renderer.media_type, headers=headers
            )
        return Response(list(_rows(records)), headers=headers)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Vectors of a namespace"


def _rows(records: list[Record]) -> Iterator[dict[str, Any]]:
    return map(record_answer, records)


def _after(request: Request) -> bytes | None:
    as_string = id_type_is_string(request)
    text = request._request.GET.get("after")
    return None if text is None else key_of_text(text, as_string=as_string, field="after")


def _filter(text: str | None) -> Filter | None:
    if text is None:
        return None
    try:
        condition = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"filter is not valid JSON: {error}", field="filter") from None
    return filter_of(condition)


def _next_url(request: Request, after: bytes) -> str:
    """Return the absolute URL of the page after a key, with the other parameters kept."""
    text = str(id_of(after))
    query = request._request.GET.copy()
    query["after"] = text
    query.pop("id_type", None)
    try:
        plain = key_of_text(text) == after
    except InvalidInput:
        plain = False
    if not plain:
        query["id_type"] = "string"
    return request._request.build_absolute_uri(f"{request._request.path}?{query.urlencode()}")


def _picture(value: Any, dimension: int | None) -> str | None:
    if value is None or value == "":
        return value
    sides = _PICTURE.fullmatch(value) if type(value) is str else None
    if sides is None:
        raise InvalidInput("picture must be WIDTHxHEIGHT, such as 8x8", field="picture")
    if dimension is not None and int(sides[1]) * int(sides[2]) != dimension:
        raise InvalidInput(f"picture {value} does not have {dimension} pixels", field="picture")
    return value
