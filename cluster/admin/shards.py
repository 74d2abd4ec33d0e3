"""Shards: what each has and how it is, live; adding, weighing, checking, draining, rebalancing, redistributing."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from cluster.admin.operated import actor_of
from cluster.admin.shard_actions import ShardActions
from cluster.admin.shard_forms import ShardChangeForm, ShardForm
from cluster.admin.shard_pages import ShardPages
from cluster.admin.shard_panels import node_part
from cluster.admin.shard_truth import is_coordinator
from cluster.models import Shard
from cluster.services import sharding
from cluster.states import ShardState

_FACTS = ("label", "uid", "url", "node", "version", "acknowledged_epoch", "created_at")


@admin.register(Shard)
class ShardAdmin(ShardActions, ShardPages):
    """Changes go through the services that the API calls: the same rules, the same refusals."""

    list_display = ("label", "health_now", "load_now")
    search_fields = ("label", "url")
    change_list_template = "admin/cluster/shard/change_list.html"
    change_form_template = "admin/cluster/shard/change_form.html"

    facts = _FACTS
    add_form = ShardForm
    change_form = ShardChangeForm
    known_words = "is there with that URL already"

    # What is shown.

    @admin.display(description="state and health", ordering="health")
    def health_now(self, shard: Shard) -> SafeString:
        """Return state, health, URL and last error, in a place that is renewed."""
        return self.in_list("health", shard)

    @admin.display(description="slots, rows, bytes", ordering="rows")
    def load_now(self, shard: Shard) -> SafeString:
        """Return slots, rows, bytes and its shares of them, in a place that is renewed."""
        return self.in_list("load", shard)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Shard]:
        """Return those that are shards still: what was removed is in the history."""
        return super().get_queryset(request).exclude(state=ShardState.REMOVED)

    def get_fieldsets(self, request: HttpRequest, obj: Shard | None = None) -> Any:
        """Ask a new shard for id, URL, weight and failover; of one that is there only the last two may be changed."""
        if obj is None:
            return ((None, {"fields": ("label", "url", "weight", "auto_failover", "rebalance")}),)
        return ((None, {"fields": ("weight", "auto_failover")}), ("Registered", {"fields": _FACTS}))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, below what this node divides; nothing is added where sharding is not enabled."""
        context: dict[str, Any] = {"title": "Shards", "node_panel": node_part(), **(extra_context or {})}
        context["may_change"] = self.has_change_permission(request)
        if not is_coordinator():
            context["has_add_permission"] = False
        return super().changelist_view(request, context)

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
        self.take_over(request, obj, made, is_new=is_new)
        self.tell_of_move(request, move)
