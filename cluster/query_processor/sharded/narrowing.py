"""What shards that have answered a search leave for the next ones to beat.

This node's own shards answer one after the other. The k-th best row so far is a bound for all others, so they need no
exact scores, no values and no metadata of rows that will not be in the answer. Rows that are as good as the bound stay:
which of them is answered is for the merge to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.query_processor.reading import Read
from vectors.engine.distances import lower_is_better
from vectors.query_processor import Hit, SearchRequest


class Narrowing:
    """The best scores so far of each of a read's searches, all of them by values and without offset."""

    def __init__(self, requests: Sequence[SearchRequest], metric: str) -> None:
        self._requests = list(requests)
        self._descending = [
            1.0 if lower_is_better(request.metric or metric) else -1.0  # type: ignore[arg-type]
            for request in requests
        ]
        self._best: list[list[float]] = [[] for _ in requests]

    def narrowed(self, read: Read) -> Read:
        """Return the read as the next shard is to do it."""
        asked = [self._request(number) for number in range(len(self._requests))]
        name = "request" if read.operation == "find_similar" else "requests"
        return replace(read, arguments={**read.arguments, name: asked[0] if name == "request" else asked})

    def heed(self, read: Read, value: Any) -> None:
        """Note what a shard has answered. Two at once may forget one of them, which only makes the bound looser."""
        lists: Sequence[Sequence[Hit]] = [value] if read.operation == "find_similar" else value
        for number, (hits, request) in enumerate(zip(lists, self._requests, strict=True)):
            descending = self._descending[number]
            scores = [*self._best[number], *(hit.score * descending for hit in hits)]
            self._best[number] = sorted(scores)[: request.top_k]

    def _request(self, number: int) -> SearchRequest:
        request, best, descending = self._requests[number], self._best[number], self._descending[number]
        if len(best) < request.top_k or not best:
            return request
        bound = best[-1]
        if request.score_threshold is not None:
            bound = min(bound, request.score_threshold * descending)
        return replace(request, score_threshold=bound * descending)
