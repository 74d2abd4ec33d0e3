"""The placement between nodes: the owner of a registry tells this node what it keeps."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import NodeRouteView, sender
from cluster.selectors import node_status
from cluster.services.taking import placement_take


class PlacementView(NodeRouteView):
    """A placement document, see `cluster.replication.placements`."""

    parameters: ClassVar = {"PUT": ()}

    def put(self, request: Request) -> Response:
        """Take it, and return the status of this node as it is then."""
        body: Any = request.data
        placement_take(body, sender=sender(request))
        return Response(node_status())
