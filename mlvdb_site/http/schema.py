"""OpenAPI 3 at `/schema`, Swagger UI at `/docs`, ReDoc at `/redoc`, all from the node itself.

The generator is imported when somebody asks: a web worker that only answers data never loads it. That is also why what
documents a view stands beside the views (`vectors.api.documentation`) and not on them as decorators, which import it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from rest_framework.negotiation import BaseContentNegotiation

from mlvdb_site.http.errors import error_response

# Of what a page may load from elsewhere, nothing: the browser enforces that the documentation works offline.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; font-src 'self' data:; style-src 'self' 'unsafe-inline';"
    " script-src 'self' 'unsafe-inline'; worker-src 'self' blob:"
)


def schema(request: HttpRequest) -> HttpResponseBase:
    """Return the OpenAPI document: JSON, or YAML for `?format=yaml` and an Accept that asks for it."""
    return _refusal(request) or _views()["schema"](request)


def swagger_ui(request: HttpRequest) -> HttpResponseBase:
    """Return Swagger UI."""
    return _refusal(request) or _page(_views()["docs"](request))


def redoc(request: HttpRequest) -> HttpResponseBase:
    """Return ReDoc."""
    return _refusal(request) or _page(_views()["redoc"](request))


def _refusal(request: HttpRequest) -> HttpResponse | None:
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    return error_response(
        request, 405, f"{request.method} is not allowed here", field="method", headers={"Allow": "GET, HEAD, OPTIONS"}
    )


def _page(response: HttpResponseBase) -> HttpResponseBase:
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@cache
def _views() -> dict[str, Any]:
    from drf_spectacular import renderers, views
    from rest_framework.renderers import TemplateHTMLRenderer

    from mlvdb_site.http.authentication import SiteAuthentication

    class _JSON(renderers.OpenApiJsonRenderer2):
        format = "json"

    class _YAML(renderers.OpenApiYamlRenderer2):
        format = "yaml"

    class _SchemaView(views.SpectacularAPIView):
        renderer_classes = [_JSON, _YAML, renderers.OpenApiYamlRenderer, renderers.OpenApiJsonRenderer]
        authentication_classes = [SiteAuthentication]

    class _AnyAccept(BaseContentNegotiation):
        """A page has one form, whatever is accepted."""

        def select_renderer(
            self, request: Any, renderers: Iterable[Any], format_suffix: str | None = None
        ) -> tuple[Any, str]:
            renderer = next(iter(renderers))
            return renderer, renderer.media_type

        def select_parser(self, request: Any, parsers: Iterable[Any]) -> None:
            return None

    class _SwaggerView(views.SpectacularSwaggerView):
        renderer_classes = [TemplateHTMLRenderer]
        content_negotiation_class = _AnyAccept
        authentication_classes = [SiteAuthentication]

    class _RedocView(views.SpectacularRedocView):
        template_name = "rest_framework/mlvdb/redoc.html"
        renderer_classes = [TemplateHTMLRenderer]
        content_negotiation_class = _AnyAccept
        authentication_classes = [SiteAuthentication]

    return {
        "schema": _SchemaView.as_view(),
        "docs": _SwaggerView.as_view(url_name="schema"),
        "redoc": _RedocView.as_view(url_name="schema"),
    }


urlpatterns = [
    path("schema", schema, name="schema"),
    path("docs", swagger_ui, name="docs"),
    path("redoc", redoc, name="redoc"),
]
