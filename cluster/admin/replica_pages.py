"""The pages before a replica is removed or promoted, and what the pages of replicas show of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.confirmation import Confirmation, confirmation_page, wants_force
from cluster.admin.consequences import handover_consequences, removal_consequences
from cluster.admin.live import LiveAdmin
from cluster.admin.operated import actor_of, chosen_ids
from cluster.admin.replica_panels import copies_part, health_part, node_part, replica_part
from cluster.admin.truth import ReplicaTruth, node_truth, replicas_truth
from cluster.models import Replica
from cluster.services import handover, removal
from vectors.errors import MLVectorDBError


class ReplicaPages(LiveAdmin):
    """Views beside Django's own."""

    parts = {"health": health_part, "copies": copies_part}

    def get_urls(self) -> list[URLPattern]:
        """Add the pages before a removal and a promotion."""
        return [
            path("remove/", self.own_view(self.remove_view), name="cluster_replica_remove"),
            path("<int:replica_id>/promote/", self.own_view(self.promote_view), name="cluster_replica_promote"),
            *super().get_urls(),
        ]

    def rows_now(self, rows: Sequence[Replica]) -> Sequence[ReplicaTruth]:
        """Return the truth about some replicas, in their order."""
        return replicas_truth(rows)

    def page_part(self, row: Replica) -> SafeString:
        """Return all that is known of one replica."""
        return replica_part(row)

    def list_places(self) -> Mapping[str, str]:
        """Return what this node is."""
        return {"node": node_part(node_truth())}

    @method_decorator(csrf_protect)
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> Any:
        """Say what a removal means, then remove."""
        replica = self.get_object(request, object_id)
        if not self.has_delete_permission(request, replica):
            raise PermissionDenied
        if replica is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        return self._remove(request, [replica])

    @method_decorator(csrf_protect)
    def remove_view(self, request: HttpRequest) -> HttpResponseBase:
        """The same for several (`id`, repeated)."""
        if not self.has_delete_permission(request):
            raise PermissionDenied
        replicas = self._chosen(request)
        return self._remove(request, replicas) if replicas else self.to_list()

    def _remove(self, request: HttpRequest, replicas: list[Replica]) -> HttpResponseBase:
        refusals: list[str] = []
        if request.method == "POST":
            staying = [replica for replica in replicas if not self._removed(request, replica, refusals)]
            if not staying:
                return self.to_list()
            replicas = staying
        names = ", ".join(replica.name for replica in replicas)
        risks = [f"{risk}." for replica in replicas if (risk := removal.removal_risk(replica))]
        page = Confirmation(
            title=f"Remove {names}",
            button=f"Remove {names}",
            back=self.list_url(),
            steps=[
                "Without force: a majority of the members that stay must have the whole log first; then the members are"
                " changed, which enough nodes must confirm. Otherwise the removal is refused, and nothing changes.",
                "Nothing is deleted on the node of a replica: it keeps its copy, detached and read-only, and can be"
                " added again. It is told so as soon as it can be reached.",
            ],
            shards=removal_consequences(replicas),
            force_risks=[
                "By force the replica is removed at once, without waiting for the others or for its node.",
                *risks,
            ],
            refusals=refusals,
        )
        return confirmation_page(self, request, page)

    def _removed(self, request: HttpRequest, replica: Replica, refusals: list[str]) -> bool:
        try:
            removal.replica_remove(name=replica.name, force=wants_force(request), actor=actor_of(request))
        except MLVectorDBError as refusal:
            refusals.append(f"{replica}: {refusal.message}")
            return False
        self.log_deletions(request, [replica])  # type: ignore[arg-type]
        messages.success(request, f"Replica {replica} was removed.")
        return True

    @method_decorator(csrf_protect)
    def promote_view(self, request: HttpRequest, replica_id: int) -> HttpResponseBase:
        """Say what a promotion means, then hand over."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        replica = Replica.objects.filter(pk=replica_id).first()
        if replica is None:
            return self.to_list()
        refusals: list[str] = []
        if request.method == "POST":
            try:
                promotion = handover.replica_promote(
                    name=replica.name, force=wants_force(request), actor=actor_of(request)
                )
            except MLVectorDBError as refusal:
                refusals.append(refusal.message)
            else:
                self.log_change(request, replica, f"Promoted: primary of term {promotion.term}.")
                messages.success(
                    request,
                    f"Replica {replica} is the primary now, in term {promotion.term}. This node is its replica, and the"
                    f" registry of replicas is at {replica.url}.",
                )
                return HttpResponseRedirect(reverse(f"{self.admin_site.name}:cluster_placement_changelist"))
        page = Confirmation(
            title=f"Promote {replica}",
            button=f"Make {replica} the primary",
            back=self.list_url(),
            steps=[
                "The replica is brought to the head while writes go on. Then this node takes no more writes, sends the"
                " rest, and has the replica take over. Writes of that moment are refused, and may be sent again.",
                "Nothing that was acknowledged is lost. If the replica does not take over, this node is the primary"
                " again.",
            ],
            shards=handover_consequences(replica),
            force_risks=[
                "By force the replica takes over also when too few members can be reached to vote. It must have the"
                " whole log all the same, so nothing that this node has is lost.",
                "If the members that cannot be reached have made another node the primary meanwhile, there are two"
                " until they meet, and what one of them has written by then is set aside in files.",
            ],
            refusals=refusals,
        )
        return confirmation_page(self, request, page)

    def _chosen(self, request: HttpRequest) -> list[Replica]:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return list(Replica.objects.filter(pk__in=chosen_ids(request)))
