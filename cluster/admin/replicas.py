"""Replicas: the truth about them, live; adding, pausing, checking, syncing, verifying, promoting, removing.

Django's admin wraps a change in one transaction; a change of the registry is a durable transaction of its own, with
calls to other nodes after it. So the views below run without one, and the history row follows what was done.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.forms import PauseForm, ReplicaForm
from cluster.admin.operated import actor_of, refused
from cluster.admin.replica_actions import ReplicaActions
from cluster.admin.replica_pages import ReplicaPages
from cluster.admin.replica_panels import copies_part, health_part, node_part, place, replica_part
from cluster.admin.truth import ReplicaTruth, node_truth, replicas_truth
from cluster.models import Replica
from cluster.services import registry
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

_REFUSAL = "_replica_refusal"
_KNOWN = "_was_known"
_FACTS = ("name", "url", "keeps", "node", "version", "created_at")


class ReplicaList(ChangeList):
    """A page of replicas, each with the truth about it: a constant number of queries for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `truth`."""
        super().get_results(request)
        rows: list[Replica] = list(self.result_list)
        for row, truth in zip(rows, replicas_truth(rows), strict=True):
            row.truth = truth  # type: ignore[attr-defined]
        self.result_list = rows


@admin.register(Replica)
class ReplicaAdmin(ReplicaActions, ReplicaPages):
    """Changes go through the services that the API calls: the same rules, the same refusals."""

    list_display = ("name", "health_now", "copies_now")
    search_fields = ("name", "url")
    list_per_page = 50
    change_list_template = "admin/cluster/replica/change_list.html"
    change_form_template = "admin/cluster/replica/change_form.html"

    class Media:
        css = {"all": ("cluster/admin.css",)}
        js = ("cluster/live.js",)

    # What is shown.

    @admin.display(description="health", ordering="health")
    def health_now(self, replica: Replica) -> SafeString:
        """Return health, URL and last error, in a place that is renewed."""
        return place(f"health-{replica.pk}", health_part(_truth(replica)))

    @admin.display(description="copies")
    def copies_now(self, replica: Replica) -> SafeString:
        """Return the state of every copy, in a place that is renewed."""
        return place(f"copies-{replica.pk}", copies_part(_truth(replica)))

    @admin.display(description="keeps")
    def keeps(self, replica: Replica) -> str:
        """Return which shards it keeps."""
        if not replica.shard:
            return "all shards"
        label = ShardHead.objects.filter(uid=replica.shard).values_list("label", flat=True).first()
        return f"only {label or replica.shard}"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that knows the truth."""
        return ReplicaList

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out Django's deletion: `remove` says what it means."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def get_fieldsets(self, request: HttpRequest, obj: Replica | None = None) -> Any:
        """Ask a new replica for its name, URL and shard; of one that is there only pausing may be changed."""
        if obj is None:
            return ((None, {"fields": ("name", "url", "shard")}),)
        return ((None, {"fields": ("paused",)}), ("Registered", {"fields": _FACTS}))

    def get_readonly_fields(self, request: HttpRequest, obj: Replica | None = None) -> tuple[str, ...]:
        """Name and URL are fixed: remove the replica, and add another."""
        return () if obj is None else _FACTS

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, with the refusal of the service when there was one to this very request."""
        kwargs["form"] = ReplicaForm if obj is None else PauseForm
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.refusal = getattr(request, _REFUSAL, None)
        return form

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, below what this node is; nothing is added where replication is not enabled."""
        node = node_truth()
        context: dict[str, Any] = {"title": "Replicas", "node": node, "node_panel": node_part(node)}
        context |= extra_context or {}
        if not node.is_enabled:
            context["has_add_permission"] = False
        return super().changelist_view(request, context)

    @method_decorator(csrf_protect)
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Add, pause or resume; a refusal of the service comes back as an error of the form."""
        context = {**(extra_context or {}), "show_save_and_add_another": False, "show_save_and_continue": False}
        try:
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]
        except MLVectorDBError as refusal:
            if object_id is not None:
                refused(request, refusal)
                return HttpResponseRedirect(request.get_full_path())
            setattr(request, _REFUSAL, refusal)
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Show the truth above the form of a replica that is there."""
        replica = context.get("original")
        if replica is not None:
            context["panel"] = place(f"replica-{replica.pk}", replica_part(replica))
        return super().render_change_form(request, context, *args, **kwargs)

    # Adding, pausing, resuming.

    def save_model(self, request: HttpRequest, obj: Replica, form: Any, change: bool) -> None:
        """Add through the service and take over the row it wrote; or pause or resume."""
        actor = actor_of(request)
        if change:
            if "paused" in form.changed_data:
                (registry.replica_pause if obj.paused else registry.replica_resume)(name=obj.name, actor=actor)
            return
        made, is_new = registry.replica_add(name=obj.name, url=obj.url, shard=obj.shard, actor=actor)
        obj.__dict__.update(made.__dict__)
        setattr(obj, _KNOWN, not is_new)
        if is_new and made.last_error:
            messages.warning(
                request, f"Its node does not answer yet, and is asked again every few seconds: {made.last_error}"
            )

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write nothing when the replica was there already."""
        return None if getattr(obj, _KNOWN, False) else super().log_addition(request, obj, message)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        """Go to the list; say so when nothing was added."""
        if getattr(obj, _KNOWN, False):
            messages.info(request, f"Replica {obj} is registered with that URL already: nothing has changed.")
            return self.to_list()
        return super().response_add(request, obj, post_url_continue)


def _truth(replica: Replica) -> ReplicaTruth:
    return replica.truth  # type: ignore[attr-defined]
