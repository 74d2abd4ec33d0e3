"""The vectors of a namespace as a page: in id order, or the ones most similar to a row or a vector.

Everything is a plain form or link, answered in HTML. A search comes as POST, since a vector may be too long for a URL;
it changes nothing.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, QueryDict

from vectors.admin.forms import DEFAULT_TOP_K, BrowseForm, SearchForm
from vectors.admin.pictures import PictureSize, picture_size, picture_uri
from vectors.admin.rows import id_parameters, shown_row
from vectors.engine.distances import lower_is_better
from vectors.errors import InvalidInput, MLVectorDBError, NotFound
from vectors.models import Namespace
from vectors.query_processor import Answer, RequestOptions, SearchRequest, query_processor

# A person may look at what is left of a damaged shard; the page says that it is not all.
_OPTIONS = RequestOptions(partial=True)

Context = dict[str, Any]


def vectors_page(namespace: Namespace, request: HttpRequest) -> tuple[Context, int]:
    """Return the context of the page and its HTTP status: that of an error that is not the person's, else 200."""
    sent = request.POST if request.method == "POST" else request.GET
    searching = "id" in sent or "query" in sent
    # The form that was not sent stands ready with the same filter.
    initial = {"filter": sent.get("filter", "")}
    context: Context = {
        "picture": picture_size(namespace.picture),
        "browse_form": BrowseForm(None if searching else sent, initial=initial, auto_id="browse_%s"),
        "search_form": SearchForm(_with_default(sent) if searching else None, initial=initial, auto_id="search_%s"),
        "searching": searching,
        "rows": None,
    }
    try:
        context["row_count"] = query_processor().count(namespace=namespace.name, options=_OPTIONS).value
        context |= _search(namespace, context) if searching else _browse(namespace, context)
    except MLVectorDBError as error:
        context["error"] = error.message
        return context, error.status
    return context, 200


def _with_default(sent: QueryDict) -> QueryDict:
    """Return what was sent; a link to "more like this" names no number of rows."""
    if "top_k" in sent:
        return sent
    sent = sent.copy()
    sent["top_k"] = str(DEFAULT_TOP_K)
    return sent


def _browse(namespace: Namespace, context: Context) -> Context:
    form: BrowseForm = context["browse_form"]
    if not form.is_valid():
        return {}
    wanted = form.cleaned_data
    answer = query_processor().scroll(
        namespace=namespace.name,
        limit=wanted["limit"],
        after=wanted["key"],
        filter=wanted["condition"],
        options=_OPTIONS,
    )
    page = answer.value
    return {
        "rows": [shown_row(record, picture=context["picture"]) for record in page.records],
        "first_page": _browse_query(form, after=None) if wanted["key"] is not None else None,
        "next_page": None if page.next_after is None else _browse_query(form, after=page.next_after),
        "failed": answer.failed,
    }


def _browse_query(form: BrowseForm, *, after: bytes | None) -> str:
    wanted = form.cleaned_data
    parameters = {"limit": str(wanted["limit"])}
    if wanted["filter"].strip():
        parameters["filter"] = wanted["filter"]
    if after is not None:
        parameters |= id_parameters(after, name="after")
    return urlencode(parameters)


def _search(namespace: Namespace, context: Context) -> Context:
    form: SearchForm = context["search_form"]
    if not form.is_valid():
        return {}
    try:
        return _found(namespace, form, context["picture"])
    except (InvalidInput, NotFound) as refusal:
        form.refuse(refusal)
        return {}


def _found(namespace: Namespace, form: SearchForm, picture: PictureSize | None) -> Context:
    wanted = form.cleaned_data
    key, values, target = wanted["key"], wanted["vector"], None
    if key is not None:
        record = query_processor().get(key, namespace=namespace.name, options=_OPTIONS).value
        values, target = record.values, shown_row(record, picture=picture)
    assert values is not None
    metric = wanted["metric"] or namespace.metric
    began = time.perf_counter()
    # One row more, since the row itself is not an answer to "more like this".
    top_k = wanted["top_k"] + (key is not None)
    answer = query_processor().find_similar(
        SearchRequest(query=values, top_k=top_k, metric=metric, filter=wanted["condition"]),
        namespace=namespace.name,
        options=_OPTIONS,
    )
    took_ms = (time.perf_counter() - began) * 1000
    hits = [hit for hit in answer.value if hit.key != key][: wanted["top_k"]]
    return {
        "rows": [shown_row(hit, picture=picture) for hit in hits],
        "target": target,
        "target_picture": "" if picture is None else picture_uri(values, picture),
        "account": _account(answer, metric, took_ms),
        "failed": answer.failed,
    }


def _account(answer: Answer[Any], metric: str, took_ms: float) -> str:
    order = "lower" if lower_is_better(metric) else "higher"  # type: ignore[arg-type]
    scored = sum(shard.candidates for shard in answer.shards)
    candidates = f"{scored:,} candidate{'' if scored == 1 else 's'} scored exactly"
    if any(shard.strategy != "exact" for shard in answer.shards):
        candidates += ", found by index"
    return f"{Namespace.Metric(metric).label}, {order} is better; {candidates}; {took_ms:.1f} ms"
