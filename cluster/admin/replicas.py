"""Replicas: the truth about them, live; adding, pausing, checking, syncing, verifying, promoting, removing."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from cluster.admin.forms import PauseForm, ReplicaForm
from cluster.admin.operated import actor_of
from cluster.admin.replica_actions import ReplicaActions
from cluster.admin.replica_pages import ReplicaPages
from cluster.admin.replica_panels import node_part
from cluster.admin.truth import node_truth
from cluster.models import Replica
from cluster.services import registry
from vectors.models import ShardHead

_FACTS = ("name", "url", "keeps", "node", "version", "created_at")


@admin.register(Replica)
class ReplicaAdmin(ReplicaActions, ReplicaPages):
    """Changes go through the services that the API calls: the same rules, the same refusals."""

    list_display = ("name", "health_now", "copies_now")
    search_fields = ("name", "url")
    change_list_template = "admin/cluster/replica/change_list.html"
    change_form_template = "admin/cluster/replica/change_form.html"

    facts = _FACTS
    add_form = ReplicaForm
    change_form = PauseForm
    known_words = "is registered with that URL already"

    # What is shown.

    @admin.display(description="health", ordering="health")
    def health_now(self, replica: Replica) -> SafeString:
        """Return health, URL and last error, in a place that is renewed."""
        return self.in_list("health", replica)

    @admin.display(description="copies")
    def copies_now(self, replica: Replica) -> SafeString:
        """Return the state of every copy, in a place that is renewed."""
        return self.in_list("copies", replica)

    @admin.display(description="keeps")
    def keeps(self, replica: Replica) -> str:
        """Return which shards it keeps."""
        if not replica.shard:
            return "all shards"
        label = ShardHead.objects.filter(uid=replica.shard).values_list("label", flat=True).first()
        return f"only {label or replica.shard}"

    def get_fieldsets(self, request: HttpRequest, obj: Replica | None = None) -> Any:
        """Ask a new replica for its name, URL and shard; of one that is there only pausing may be changed."""
        if obj is None:
            return ((None, {"fields": ("name", "url", "shard")}),)
        return ((None, {"fields": ("paused",)}), ("Registered", {"fields": _FACTS}))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, below what this node is; nothing is added where replication is not enabled."""
        node = node_truth()
        context: dict[str, Any] = {"title": "Replicas", "node": node, "node_panel": node_part(node)}
        context |= extra_context or {}
        if not node.is_enabled:
            context["has_add_permission"] = False
        return super().changelist_view(request, context)

    # Adding, pausing, resuming.

    def save_model(self, request: HttpRequest, obj: Replica, form: Any, change: bool) -> None:
        """Add through the service and take over the row it wrote; or pause or resume."""
        actor = actor_of(request)
        if change:
            if "paused" in form.changed_data:
                (registry.replica_pause if obj.paused else registry.replica_resume)(name=obj.name, actor=actor)
            return
        made, is_new = registry.replica_add(name=obj.name, url=obj.url, shard=obj.shard, actor=actor)
        self.take_over(request, obj, made, is_new=is_new)
