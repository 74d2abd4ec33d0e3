"""Shards: what each has and how it is, live; adding, weighing, checking, draining, rebalancing, redistributing.

As with replicas, the views run without Django's transaction: a change of the registry is a durable one of its own.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.operated import actor_of
from cluster.admin.replica_panels import place
from cluster.admin.shard_actions import ShardActions
from cluster.admin.shard_forms import ShardChangeForm, ShardForm
from cluster.admin.shard_pages import ShardPages
from cluster.admin.shard_panels import cell_part, health_part, node_part, shard_part
from cluster.admin.shard_truth import ShardNow, is_coordinator, shards_now
from cluster.models import Shard
from cluster.services import sharding
from cluster.states import ShardState
from vectors.errors import MLVectorDBError

_REFUSAL = "_shard_refusal"
_KNOWN = "_was_known"
_FACTS = ("label", "uid", "url", "node", "version", "acknowledged_epoch", "created_at")


class ShardList(ChangeList):
    """A page of shards, each with what is known of it: a constant number of queries for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `now`."""
        super().get_results(request)
        rows: list[Shard] = list(self.result_list)
        for row, now in zip(rows, shards_now(rows), strict=True):
            row.now = now  # type: ignore[attr-defined]
        self.result_list = rows


@admin.register(Shard)
class ShardAdmin(ShardActions, ShardPages):
    """Changes go through the services that the API calls: the same rules, the same refusals."""

    list_display = ("label", "health_now", "load_now")
    search_fields = ("label", "url")
    list_per_page = 50
    change_list_template = "admin/cluster/shard/change_list.html"
    change_form_template = "admin/cluster/shard/change_form.html"

    class Media:
        css = {"all": ("cluster/admin.css",)}
        js = ("cluster/live.js",)

    # What is shown.

    @admin.display(description="state and health", ordering="health")
    def health_now(self, shard: Shard) -> SafeString:
        """Return state, health, URL and last error, in a place that is renewed."""
        return place(f"health-{shard.pk}", health_part(_now(shard)))

    @admin.display(description="slots, rows, bytes", ordering="rows")
    def load_now(self, shard: Shard) -> SafeString:
        """Return slots, rows, bytes and its shares of them, in a place that is renewed."""
        return place(f"load-{shard.pk}", cell_part(_now(shard)))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Shard]:
        """Return those that are shards still: what was removed is in the history."""
        return super().get_queryset(request).exclude(state=ShardState.REMOVED)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that knows what is."""
        return ShardList

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out Django's deletion: draining says what it means."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def get_fieldsets(self, request: HttpRequest, obj: Shard | None = None) -> Any:
        """Ask a new shard for id, URL, weight and failover; of one that is there only the last two may be changed."""
        if obj is None:
            return ((None, {"fields": ("label", "url", "weight", "auto_failover", "rebalance")}),)
        return ((None, {"fields": ("weight", "auto_failover")}), ("Registered", {"fields": _FACTS}))

    def get_readonly_fields(self, request: HttpRequest, obj: Shard | None = None) -> tuple[str, ...]:
        """Id and URL are fixed: remove the shard, and add another."""
        return () if obj is None else _FACTS

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, with the refusal of the service when there was one to this very request."""
        kwargs["form"] = ShardForm if obj is None else ShardChangeForm
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.refusal = getattr(request, _REFUSAL, None)
        return form

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, below what this node divides; nothing is added where sharding is not enabled."""
        context: dict[str, Any] = {"title": "Shards", "node_panel": node_part(), **(extra_context or {})}
        context["may_change"] = self.has_change_permission(request)
        if not is_coordinator():
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
        """Add, or change the weight; a refusal of the service comes back as an error of the form."""
        context = {**(extra_context or {}), "show_save_and_add_another": False, "show_save_and_continue": False}
        try:
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]
        except MLVectorDBError as refusal:
            setattr(request, _REFUSAL, refusal)
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Show what is known above the form of a shard that is there."""
        shard = context.get("original")
        if shard is not None:
            context["panel"] = place(f"shard-{shard.pk}", shard_part(shard))
        return super().render_change_form(request, context, *args, **kwargs)

    # Adding, weighing.

    def save_model(self, request: HttpRequest, obj: Shard, form: Any, change: bool) -> None:
        """Add through the service and take over the row it wrote; or change the weight."""
        actor = actor_of(request)
        if change:
            changed = {name: getattr(obj, name) for name in ("weight", "auto_failover") if name in form.changed_data}
            if changed:
                sharding.shard_change(label=obj.label, **changed, actor=actor)
            return
        made, is_new, move = sharding.shard_add(
            label=obj.label,
            url=obj.url,
            weight=obj.weight,
            rebalance=form.cleaned_data["rebalance"],
            auto_failover=obj.auto_failover,
            actor=actor,
        )
        obj.__dict__.update(made.__dict__)
        setattr(obj, _KNOWN, not is_new)
        if is_new and made.last_error:
            messages.warning(
                request, f"Its node does not answer yet, and is asked again every few seconds: {made.last_error}"
            )
        self.tell_of_move(request, move)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write nothing when the shard was there already."""
        return None if getattr(obj, _KNOWN, False) else super().log_addition(request, obj, message)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        """Go to the list; say so when nothing was added."""
        if getattr(obj, _KNOWN, False):
            messages.info(request, f"Shard {obj} is there with that URL already: nothing has changed.")
            return self.to_list()
        return super().response_add(request, obj, post_url_continue)


def _now(shard: Shard) -> ShardNow:
    return shard.now  # type: ignore[attr-defined]
