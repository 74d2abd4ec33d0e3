"""A read as a value: which operation of the port, with what, so that it can be planned, repeated and sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vectors.query_processor import Answer, QueryProcessor, RequestOptions

SEARCHES = frozenset({"find_similar", "search_batch"})
"""Reads that may leave something out unless the client says otherwise."""

READS = SEARCHES | {"get", "fetch", "count", "scroll", "list_namespaces", "namespace_details", "storage_info"}
"""Operations of the port that read."""


@dataclass(frozen=True, slots=True)
class Read:
    """One read: the name of the port's method and its arguments, without the options."""

    operation: str
    arguments: Mapping[str, Any]

    def of(self, processor: QueryProcessor, options: RequestOptions) -> Answer[Any]:
        """Do it."""
        answer: Answer[Any] = getattr(processor, self.operation)(**self.arguments, options=options)
        return answer

    def allows_partial(self, options: RequestOptions) -> bool:
        """Whether an answer may leave something out, or be an older one than was asked for, when it says so."""
        return self.operation in SEARCHES if options.partial is None else options.partial


def with_time_left(options: RequestOptions, timeout_s: float) -> RequestOptions:
    """Return the options with what is left of the request's time."""
    return replace(options, timeout_s=max(timeout_s, 0.001))
