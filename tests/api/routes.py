"""Every route of the API, read from the resolver, with a path that leads to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.urls import URLPattern, URLResolver, get_resolver

NOT_API = ("admin", "static")
NODES = "/cluster/node/"


class Route(NamedTuple):
    """A path that leads to a view, and the view's class (None for a function)."""

    path: str
    view: Any

    @property
    def methods(self) -> list[str]:
        """The methods that the view answers."""
        if self.view is None:
            return ["GET", "OPTIONS"]
        return [name.upper() for name in self.view.http_method_names if hasattr(self.view, name)]


def api_routes() -> list[Route]:
    """Return the routes for clients: admin, static files and the routes between nodes left out."""
    routes = [route for route in _routes() if not route.path.startswith(NODES)]
    assert len(routes) > 40
    return routes


def node_routes() -> list[Route]:
    """Return the routes that nodes use among themselves."""
    routes = [route for route in _routes() if route.path.startswith(NODES)]
    assert routes
    return routes


def _routes() -> Iterator[Route]:
    for path, pattern in _walk(get_resolver().url_patterns, "/"):
        if not path.lstrip("/").startswith(NOT_API):
            yield Route(path, getattr(pattern.callback, "cls", None))


def _walk(patterns: list[Any], prefix: str) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        path = prefix + re.sub(r"<\w+:(\w+)>", r"\1", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            if not path.lstrip("/").startswith(NOT_API):
                yield from _walk(pattern.url_patterns, path)
        else:
            yield path, pattern
