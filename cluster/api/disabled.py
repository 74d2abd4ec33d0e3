"""What the endpoints of replication and sharding answer on a node where these are not enabled.

Reads answer 200 with a message, changes 400. Nothing is asked of the body: there is nothing it could be about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter
from mlvdb_site.http.parsers import FormParser, JSONParser
from mlvdb_site.http.views import NodeView


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a node may have enabled."""

    name: str
    message: str

    @property
    def code(self) -> str:
        """The error code of a refused change."""
        return f"{self.name}_not_enabled"


REPLICATION = Feature("replication", "Replication is not enabled")
SHARDING = Feature("sharding", "Sharding is not enabled")


class DisabledView(NodeView):
    """An endpoint of a feature that is not enabled on this node."""

    parser_classes = [JSONParser, FormParser]
    feature: ClassVar[Feature]
    title: ClassVar[str] = ""
    examples: ClassVar[Mapping[str, Any]] = {}

    def read(self, request: Request, **names: str) -> Response:
        """Say that the feature is not enabled."""
        return Response({"message": self.feature.message})

    def refuse(self, request: Request, **names: str) -> Response:
        """Refuse the change."""
        raise RequestError(self.feature.message, code=self.feature.code)

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return self.title

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body of the form the endpoint takes once the feature is enabled."""
        return self.examples.get(method)


def disabled_view(
    feature: Feature,
    title: str,
    description: str,
    methods: Mapping[str, Sequence[QueryParameter]],
    *,
    examples: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Return the view of one endpoint, with exactly `methods` and their query parameters."""
    handlers = {method.lower(): DisabledView.read if method == "GET" else DisabledView.refuse for method in methods}
    name = f"{''.join(word.capitalize() for word in title.split())}View"
    members = {
        **handlers,
        "__doc__": description,
        "__module__": __name__,
        "feature": feature,
        "title": title,
        "parameters": dict(methods),
        "examples": dict(examples or {}),
    }
    view: type[DisabledView] = type(name, (DisabledView,), members)
    return view.as_view()
