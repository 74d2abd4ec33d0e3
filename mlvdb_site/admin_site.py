"""The admin site of a node: Django's, with the node's name, links to API and docs, and warnings in a banner."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.admin import AdminSite
from django.db import DatabaseError
from django.http import HttpRequest

from mlvdb_site.heartbeats import process_warnings


class NodeAdminSite(AdminSite):
    """Every page carries `node_warnings`, sentences about what a person should look after."""

    site_header = "MLVectorDB"
    site_title = "MLVectorDB"
    index_title = "This node"
    site_url = None

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """Add the node's id and warnings."""
        return {
            **super().each_context(request),
            "node_id": settings.MLVDB_NODE_ID,
            "node_warnings": self.warnings() if self.has_permission(request) else [],
        }

    def warnings(self) -> list[str]:
        """Return the warnings of the banner."""
        try:
            return process_warnings()
        except DatabaseError as error:
            return [f"The state of the background processes cannot be read: {error}"]

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Load the Celery application before the first page: the periodic tasks' form lists its tasks.

        Not earlier, since workers that only serve the API do without it.
        """

        def with_celery(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            import mlvdb_site.celery  # noqa: F401

            return view(request, *args, **kwargs)

        with_celery.__name__ = getattr(view, "__name__", "view")
        return super().admin_view(with_celery, cacheable)
