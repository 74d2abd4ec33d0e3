"""The direct way: a program's search is answered without the machinery that pages and errors need.

Django's handler, its middlewares and the dispatch of Django REST framework take more CPU than a search by index. A
request to a `DirectView` of which nothing is unusual meets the same checks of access, query and body, the same view and
the same renderer; what is left out is what lies between them.

This way answers, and decides nothing else. Until the body is read, a request with anything unusual about it is left to
the whole way: a cookie, an Accept that names HTML, a refusal. From there on nothing is done twice: what is raised is
taken along, and the whole way meets it in the place of the view (`NodeView.initial`) and answers it as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, Final, NamedTuple, cast

from django.core.exceptions import SuspiciousOperation
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, QueryDict
from django.urls import URLResolver, get_resolver

from mlvdb_site.http.access import Access
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.metrics import BEGAN, RequestCounts
from mlvdb_site.http.negotiation import NodeNegotiation, canonical
from mlvdb_site.http.pages import PLAIN_HEADERS
from mlvdb_site.http.parameters import check_encoding, check_query
from mlvdb_site.http.parsers import JSONParser, MsgpackParser, read_body
from mlvdb_site.http.renderers import JSONRenderer, MsgpackRenderer
from mlvdb_site.http.request_id import HEADER, META, lines_wanted, under_request_id
from mlvdb_site.http.views import MET, DirectView, NodeRequest, default_headers
from mlvdb_site.markers import shared_look

Environ = dict[str, Any]

_METHOD = "POST"
_LONGEST_QUERY = 512
_KEPT_QUERIES = 512
_PARSERS: Final = {parser.media_type: parser() for parser in (JSONParser, MsgpackParser)}
_RENDERERS: Final = (JSONRenderer(), MsgpackRenderer())

_negotiation = NodeNegotiation()


class NodeApplication:
    """The WSGI application of a node: the direct way where it will do, the whole way for all else."""

    def __init__(self) -> None:
        self._whole = WSGIHandler()
        self._access = Access()
        self._counts = RequestCounts()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        route = self._routes.get(environ.get("PATH_INFO", ""))
        if route is not None and environ["REQUEST_METHOD"] == _METHOD:
            answer = self._direct(environ, route)
            if answer is not None:
                start_response("200 OK", answer.headers)
                return [answer.body]
        response = self._whole(environ, start_response)
        if not isinstance(response, HttpResponse):
            return cast(Iterable[bytes], response)
        # In one piece: the server sends a list at once, and passes anything else on piece by piece.
        response.close()
        return [response.content]

    def _direct(self, environ: Environ, route: _Route) -> _Rendered | None:
        """Return the answer to a request, None to leave it to the whole way."""
        began = time.perf_counter()
        http = _http_of(environ, route)
        if http is None:
            return None
        with under_request_id(environ) as request_id, shared_look():
            try:
                asked = _Asked(http)
                parser, renderer = _forms(asked)
                if parser is None or self._access.refusal(http) is not None:
                    return None
            except Exception:
                # Whatever it is, the whole way meets it too.
                return None
            try:
                asked.take(parser.loads(read_body(http)))
                data, headers = route.view.answer(asked)
                body = renderer.render(data)
            except Exception as error:
                environ[MET], environ[BEGAN], environ[META] = error, began, request_id
                return None
        self._counts.count(_METHOD, route.name, 200, time.perf_counter() - began)
        return _Rendered(
            body,
            [
                ("Content-Type", renderer.media_type),
                *headers.items(),
                *route.headers,
                ("Content-Length", str(len(body))),
                (HEADER, request_id),
            ],
        )

    @cached_property
    def _routes(self) -> Mapping[str, _Route]:
        return dict(_direct_routes(get_resolver().url_patterns, ""))


class _Rendered(NamedTuple):
    body: bytes
    headers: list[tuple[str, str]]


class _Route(NamedTuple):
    """An endpoint: its name in the metrics, what checks a query, and the headers that all of its answers have."""

    name: str
    view: type[DirectView]
    query: Callable[[str], QueryDict | None]
    headers: Sequence[tuple[str, str]]


class _Http(HttpRequest):
    """What of Django's request the checks and the view ask for. `GET` is shared by requests, and not to be changed."""

    def __init__(self, environ: Environ, query: QueryDict) -> None:
        self.META = environ
        self.GET = query  # type: ignore[assignment]
        self.COOKIES = {}
        self.method = _METHOD
        self.path = self.path_info = environ["PATH_INFO"]
        self._stream: Any = environ["wsgi.input"]
        self._read_started = False


class _Asked(NodeRequest):
    """What of Django REST framework's request they ask for."""

    def __init__(self, http: _Http) -> None:
        self._request = http

    def take(self, data: Any) -> None:
        """Take what the body says."""
        self._full_data = data


def _http_of(environ: Environ, route: _Route) -> _Http | None:
    """Return the request, None when anything about it is unusual."""
    if (
        environ.get("SCRIPT_NAME")
        or not environ.get("CONTENT_LENGTH")
        or environ.get("HTTP_COOKIE")
        or "text/html" in environ.get("HTTP_ACCEPT", "")
        # Whoever wants a line for each request gets it from the whole way.
        or lines_wanted()
    ):
        return None
    text = environ.get("QUERY_STRING", "")
    query = route.query(text) if len(text) <= _LONGEST_QUERY else None
    return None if query is None else _Http(environ, query)


def _checked_query(view: type[DirectView], text: str) -> QueryDict | None:
    """Return a query that the view takes, None for any other."""
    try:
        check_encoding(text)
        query = QueryDict(text.encode("latin-1"))
        check_query(query, view.parameters[_METHOD])
    except (RequestError, SuspiciousOperation, UnicodeEncodeError):
        return None
    return query


def _forms(asked: _Asked) -> tuple[Any, Any]:
    """Return parser and renderer; no parser for a body of another type. Raise RequestError for another form."""
    http = asked._request
    renderer, _media_type = _negotiation.select_renderer(asked, _RENDERERS)
    return _PARSERS.get(canonical(http.META.get("CONTENT_TYPE"))), renderer


def _direct_routes(patterns: Iterable[Any], prefix: str) -> Iterator[tuple[str, _Route]]:
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _direct_routes(pattern.url_patterns, path)
            continue
        view: Any = getattr(pattern.callback, "cls", None)
        if isinstance(view, type) and issubclass(view, DirectView) and "<" not in path:
            # The same few queries come over and over.
            query = lru_cache(maxsize=_KEPT_QUERIES)(partial(_checked_query, view))
            headers = [*default_headers(pattern.callback.cls).items(), *PLAIN_HEADERS.items()]
            yield f"/{path}", _Route(path, view, query, headers)
