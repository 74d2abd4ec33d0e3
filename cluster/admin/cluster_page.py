"""The cluster page: the topology as it is now, as a picture and in words, renewed while it is looked at."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.safestring import SafeString

from cluster.admin.cluster_truth import cluster_now
from cluster.admin.drawing import drawing_of
from cluster.admin.live import live_answer, place
from cluster.admin.operated import RecordAdmin
from cluster.models import Topology

_TONES = ("good", "busy", "warn", "bad", "quiet")
_PLACE = "cluster"


def picture_part() -> SafeString:
    """Return the picture with its table, as it is now."""
    now = cluster_now()
    drawing = drawing_of(now.node, now.shards, now.arrows)
    return render_to_string("admin/cluster/topology/picture.html", {"now": now, "drawing": drawing, "tones": _TONES})


@admin.register(Topology)
class TopologyAdmin(RecordAdmin):
    """In place of a list of the one row there is: the page that draws what it stands for."""

    fields = (
        "cluster",
        "epoch",
        "is_owner",
        "replication_enabled",
        "sharding_enabled",
        "strategy",
        "created_at",
    )
    readonly_fields = fields

    class Media:
        css = {"all": ("cluster/admin.css", "cluster/cluster.css")}
        js = ("cluster/live.js",)

    def get_urls(self) -> list[URLPattern]:
        """Add the picture that is fetched."""
        live = self.admin_site.admin_view(self.live_view)
        return [path("live/", live, name="cluster_topology_live"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the page."""
        self._check(request)
        context = {
            **self.admin_site.each_context(request),
            "title": "Cluster",
            "subtitle": None,
            "opts": self.opts,
            "media": self.media,
            "topology": Topology.objects.first(),
            "picture": place(_PLACE, picture_part()),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/cluster/topology/cluster.html", context)

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """Return the picture as it is now."""
        self._check(request)
        return live_answer({_PLACE: picture_part()})

    def _check(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied
