"""What this node was told by the owner of its registry: on a replica its own truth page, and its promotion."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.confirmation import Confirmation, confirmation_page, wants_force
from cluster.admin.operated import ClusterAdmin, actor_of, block
from cluster.admin.own_promotion import own_promotion_consequences
from cluster.admin.wording import NOTHING, admin_link, badge, position
from cluster.models import Placement
from cluster.replication.placements import PlacementDocument
from cluster.selectors import own_placements
from cluster.services import promotion
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

_FIELDS = (
    "label",
    "role",
    "name",
    "primary",
    "state",
    "applied",
    "primary_at",
    "lag",
    "heard",
    "epoch",
    "term",
    "cluster",
    "received_at",
    "copies",
    "document_report",
)


class _Told(NamedTuple):
    """A placement read, with this node's head of the shard."""

    document: PlacementDocument
    head: ShardHead | None


class PlacementList(ChangeList):
    """A page of placements, each with its document read and this node's head: one query for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each what was `told`."""
        super().get_results(request)
        rows: list[Placement] = list(self.result_list)
        heads = {head.uid: head for head in ShardHead.objects.filter(uid__in={row.shard for row in rows})}
        for row in rows:
            row.told = _Told(PlacementDocument.of(row.document), heads.get(row.shard))  # type: ignore[attr-defined]
        self.result_list = rows


@admin.register(Placement)
class PlacementAdmin(ClusterAdmin):
    """Rows to look at; the one change is that this node becomes the primary."""

    list_display = ("label", "role", "name", "primary", "state", "applied", "primary_at", "lag", "epoch")
    list_display_links = ("label",)
    change_list_template = "admin/cluster/placement/change_list.html"
    change_form_template = "admin/cluster/placement/change_form.html"
    fields = _FIELDS
    readonly_fields = _FIELDS
    actions = None

    @admin.display(description="shard", ordering="shard")
    def label(self, placement: Placement) -> str:
        """Return the shard's label."""
        return _told(placement).document.label

    @admin.display(description="name")
    def name(self, placement: Placement) -> str:
        """Return under which name the owner knows this node."""
        return _told(placement).document.name

    @admin.display(description="primary")
    def primary(self, placement: Placement) -> SafeString:
        """Return a link to the primary's admin."""
        return admin_link(_told(placement).document.primary.url)

    @admin.display(description="state")
    def state(self, placement: Placement) -> SafeString | str:
        """Return the state and membership of this node's copy, as the owner sees them."""
        own = _told(placement).document.own
        return NOTHING if own is None else format_html("{} {}", badge(own.state), badge(own.membership))

    @admin.display(description="applied")
    def applied(self, placement: Placement) -> str:
        """Return the newest entry that this node has."""
        head = _told(placement).head
        return "no copy yet" if head is None else position(head.term, head.last_seq)

    @admin.display(description="lag")
    def lag(self, placement: Placement) -> str:
        """Return how many operations of the primary's log this node lacked, by where that was when last heard."""
        head = _told(placement).head
        return NOTHING if head is None else f"{max(0, placement.primary_seq - head.last_seq):,}"

    @admin.display(description="primary at", ordering="primary_seq")
    def primary_at(self, placement: Placement) -> str:
        """Return where the primary's log ended when it was last heard."""
        return f"seq {placement.primary_seq:,}"

    @admin.display(description="copies")
    def copies(self, placement: Placement) -> str:
        """Return all copies of the shard, as the owner sees them."""
        rows = _told(placement).document.copies
        return "; ".join(f"{copy.name} at {copy.url}: {copy.state.label}, {copy.membership.value}" for copy in rows)

    @admin.display(description="document")
    def document_report(self, placement: Placement) -> SafeString | str:
        """Return all that was told."""
        return block(placement.document)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that has read the documents."""
        return PlacementList

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: the owner of the registry sends them."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Placement | None = None) -> bool:
        """Never: the owner of the registry detaches a copy."""
        return False

    def has_promote_permission(self, request: HttpRequest) -> bool:
        """Who may change placements and operate may promote."""
        return super().has_change_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Placement | None = None) -> bool:
        """Never by a form."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, with the way to a promotion."""
        context = {"title": "What this node was told", **self._context(request), **(extra_context or {})}
        return super().changelist_view(request, context)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Show the way to a promotion."""
        context.update(self._context(request))
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        """Add the page before a promotion."""
        return [
            path("promote/", self.own_view(self.promote_view), name="cluster_placement_promote"),
            *super().get_urls(),
        ]

    @method_decorator(csrf_protect)
    def promote_view(self, request: HttpRequest) -> HttpResponseBase:
        """Say what a promotion of this node means, then promote it."""
        if not self.has_promote_permission(request):
            raise PermissionDenied
        placements = list(own_placements())
        if not placements:
            messages.info(request, "This node was told nothing: it is no replica.")
            return self.to_list()
        refusals: list[str] = []
        if request.method == "POST":
            try:
                outcome = promotion.promote(force=wants_force(request), actor=actor_of(request))
            except MLVectorDBError as refusal:
                refusals.append(refusal.message)
                placements = list(own_placements())
            else:
                return self._promoted(request, placements[0], outcome)
        return confirmation_page(self, request, self._confirmation(placements, refusals))

    def _confirmation(self, placements: list[Placement], refusals: list[str]) -> Confirmation:
        return Confirmation(
            title="Promote this node",
            button="Make this node the primary",
            back=self.list_url(),
            steps=[
                "The members are asked for their votes in a new term. With enough of them this node becomes the primary"
                " and keeps the registry of replicas; the others are told, and follow it.",
                "The old primary, when it comes back, hears of the newer term and becomes a replica. Entries of its log"
                " that never had a quorum are set aside in a file on its node, and reported.",
            ],
            shards=own_promotion_consequences(placements),
            force_risks=[
                "By force this node becomes the primary also while the old one is alive, with fewer votes, and when"
                " another copy has more.",
                "Writes that this copy does not have are lost to the cluster then, those that a quorum has acknowledged"
                " among them. What other copies have beyond this one is set aside in files on their nodes.",
            ],
            refusals=refusals,
        )

    def _promoted(
        self, request: HttpRequest, placement: Placement, outcome: promotion.Promotion
    ) -> HttpResponseRedirect:
        self.log_change(request, placement, f"Promoted this node: primary of term {outcome.term}.")
        messages.success(request, f"This node is the primary now, in term {outcome.term}.")
        if outcome.warning:
            messages.warning(request, f"What may be lost: {outcome.warning}.")
        return HttpResponseRedirect(reverse(f"{self.admin_site.name}:cluster_replica_changelist"))

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        return {"may_promote": self.has_promote_permission(request) and own_placements().exists()}


def _told(placement: Placement) -> _Told:
    told: _Told | None = getattr(placement, "told", None)
    if told is None:
        head = ShardHead.objects.filter(uid=placement.shard).first()
        told = placement.told = _Told(PlacementDocument.of(placement.document), head)  # type: ignore[attr-defined]
    return told
