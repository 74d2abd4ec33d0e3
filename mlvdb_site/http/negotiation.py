"""Which form a request is read in and answered in.

JSON unless something else is asked for; the browsable API only where `text/html` is named, as browsers do. The query
parameter `format` (json, msgpack, api) overrides the Accept header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from rest_framework.negotiation import BaseContentNegotiation

from mlvdb_site.http.errors import RequestError

_ALIASES = {
    "application/x-msgpack": "application/msgpack",
    "application/vnd.msgpack": "application/msgpack",
    "text/json": "application/json",
}


class NodeNegotiation(BaseContentNegotiation):
    """Chooses parsers by content type and renderers by `format` or Accept."""

    def select_parser(self, request: Any, parsers: Iterable[Any]) -> Any:
        """Return the parser of the body's content type (the first one where none is named), or None."""
        media_type = canonical(request.content_type)
        if not media_type:
            return next(iter(parsers))
        for parser in parsers:
            if parser.media_type == media_type:
                return parser
        return None

    def select_renderer(
        self, request: Any, renderers: Iterable[Any], format_suffix: str | None = None
    ) -> tuple[Any, str]:
        """Return (renderer, media type); raise RequestError: 406 for an Accept, 400 for a format nobody renders."""
        renderers = list(renderers)
        http = request._request
        if "format=" in http.META.get("QUERY_STRING", "") and "format" in http.GET:
            return _by_format(http.GET["format"], renderers)
        accept = http.META.get("HTTP_ACCEPT", "*/*")
        choice = 0
        if accept not in ("*/*", "application/json", ""):
            choice = _best(accept, tuple(renderer.media_type for renderer in renderers))
        if choice < 0:
            raise RequestError(
                f"nothing here is rendered as {accept!r}",
                code="not_acceptable",
                status=406,
                field="Accept",
                detail={"available": [renderer.media_type for renderer in renderers]},
            )
        return renderers[choice], renderers[choice].media_type


def _by_format(name: str, renderers: Sequence[Any]) -> tuple[Any, str]:
    for renderer in renderers:
        if renderer.format == name:
            return renderer, renderer.media_type
    known = ", ".join(renderer.format for renderer in renderers)
    raise RequestError(f"format must be one of {known}", field="format")


@lru_cache(maxsize=256)
def _best(accept: str, media_types: tuple[str, ...]) -> int:
    """Return the index of the best of `media_types` for an Accept header (RFC 9110 §12.5.1), -1 when none will do.

    A range with wildcards never means HTML unless it says `text/*`.
    """
    best: tuple[float, int, int] = (0.0, 0, 0)
    choice = -1
    for position, part in enumerate(accept.split(",")):
        media_range = canonical(part)
        quality = _quality(part)
        specificity = 2 if "*" not in media_range else int(not media_range.startswith("*"))
        rank = (quality, specificity, -position)
        if quality <= 0 or (choice >= 0 and rank <= best):
            continue
        for index, media_type in enumerate(media_types):
            if _matches(media_range, media_type):
                best, choice = rank, index
                break
    return choice


def _matches(media_range: str, media_type: str) -> bool:
    if media_range == "*/*":
        return media_type != "text/html"
    if media_range.endswith("/*"):
        return media_type.startswith(media_range[:-1])
    return media_range == media_type


@lru_cache(maxsize=256)
def canonical(media_type: str | None) -> str:
    """Return a media type without parameters, lower-case, by the name that this node has for it."""
    bare = (media_type or "").partition(";")[0].strip().lower()
    return _ALIASES.get(bare, bare)


def _quality(part: str) -> float:
    for parameter in part.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0.0 <= quality <= 1.0 else 0.0
    return 1.0
