"""What may be done to shards from their list: check; the ways to drain, rebalance and redistribute."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from cluster.admin.registered import RegisteredAdmin
from cluster.models import Shard
from cluster.services import sharding


class ShardActions(RegisteredAdmin):
    """The actions; those that move rows lead to a page with the plan."""

    actions = ("check_health", "drain", "redistribute", "rebalance")

    def check_now(self, row: Shard) -> bool:
        """Probe its node."""
        return sharding.shard_check(label=row.label)

    @admin.action(description="Drain and remove …", permissions=["delete"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse | None:
        """Go to the page with the plan."""
        return self.to_page_of_one(
            request, queryset, "delete", otherwise="Choose one shard: each change has a plan of its own."
        )

    @admin.action(description="Redistribute: move all its slots to another shard …", permissions=["change"])
    def redistribute(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse | None:
        """Go to the page that asks where to, and shows the plan."""
        return self.to_page_of_one(
            request, queryset, "redistribute", otherwise="Choose the one shard that gives its slots."
        )

    @admin.action(description="Rebalance all shards by weight …", permissions=["change"])
    def rebalance(self, request: HttpRequest, queryset: QuerySet[Shard]) -> HttpResponse:
        """Go to the page with the plan, whichever were chosen."""
        return HttpResponseRedirect(self.view_url("rebalance"))
