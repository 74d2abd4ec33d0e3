"""The base of the endpoints of replication and sharding: they answer where it is enabled, and say so where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.disabled import REPLICATION, SHARDING, Feature
from cluster.topology import topology
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter, flag
from mlvdb_site.http.parsers import FormParser, JSONParser
from mlvdb_site.http.views import NodeView

_SAFE = ("GET", "HEAD")


class _NotEnabled(RequestError):
    """Raised before a method runs where the feature is not enabled; a read then answers its message."""


class EnabledView(NodeView):
    """An endpoint that answers where its feature is enabled: here, or by the owner of this node's registry.

    Its parameters may come in the query or in a JSON or form body; the query wins. `feature` is what a node says is not
    enabled where it is not.
    """

    parser_classes = [JSONParser, FormParser]
    feature: ClassVar[Feature] = REPLICATION
    title: ClassVar[str] = ""
    examples: ClassVar[Mapping[str, Any]] = {}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check the query, then whether the feature is enabled."""
        super().initial(request, *args, **kwargs)
        method = (request.method or "").lower()
        answered = method in self.http_method_names and hasattr(self, method)
        if answered and method != "options" and not self.is_enabled():
            self.check_query(request)
            raise _NotEnabled(self.feature.message, code=self.feature.code, detail=self.who_knows())

    def is_enabled(self) -> bool:
        """Whether this node has what the endpoint is about."""
        return is_enabled(self.feature)

    def check_query(self, request: Request) -> None:
        """Raise RequestError for a parameter of the wrong form, whether or not the feature is enabled."""

    def handle_exception(self, exception: Exception) -> Any:
        """Answer a read where the feature is not enabled with a message, any other error as an error."""
        if isinstance(exception, _NotEnabled) and self.request.method in _SAFE:
            return Response(self.not_enabled())
        return super().handle_exception(exception)

    def not_enabled(self) -> dict[str, Any]:
        """Return what a read answers where the feature is not enabled."""
        return {"message": self.feature.message, **self.who_knows()}

    def who_knows(self) -> dict[str, Any]:
        """Return where to ask instead, where shards are another node's: `coordinator_url`; nothing elsewhere."""
        view = topology()
        if self.feature is REPLICATION:
            return {}
        if view.assignment is not None:
            return {"coordinator_url": view.assignment.coordinator_url}
        if view.placed_sharding is not None and view.placement is not None:
            return {"coordinator_url": view.placement.owner_url}
        return {}

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return self.title

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body of the form the endpoint takes."""
        return self.examples.get(method)

    def given(self, request: Request, *, required: Sequence[str] = ()) -> dict[str, str]:
        """Return the parameters of a change by name, from query and body; those not given are absent.

        Raise RequestError for an unknown field of the body, a value that is no text, number or flag, and a parameter
        of `required` that is missing.
        """
        declared: Mapping[str, QueryParameter] = {
            parameter.name: parameter for parameter in self.parameters.get(request.method or "", ())
        }
        body: Any = request.data
        for name in body:
            if name not in declared:
                known = ", ".join(sorted(declared)) or "none"
                raise RequestError(f"unknown field {name!r}; known are: {known}", code="unknown_field", field=name)
        given = {name: text for name in body if (text := _text(name, body[name])) is not None}
        given |= {name: request.query_params[name] for name in declared if name in request.query_params}
        for name in required:
            if not given.get(name):
                raise RequestError(f"{name} is required, in the query or in the body", code="missing_field", field=name)
        return given

    def given_flag(self, given: Mapping[str, str], name: str) -> bool:
        """Return a switch among the given parameters; off when it is not given."""
        return name in given and flag(given[name], field=name)


class PictureView(EnabledView):
    """An endpoint of any node that is in a cluster, for whichever reason."""

    feature = SHARDING

    def is_enabled(self) -> bool:
        """Whether this node has replicas or shards, or is one."""
        return is_enabled(REPLICATION) or is_enabled(SHARDING) or topology().assignment is not None


def is_enabled(feature: Feature) -> bool:
    """Whether this node has a feature."""
    view = topology()
    return view.sharding is not None if feature is SHARDING else view.replication_enabled


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # The shortest text that is read as the same number.
        return repr(value)
    raise RequestError(f"{name} must be a string", field=name)
