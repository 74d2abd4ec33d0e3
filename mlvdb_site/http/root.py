"""The root of the API: where everything is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from django.urls import NoReverseMatch, reverse
from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.views import NodeView

_ENDPOINTS: Final = (
    ("vectors", "vectors"),
    ("upsert", "vectors-batch"),
    ("fetch", "vectors-fetch"),
    ("delete", "vectors-delete"),
    ("search", "search"),
    ("search_batch", "search-batch"),
    ("count", "count"),
    ("namespaces", "namespaces"),
    ("vectors_of_a_namespace", "namespace-vectors"),
    ("storage", "storage-info"),
    ("replication", "replication-info"),
    ("sharding", "sharding-info"),
    ("topology", "cluster-topology"),
    ("health", "health"),
)
_PAGES: Final = (("admin", "admin:index"), ("docs", "docs"), ("redoc", "redoc"), ("schema", "schema"))


class ApiRootView(NodeView):
    """A vector database that is a Django project: the endpoints of this node.

    Open one to see its parameters and a body that works for each of its methods.
    """

    parameters = {"GET": ()}

    def get(self, request: Request) -> Response:
        """Return the endpoints, and the pages beside them."""
        return Response(
            {
                "endpoints": _urls(request, _ENDPOINTS),
                "pages": _urls(request, _PAGES),
            }
        )

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "MLVectorDB"


def _urls(request: Request, names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the absolute URLs of the named routes that this node has."""
    urls = {}
    for label, name in names:
        try:
            urls[label] = request._request.build_absolute_uri(reverse(name))
        except NoReverseMatch:
            continue
    return urls
