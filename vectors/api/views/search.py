"""Search: one, many at once, and the count of what a filter matches."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from rest_framework.request import Request

from mlvdb_site.http.parameters import QueryParameter
from mlvdb_site.http.views import Answered, DirectView
from vectors.api import examples
from vectors.api.answers import hit_answer, shard_answer, shard_headers
from vectors.api.body import body_of, check_fields, objects
from vectors.api.options import CONSISTENCY_PARAMETERS, FLAG_SCHEMA, NAMESPACE, flag_of, namespace_of, options_of
from vectors.api.searches import search_request
from vectors.query_processor import Answer, query_processor
from vectors.query_processor.parsing import filter_of

EXPLAIN = QueryParameter(
    "explain",
    "`1` answers an object with the account of each shard beside the results.",
    schema=FLAG_SCHEMA,
)
_PARAMETERS = (NAMESPACE, *CONSISTENCY_PARAMETERS)


class SearchView(DirectView):
    """Find the vectors most similar to a query vector, or to the vector of an id (POST).

    The answer is a list, best first; equal scores are ordered by id.
    """

    parameters = {"POST": (*_PARAMETERS, EXPLAIN)}

    @classmethod
    def answer(cls, request: Request) -> Answered:
        """Search."""
        began = time.perf_counter()
        search = search_request(body_of(request))
        answer = query_processor().find_similar(search, namespace=namespace_of(request), options=options_of(request))
        return _answer(request, answer, [hit_answer(hit) for hit in answer.value], began)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Search"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.search(request)


class SearchBatchView(DirectView):
    """Answer many searches on one state of the namespace (POST): a list of lists."""

    parameters = {"POST": (*_PARAMETERS, EXPLAIN)}

    @classmethod
    def answer(cls, request: Request) -> Answered:
        """Search many times."""
        began = time.perf_counter()
        body = body_of(request)
        check_fields(body, {"searches"})
        searches = [
            search_request(search, prefix=f"searches[{position}].")
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


class CountView(DirectView):
    """Count the vectors that match a filter, or all of them (POST)."""

    parameters = {"POST": _PARAMETERS}

    @classmethod
    def answer(cls, request: Request) -> Answered:
        """Count."""
        body = body_of(request)
        check_fields(body, {"filter"})
        condition = body.get("filter")
        answer = query_processor().count(
            namespace=namespace_of(request),
            filter=None if condition is None else filter_of(condition),
            options=options_of(request),
        )
        return Answered({"count": answer.value}, shard_headers(answer))

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Count"

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return examples.count(request)


def _answer(request: Request, answer: Answer[Any], results: list[Any], began: float) -> Answered:
    headers = shard_headers(answer)
    if not flag_of(request, "explain"):
        return Answered(results, headers)
    return Answered(
        {
            "results": results,
            "complete": answer.complete,
            "shards": [shard_answer(account) for account in answer.shards],
            "took_ms": round((time.perf_counter() - began) * 1e3, 3),
        },
        headers,
    )
