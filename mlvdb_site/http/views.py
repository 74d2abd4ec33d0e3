"""The base of the API's views: Django REST framework with only the steps a node needs in each request.

Who may ask is settled by `mlvdb_site.http.access` before a view runs, so there is no permission loop, no throttle and
no versioning here, and the user is looked up only when a page shows it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple

from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mlvdb_site.http.parameters import QueryParameter, check_encoding, check_query
from mlvdb_site.http.parsers import read_body

MET: Final = "mlvdb.met"
"""Key of the WSGI environment: the exception that the direct way has met while it answered."""


class NodeRequest(Request):
    """A request whose body is bounded, and read also when it comes in chunks without a length."""

    sent_body = b""
    """The body as it was sent, once something has asked for the data."""

    def _load_stream(self) -> None:
        self.sent_body = body = read_body(self._request)
        self._stream: Any = io.BytesIO(body) if body else None


class NodeView(APIView):
    """A view that checks its query parameters and renders as JSON, msgpack or a page."""

    parameters: ClassVar[Mapping[str, Sequence[QueryParameter]]] = {}
    """The query parameters of each method."""
    format_kwarg = None

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> NodeRequest:
        """Wrap Django's request."""
        return NodeRequest(
            request,
            parsers=self.get_parsers(),
            authenticators=self.get_authenticators(),
            negotiator=self.get_content_negotiator(),
            parser_context={"view": self, "args": self.args, "kwargs": self.kwargs},
        )

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Settle the form of the answer, then check the query; what the direct way has met is met here again."""
        request.accepted_renderer, request.accepted_media_type = self.perform_content_negotiation(request)
        http = request._request
        query = http.META.get("QUERY_STRING")
        if query:
            if "%" in query:
                check_encoding(query)
            method = "GET" if request.method == "HEAD" else request.method
            allowed = self.parameters.get(method or "")
            if allowed is not None:
                check_query(http.GET, allowed)
        met = http.META.pop(MET, None)
        if met is not None:
            try:
                raise met
            finally:
                # It holds this frame, which must not hold it as well: with it the body would stay.
                del met

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare the answer, and see to it that request and answer are freed as soon as it is rendered."""
        response = super().finalize_response(request, response, *args, **kwargs)
        if isinstance(response, Response):
            response.add_post_render_callback(_let_go)
        return response

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Return the headers of every answer: the same for all requests of a view."""
        view: Any = type(self)
        return dict(default_headers(view))

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse the method; a browser that opens an endpoint without GET is shown its page instead."""
        if request.method in ("GET", "HEAD") and is_page(request):
            return self.page()
        return super().http_method_not_allowed(request, *args, **kwargs)

    def page(self) -> Response:
        """Answer a browser with the endpoint itself."""
        methods = [method for method in self.allowed_methods if method != "OPTIONS"]
        return Response({"message": f"This endpoint answers {' and '.join(methods)}: send the example below."})

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works for a method, shown in the browsable API; None for a method without a body."""
        return None


class Answered(NamedTuple):
    """What a view answers, before it has a form; the status is 200."""

    data: Any
    headers: Mapping[str, str]


class DirectView(NodeView):
    """An endpoint whose POST reads, and is asked so often that `mlvdb_site.http.direct` answers it too."""

    @classmethod
    def answer(cls, request: Request) -> Answered:
        """Return the answer to a request that has a body and a checked query, and nothing else for sure."""
        raise NotImplementedError

    def post(self, request: Request) -> Response:
        """Answer."""
        answered = self.answer(request)
        return Response(answered.data, headers=dict(answered.headers))


def _let_go(response: Any) -> None:
    # Django REST framework ties view, request and response into cycles. A batch would keep its body and its rows, tens
    # of megabytes, until the garbage collector comes by.
    context = response.renderer_context
    response.renderer_context = {}
    request, view = context.get("request"), context.get("view")
    if request is not None:
        request.parser_context = {}
    if view is not None:
        view.request = view.response = None


@cache
def default_headers(view: Any) -> Mapping[str, str]:
    """Return the headers of every answer of a view."""
    methods = [name.upper() for name in view.http_method_names if hasattr(view, name)]
    if "GET" in methods:
        methods.append("HEAD")
    return {"Allow": ", ".join(methods), "Vary": "Accept"}


def is_page(request: Request) -> bool:
    """Whether the answer is a page for a browser."""
    return getattr(getattr(request, "accepted_renderer", None), "format", "") == "api"
