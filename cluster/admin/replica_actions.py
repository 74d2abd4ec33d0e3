"""What may be done to replicas from their list: check, sync, verify, pause, resume; the ways to promote and remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.http import urlencode

from cluster.admin.operated import actor_of, refused
from cluster.admin.registered import RegisteredAdmin
from cluster.models import Replica
from cluster.services import entropy, registry
from vectors.errors import MLVectorDBError


class ReplicaActions(RegisteredAdmin):
    """The actions; each tells of every replica what has come of it."""

    actions = ("check_health", "sync", "verify", "pause", "resume", "promote", "remove")

    def check_now(self, row: Replica) -> bool:
        """Probe its node."""
        return registry.replica_check(name=row.name)

    @admin.action(description="Sync: catch up, or go on with a full sync", permissions=["change"])
    def sync(self, request: HttpRequest, queryset: QuerySet[Replica]) -> None:
        """Start it without waiting for a back-off."""

        def start(name: str, actor: str) -> str:
            move = registry.replica_sync(name=name, actor=actor)
            return f"{move.get_kind_display()} started (move {move.pk})"

        self._each(request, queryset, start)

    @admin.action(description="Verify contents: compare digests", permissions=["change"])
    def verify(self, request: HttpRequest, queryset: QuerySet[Replica]) -> None:
        """Ask for a comparison of the contents with this node's, at one position."""

        def start(name: str, actor: str) -> str:
            entropy.replica_verify(name=name, actor=actor)
            return "contents are being compared; the verdict will show here"

        self._each(request, queryset, start)

    @admin.action(description="Pause: send nothing", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Replica]) -> None:
        """Send nothing until resumed."""

        def do(name: str, actor: str) -> str:
            registry.replica_pause(name=name, actor=actor)
            return "paused"

        self._each(request, queryset, do)

    @admin.action(description="Resume: send again", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Replica]) -> None:
        """Send again."""

        def do(name: str, actor: str) -> str:
            registry.replica_resume(name=name, actor=actor)
            return "resumed"

        self._each(request, queryset, do)

    @admin.action(description="Promote: make it the primary …", permissions=["change"])
    def promote(self, request: HttpRequest, queryset: QuerySet[Replica]) -> HttpResponse | None:
        """Go to the page that says what it means."""
        return self.to_page_of_one(request, queryset, "promote", otherwise="Choose one replica: there is one primary.")

    @admin.action(description="Remove …", permissions=["delete"])
    def remove(self, request: HttpRequest, queryset: QuerySet[Replica]) -> HttpResponse:
        """Go to the page that says what it means."""
        query = urlencode({"id": [replica.pk for replica in queryset]}, doseq=True)
        return HttpResponseRedirect(f"{self.view_url('remove')}?{query}")

    def _each(self, request: HttpRequest, replicas: Iterable[Replica], do: Callable[[str, str], str]) -> None:
        """Do something to every replica, and say of each what has come of it."""
        for replica in replicas:
            try:
                words = do(replica.name, actor_of(request))
            except MLVectorDBError as refusal:
                refused(request, refusal, subject=f"Replica {replica}")
                continue
            self.log_change(request, replica, f"{words[0].upper()}{words[1:]}.")
            messages.success(request, f"Replica {replica}: {words}.")
