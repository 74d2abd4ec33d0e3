"""Search: one, many at once, and the count of what a filter matches."""

from __future__ import annotations

import time
from typing import Any, Final

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.parameters import QueryParameter
from mlvdb_site.http.views import NodeView
from vectors.api import examples
from vectors.api.answers import hit_answer, shard_answer, shard_headers
from vectors.api.arrays import vector
from vectors.api.body import (
    Body,
    MissingField,
    body_of,
    boolean,
    check_fields,
    integer,
    metric,
    number,
    objects,
    recall,
)
from vectors.api.options import CONSISTENCY_PARAMETERS, FLAG_SCHEMA, NAMESPACE, flag_of, namespace_of, options_of
from vectors.engine.ids import key_of
from vectors.errors import InvalidInput
from vectors.query_processor import Answer, SearchRequest, query_processor
from vectors.query_processor.parsing import filter_of

SEARCH_FIELDS: Final = frozenset(
    {
        "query",
        "id",
        "top_k",
        "metric",
        "filter",
        "recall",
        "exact",
        "with_values",
        "with_metadata",
        "score_threshold",
        "offset",
    }
)
DEFAULT_TOP_K: Final = 10
EXPLAIN = QueryParameter(
    "explain",
    "`1` answers an object with the account of each shard beside the results.",
    schema=FLAG_SCHEMA,
)
_PARAMETERS = (NAMESPACE, *CONSISTENCY_PARAMETERS)


class SearchView(NodeView):
    """Find the vectors most similar to a query vector, or to the vector of an id (POST).

    The answer is a list, best first; equal scores are ordered by id.
    """

    parameters = {"POST": (*_PARAMETERS, EXPLAIN)}

    def post(self, request: Request) -> Response:
        """Search."""
        began = time.perf_counter()
        search = _search_request(body_of(request))
        answer = query_processor().find_similar(search, namespace=namespace_of(request), options=options_of(request))
        return _answer(request, answer, [hit_answer(hit) for hit in answer.value], began)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Search"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.search(request)


class SearchBatchView(NodeView):
    """Answer many searches on one state of the namespace (POST): a list of lists."""

    parameters = {"POST": (*_PARAMETERS, EXPLAIN)}

    def post(self, request: Request) -> Response:
        """Search many times."""
        began = time.perf_counter()
        body = body_of(request)
        check_fields(body, {"searches"})
        searches = [
            _search_request(search, prefix=f"searches[{position}].")
            for position, search in enumerate(objects(body, "searches", maximum=settings.MLVDB_MAX_SEARCHES))
        ]
        answer = query_processor().search_batch(searches, namespace=namespace_of(request), options=options_of(request))
        results = [[hit_answer(hit) for hit in hits] for hits in answer.value]
        return _answer(request, answer, results, began)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Search batch"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.search_batch(request)


class CountView(NodeView):
    """Count the vectors that match a filter, or all of them (POST)."""

    parameters = {"POST": _PARAMETERS}

    def post(self, request: Request) -> Response:
        """Count."""
        body = body_of(request)
        check_fields(body, {"filter"})
        condition = body.get("filter")
        answer = query_processor().count(
            namespace=namespace_of(request),
            filter=None if condition is None else filter_of(condition),
            options=options_of(request),
        )
        return Response({"count": answer.value}, headers=shard_headers(answer))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Count"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.count(request)


def _answer(request: Request, answer: Answer[Any], results: list[Any], began: float) -> Response:
    headers = shard_headers(answer)
    if not flag_of(request, "explain"):
        return Response(results, headers=headers)
    return Response(
        {
            "results": results,
            "complete": answer.complete,
            "shards": [shard_answer(account) for account in answer.shards],
            "took_ms": round((time.perf_counter() - began) * 1e3, 3),
        },
        headers=headers,
    )


def _search_request(body: Body, *, prefix: str = "") -> SearchRequest:
    if not body.keys() <= SEARCH_FIELDS:
        check_fields(body, SEARCH_FIELDS, prefix=prefix)
    values, row_id, condition = body.get("query"), body.get("id"), body.get("filter")
    if values is None and row_id is None:
        raise MissingField("query or id is required", field=f"{prefix}query")
    if values is not None and row_id is not None:
        raise InvalidInput("give query or id, not both", field=f"{prefix}id")
    return SearchRequest(
        query=None if values is None else vector(values, field=f"{prefix}query"),
        key=None if row_id is None else key_of(row_id, field=f"{prefix}id"),
        top_k=integer(body, "top_k", DEFAULT_TOP_K, minimum=1, maximum=settings.MLVDB_MAX_TOP_K, prefix=prefix),
        metric=metric(body, prefix=prefix),
        filter=None if condition is None else filter_of(condition, field=f"{prefix}filter"),
        recall=recall(body, "recall", prefix=prefix),
        exact=boolean(body, "exact", False, prefix=prefix),
        with_values=boolean(body, "with_values", True, prefix=prefix),
        with_metadata=boolean(body, "with_metadata", True, prefix=prefix),
        score_threshold=number(body, "score_threshold", prefix=prefix),
        offset=integer(body, "offset", 0, minimum=0, maximum=settings.MLVDB_MAX_OFFSET, prefix=prefix),
    )
