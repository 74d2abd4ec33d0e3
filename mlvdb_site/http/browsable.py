"""The API as pages: every endpoint with its parameters, and a form with a body that works for each of its methods.

Everything the pages need comes from the node itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import orjson
from rest_framework.renderers import BrowsableAPIRenderer
from rest_framework.request import Request

from mlvdb_site.http.parameters import QueryParameter
from mlvdb_site.http.renderers import RawJSON

SHOWN_NUMBERS: Final = 8
SHOWN_ENTRIES: Final = 50
SHOWN_BODY_BYTES: Final = 256 * 1024
_WRITING_METHODS = ("POST", "PUT", "PATCH", "DELETE")


class PageRenderer(BrowsableAPIRenderer):
    """An endpoint as a page.

    Long lists of numbers and of rows are shortened on the page, with a note; `?format=json` has them whole.
    """

    template = "rest_framework/mlvdb/endpoint.html"

    def get_context(
        self, data: Any, accepted_media_type: str | None, renderer_context: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the template shows."""
        context = super().get_context(data, accepted_media_type, renderer_context)
        view, request = renderer_context["view"], renderer_context["request"]
        text, shortened = readable(data)
        methods = [method for method in view.allowed_methods if method != "OPTIONS"]
        context.update(
            content=text,
            shortened=shortened,
            methods=methods,
            query_fields=_query_fields(view, request),
            body_forms=_body_forms(view, request, methods),
        )
        return context

    def get_content(self, renderer: Any, data: Any, accepted_media_type: str | None, renderer_context: Any) -> str:
        """Return nothing: `get_context` renders the data itself."""
        return ""

    def get_raw_data_form(self, data: Any, view: Any, method: str, request: Request) -> None:
        """Return nothing: the template has forms of its own."""

    def get_rendered_html_form(self, data: Any, view: Any, method: str, request: Request) -> None:
        """Return nothing: the template has forms of its own."""


def readable(data: Any, *, shorten: bool = True) -> tuple[str, bool]:
    """Return data as indented JSON with lists of plain values on one line, and whether anything was left out."""
    writer = _Writer(shorten=shorten)
    return writer.write(data, ""), writer.shortened


class _Writer:
    """Writes indented JSON for people; what it leaves out it says in words."""

    def __init__(self, *, shorten: bool) -> None:
        self.shorten = shorten
        self.shortened = False

    def write(self, value: Any, indent: str) -> str:
        if isinstance(value, RawJSON):
            value = value.load()
        if isinstance(value, Mapping):
            return self._object(value, indent)
        if isinstance(value, np.ndarray):
            return self._plain([_scalar(number) for number in value[: self._limit(len(value))]], len(value))
        if isinstance(value, (list, tuple)):
            if not any(isinstance(entry, (Mapping, list, tuple, RawJSON, np.ndarray)) for entry in value):
                numbers = all(isinstance(entry, (int, float)) for entry in value)
                shown = value[: self._limit(len(value)) if numbers else self._entries(len(value))]
                return self._plain([_scalar(entry) for entry in shown], len(value))
            return self._list(value, indent)
        return _scalar(value)

    def _object(self, value: Mapping[str, Any], indent: str) -> str:
        if not value:
            return "{}"
        inner = indent + "    "
        lines = [f"{inner}{_scalar(str(name))}: {self.write(entry, inner)}" for name, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"

    def _list(self, value: list[Any] | tuple[Any, ...], indent: str) -> str:
        inner = indent + "    "
        shown = self._entries(len(value))
        lines = [inner + self.write(entry, inner) for entry in value[:shown]]
        if shown < len(value):
            self.shortened = True
            lines.append(f"{inner}… {len(value) - shown} more")
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"

    def _plain(self, shown: list[str], count: int) -> str:
        if len(shown) < count:
            self.shortened = True
            shown.append(f"… {count - len(shown)} more")
        return f"[{', '.join(shown)}]"

    def _limit(self, count: int) -> int:
        return SHOWN_NUMBERS if self.shorten and count > SHOWN_NUMBERS + 4 else count

    def _entries(self, count: int) -> int:
        return SHOWN_ENTRIES if self.shorten and count > SHOWN_ENTRIES else count


def _scalar(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _query_fields(view: Any, request: Request) -> list[dict[str, Any]]:
    """Return the query parameters of all methods of an endpoint, with the values of the page's own query."""
    declared: dict[str, QueryParameter] = {}
    methods: dict[str, list[str]] = {}
    for method, parameters in getattr(view, "parameters", {}).items():
        for parameter in parameters:
            declared.setdefault(parameter.name, parameter)
            methods.setdefault(parameter.name, []).append(method)
    query = request._request.GET
    return [
        {"parameter": parameter, "value": query.get(name, ""), "methods": methods[name]}
        for name, parameter in declared.items()
    ]


def _body_forms(view: Any, request: Request, methods: Iterable[str]) -> list[dict[str, Any]]:
    """Return a form for each writing method: with what was just sent, so that it can be changed, or an example."""
    forms = []
    for method in methods:
        if method in _WRITING_METHODS:
            text = _sent_text(request) if method == request.method else ""
            if not text:
                example = view.example_body(method, request) if hasattr(view, "example_body") else None
                text = "" if example is None else readable(example, shorten=False)[0]
            forms.append({"method": method, "body": text, "rows": min(24, max(3, text.count("\n") + 2))})
    return forms


def _sent_text(request: Request) -> str:
    body: bytes = getattr(request, "sent_body", b"")
    if len(body) > SHOWN_BODY_BYTES or "json" not in (request.content_type or ""):
        return ""
    return body.decode(errors="replace")
