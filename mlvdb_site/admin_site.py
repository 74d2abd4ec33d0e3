"""The admin site of a node: Django's, with the node's name, links to API and docs, and warnings in a banner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.admin import AdminSite
from django.db import DatabaseError
from django.http import HttpRequest
from django.utils.module_loading import import_string

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
        """Return the warnings of the banner: of background processes, and of the apps."""
        try:
            return [*process_warnings(), *(warning for part in _parts_of_apps() for warning in part())]
        except DatabaseError as error:
            return [f"The state of the node cannot be read: {error}"]

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Load the Celery application before the first page: the periodic tasks' form lists its tasks.

        Not earlier, since workers that only serve the API do without it.
        """

        def with_celery(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            import mlvdb_site.celery  # noqa: F401

            return view(request, *args, **kwargs)

        with_celery.__name__ = getattr(view, "__name__", "view")
        return super().admin_view(with_celery, cacheable)


def _parts_of_apps() -> Iterator[Callable[[], Sequence[str]]]:
    """Yield the functions that apps name in their AppConfig as `admin_warnings` (dotted paths)."""
    for config in apps.get_app_configs():
        for path in getattr(config, "admin_warnings", ()):
            yield import_string(path)
