"""Searches of a body: the few fields that a search has are read, and what it leaves out costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.conf import settings

from vectors.api.arrays import vector
from vectors.api.body import Body, MissingField, boolean, check_fields, integer, metric, number, recall
from vectors.engine.ids import key_of
from vectors.errors import InvalidInput
from vectors.query_processor import SearchRequest
from vectors.query_processor.parsing import filter_of

DEFAULT_TOP_K: Final = 10

_OPTIONS: Final[Mapping[str, Callable[[Body, str], Any]]] = {
    "top_k": lambda body, prefix: integer(
        body, "top_k", DEFAULT_TOP_K, minimum=1, maximum=settings.MLVDB_MAX_TOP_K, prefix=prefix
    ),
    "metric": lambda body, prefix: metric(body, prefix=prefix),
    "filter": lambda body, prefix: filter_of(body["filter"], field=f"{prefix}filter"),
    "recall": lambda body, prefix: recall(body, "recall", prefix=prefix),
    "exact": lambda body, prefix: boolean(body, "exact", False, prefix=prefix),
    "with_values": lambda body, prefix: boolean(body, "with_values", True, prefix=prefix),
    "with_metadata": lambda body, prefix: boolean(body, "with_metadata", True, prefix=prefix),
    "score_threshold": lambda body, prefix: number(body, "score_threshold", prefix=prefix),
    "offset": lambda body, prefix: integer(
        body, "offset", 0, minimum=0, maximum=settings.MLVDB_MAX_OFFSET, prefix=prefix
    ),
}
SEARCH_FIELDS: Final = frozenset({"query", "id", *_OPTIONS})


def search_request(body: Body, *, prefix: str = "") -> SearchRequest:
    """Return the search that a body asks for; `prefix` stands before the names of fields in errors."""
    if not body.keys() <= SEARCH_FIELDS:
        check_fields(body, SEARCH_FIELDS, prefix=prefix)
    values, row_id = body.get("query"), body.get("id")
    if values is None and row_id is None:
        raise MissingField("query or id is required", field=f"{prefix}query")
    if values is not None and row_id is not None:
        raise InvalidInput("give query or id, not both", field=f"{prefix}id")
    return SearchRequest(
        query=None if values is None else vector(values, field=f"{prefix}query"),
        key=None if row_id is None else key_of(row_id, field=f"{prefix}id"),
        **{
            name: _OPTIONS[name](body, prefix) for name, value in body.items() if value is not None and name in _OPTIONS
        },
    )
