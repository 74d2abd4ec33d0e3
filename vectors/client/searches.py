"""The options of a search, by name, and the body they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from numpy.typing import ArrayLike

from vectors.client.rows import Id, plain_id, vector


class SearchOptions(TypedDict, total=False):
    """What a search may say beside its query; what is left out is as the node has it.

    `top_k` 1 to 1000 (10). `metric` cosine, ip or l2 (the namespace's). `filter` conditions on metadata. `recall` the
    share of the true neighbours to find (the namespace's target), `exact` all of them. `with_values` (True),
    `with_metadata` (True). `score_threshold` keeps scores at least (l2: at most) that good. `offset` skips the best.
    """

    top_k: int
    metric: str | None
    filter: Mapping[str, Any] | None
    recall: float | None
    exact: bool
    with_values: bool
    with_metadata: bool
    score_threshold: float | None
    offset: int


def search_body(query: ArrayLike | None, row_id: Id | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a search; raise ValueError unless there is a query or an id, TypeError for other options."""
    unknown = options.keys() - SearchOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a search has no option {', '.join(sorted(unknown))}")
    body: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if row_id is None and query is not None:
        body["query"] = vector(query).tobytes()
    elif row_id is not None and query is None:
        body["id"] = plain_id(row_id)
    else:
        raise ValueError("give a query or an id")
    return body
