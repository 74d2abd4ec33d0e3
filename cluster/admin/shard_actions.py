"""What may be done to shards from their list: check; the ways to drain, rebalance and redistribute."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from cluster.admin.operated import ClusterAdmin, refused
from cluster.models import Shard
from cluster.services import sharding
from vectors.errors import MLVectorDBError


class ShardActions(ClusterAdmin):
    """The actions; those that move rows lead to a page with the plan."""

    actions = ("check_health", "drain", "redistribute", "rebalance")

    @admin.action(description="Check health now", permissions=["view"])
    def check_health(self, request: HttpRequest, queryset: QuerySet[Shard]) -> None:
        """Probe; a probe is a sample for the failure detector too."""
        for shard in queryset:
            try:
                answered = sharding.shard_check(label=shard.label)
            except MLVectorDBError as refusal:
                refused(request, refusal, subject=f"Shard {shard}")
                continue
            if answered:
                messages.success(request, f"Shard {shard} has answered as it should.")
            else:
                shard.refresh_from_db()
                messages.error(request, f"Shard {shard} has not answered as it should: {shard.last_error}")

    @admin.action(description="Drain and remove …", permissions=["delete"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse | None:
        """Go to the page with the plan."""
        return self._to_page_of_one(request, queryset, "delete", "Choose one shard: each change has a plan of its own.")

    @admin.action(description="Redistribute: move all its slots to another shard …", permissions=["change"])
    def redistribute(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse | None:
        """Go to the page that asks where to, and shows the plan."""
        return self._to_page_of_one(request, queryset, "redistribute", "Choose the one shard that gives its slots.")

    @admin.action(description="Rebalance all shards by weight …", permissions=["change"])
    def rebalance(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse:
        """Go to the page with the plan, whichever were chosen."""
        return HttpResponseRedirect(self.view_url("rebalance"))

    def _to_page_of_one(
        self, request: HttpRequest, queryset: QuerySet[Shard], page: str, otherwise: str
    ) -> HttpResponse | None:
        chosen = list(queryset[:2])
        if len(chosen) != 1:
            messages.error(request, otherwise)
            return None
        return HttpResponseRedirect(self.view_url(page, chosen[0].pk))
