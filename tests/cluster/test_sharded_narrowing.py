"""What shards have answered narrows what is asked of the next ones, and never what is answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.query_processor.reading import Read
from cluster.query_processor.sharded.narrowing import Narrowing
from vectors.query_processor import Hit, SearchRequest

QUERY = np.zeros(3, dtype=np.float32)


def hits(*scores: float) -> list[Hit]:
    return [Hit(f"{score}".encode(), None, None, score) for score in scores]


def asked(narrowing: Narrowing, request: SearchRequest) -> SearchRequest:
    read = Read("find_similar", {"request": request, "namespace": "a"})
    narrowed: Any = narrowing.narrowed(read)
    assert narrowed.arguments["namespace"] == "a"
    return narrowed.arguments["request"]


def test_a_shard_has_to_reach_the_worst_of_the_best_so_far():
    request = SearchRequest(query=QUERY, top_k=2)
    narrowing = Narrowing([request], "cosine")
    read = Read("find_similar", {"request": request})
    assert asked(narrowing, request).score_threshold is None
    narrowing.heed(read, hits(0.5))
    assert asked(narrowing, request).score_threshold is None
    narrowing.heed(read, hits(0.9, 0.4))
    assert asked(narrowing, request).score_threshold == 0.5
    narrowing.heed(read, hits(0.7))
    assert asked(narrowing, request).score_threshold == 0.7


def test_of_distances_the_smaller_ones_are_the_better_ones():
    request = SearchRequest(query=QUERY, top_k=2)
    narrowing = Narrowing([request], "l2")
    read = Read("find_similar", {"request": request})
    narrowing.heed(read, hits(1.0, 5.0))
    narrowing.heed(read, hits(3.0))
    assert asked(narrowing, request).score_threshold == 3.0


@pytest.mark.parametrize(("threshold", "bound"), [(0.95, 0.95), (0.1, 0.8)])
def test_the_clients_own_threshold_holds_where_it_is_the_stricter_one(threshold, bound):
    request = SearchRequest(query=QUERY, top_k=1, score_threshold=threshold)
    narrowing = Narrowing([request], "cosine")
    narrowing.heed(Read("find_similar", {"request": request}), hits(0.8))
    assert asked(narrowing, request).score_threshold == bound


def test_each_search_of_a_batch_has_its_own_bound():
    requests = [SearchRequest(query=QUERY, top_k=1), SearchRequest(query=QUERY, top_k=1, metric="l2")]
    narrowing = Narrowing(requests, "cosine")
    read = Read("search_batch", {"requests": requests})
    narrowing.heed(read, [hits(0.8), hits(4.0)])
    narrowing.heed(read, [hits(0.3), []])
    found: Any = narrowing.narrowed(read).arguments["requests"]
    assert [request.score_threshold for request in found] == [0.8, 4.0]
    assert [replace(request, score_threshold=None) for request in found] == requests


def test_a_search_for_no_rows_at_all_stays_as_it_is():
    request = SearchRequest(query=QUERY, top_k=0)
    narrowing = Narrowing([request], "cosine")
    narrowing.heed(Read("find_similar", {"request": request}), [])
    assert asked(narrowing, request) == request
