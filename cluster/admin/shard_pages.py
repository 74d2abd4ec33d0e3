"""The pages before rows move: drain, rebalance, redistribute, each with its plan; and what the pages fetch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.confirmation import Confirmation, confirmation_page, wants_force
from cluster.admin.live import LiveAdmin
from cluster.admin.operated import actor_of
from cluster.admin.plans import PlanNow, plan_now, plan_part
from cluster.admin.shard_forms import TargetForm
from cluster.admin.shard_panels import cell_part, health_part, node_part, shard_part
from cluster.admin.shard_truth import ShardNow, living_shards, shards_now
from cluster.models import Move, Shard
from cluster.moves.control import move_request
from cluster.services import sharding_removal
from cluster.states import ShardState
from vectors.errors import MLVectorDBError

_MEANWHILE = (
    "Searches and writes go on. Writes to slots that are about to change their owner wait for a moment each; until then"
    " their source has them, and the move can be paused and cancelled."
)


class ShardPages(LiveAdmin):
    """Views beside Django's own."""

    parts = {"health": health_part, "load": cell_part}

    def get_urls(self) -> list[URLPattern]:
        """Add the pages before rows move."""
        return [
            path("rebalance/", self.own_view(self.rebalance_view), name="cluster_shard_rebalance"),
            path(
                "<int:shard_id>/redistribute/",
                self.own_view(self.redistribute_view),
                name="cluster_shard_redistribute",
            ),
            *super().get_urls(),
        ]

    def rows_now(self, rows: Sequence[Shard]) -> Sequence[ShardNow]:
        """Return what is known of some shards, in their order."""
        return shards_now(rows)

    def page_part(self, row: Shard) -> SafeString:
        """Return all that is known of one shard."""
        return shard_part(row)

    def list_places(self) -> Mapping[str, str]:
        """Return what this node divides, and what moves."""
        return {"node": node_part()}

    @method_decorator(csrf_protect)
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> Any:
        """Show where its slots go, then drain it, which removes it when it has none."""
        shard = self.get_object(request, object_id)
        if not self.has_delete_permission(request, shard):
            raise PermissionDenied
        if shard is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        refusals: list[str] = []
        if request.method == "POST":
            try:
                move = sharding_removal.shard_remove(
                    label=shard.label, force=wants_force(request), actor=actor_of(request)
                )
            except MLVectorDBError as refusal:
                refusals.append(refusal.message)
            else:
                return self._removed(request, shard, move)
        plan = plan_now(Move.Kind.DRAIN, source=shard)
        page = Confirmation(
            title=f"Drain and remove {shard}",
            button=f"Remove {shard}",
            back=self.list_url(),
            steps=[
                "First its slots and rows go to the other shards, by their weights; then it is removed. A shard that"
                " owns no slots is removed at once.",
                _MEANWHILE,
                "The node of a remote shard is told that it is nobody's shard any more. What it still has by then is"
                " deleted there before it is removed.",
            ],
            plan=plan_part(plan),
            force_risks=[
                "By force a shard whose node cannot be reached is removed without being drained: its slots go to the"
                f" others empty. The {shard.rows:,} rows it had when it was last heard are lost, and that is recorded.",
            ],
            refusals=refusals,
        )
        return confirmation_page(self, request, page)

    @method_decorator(csrf_protect)
    def rebalance_view(self, request: HttpRequest) -> HttpResponseBase:
        """Show what moves until every shard has its share, then have it moved."""
        self._check_change(request)

        def page(plan: PlanNow, refusals: list[str]) -> Confirmation:
            return Confirmation(
                title="Rebalance all shards",
                button="Rebalance",
                back=self.list_url(),
                steps=[
                    "Every shard gets the part of the slots that its weight stands for. No more slots move than reach"
                    " that, and of a shard that gives some those go that take its surplus of rows with them.",
                    _MEANWHILE,
                ],
                plan=plan_part(plan),
                refusals=refusals,
                is_possible=bool(plan.steps),
            )

        return self._plan_view(request, Move.Kind.REBALANCE, page)

    @method_decorator(csrf_protect)
    def redistribute_view(self, request: HttpRequest, shard_id: int) -> HttpResponseBase:
        """Ask where to, show the plan, then have all slots of a shard moved there."""
        self._check_change(request)
        shard = _living(shard_id)
        if shard is None:
            return self.to_list()
        targets = {
            other.label: other
            for other in living_shards()
            if other.pk != shard.pk and ShardState(other.state).is_target
        }
        form = TargetForm(list(targets), request.GET or None)
        if not form.is_valid():
            return self._ask_target(request, shard, form, bool(targets))
        target = targets[form.cleaned_data["target"]]

        def page(plan: PlanNow, refusals: list[str]) -> Confirmation:
            return Confirmation(
                title=f"Redistribute {shard} to {target}",
                button=f"Move all slots of {shard} to {target}",
                back=self.list_url(),
                steps=[
                    f"All slots and rows of {shard} go to {target}. {shard} stays a shard, without slots, and gets some"
                    " again by the next rebalance.",
                    _MEANWHILE,
                ],
                plan=plan_part(plan),
                refusals=refusals,
                is_possible=bool(plan.steps),
            )

        return self._plan_view(request, Move.Kind.REDISTRIBUTE, page, source=shard, target=target)

    def tell_of_move(self, request: HttpRequest, move: Move | None) -> None:
        """Say which move does the rest."""
        if move is not None:
            messages.info(request, _move_words(move))

    def _plan_view(
        self,
        request: HttpRequest,
        kind: Move.Kind,
        page: Callable[[PlanNow, list[str]], Confirmation],
        *,
        source: Shard | None = None,
        target: Shard | None = None,
    ) -> HttpResponseBase:
        """Show a plan; sent again, ask for the move and go to its page."""
        refusals: list[str] = []
        if request.method == "POST":
            try:
                move = move_request(kind, source=source, target=target, actor=actor_of(request))
            except MLVectorDBError as refusal:
                refusals.append(refusal.message)
            else:
                self.tell_of_move(request, move)
                return HttpResponseRedirect(_move_url(move))
        return confirmation_page(self, request, page(plan_now(kind, source=source, target=target), refusals))

    def _removed(self, request: HttpRequest, shard: Shard, move: Move | None) -> HttpResponseRedirect:
        if move is None:
            self.log_deletions(request, [shard])  # type: ignore[arg-type]
            messages.success(request, f"Shard {shard} was removed.")
            return self.to_list()
        self.log_change(request, shard, f"Drained, to be removed ({move.get_kind_display()} {move.pk}).")
        messages.success(request, f"Shard {shard} is being drained, and is removed when it has no slots any more.")
        self.tell_of_move(request, move)
        return HttpResponseRedirect(_move_url(move))

    def _ask_target(self, request: HttpRequest, shard: Shard, form: TargetForm, has_targets: bool) -> TemplateResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"Redistribute {shard}",
            "subtitle": None,
            "opts": self.opts,
            "media": self.media,
            "form": form,
            "has_targets": has_targets,
            "back": self.list_url(),
        }
        return TemplateResponse(request, "admin/cluster/shard/target.html", context)

    def _check_change(self, request: HttpRequest) -> None:
        if not self.has_change_permission(request):
            raise PermissionDenied


def _living(shard_id: int) -> Shard | None:
    return Shard.objects.filter(pk=shard_id).exclude(state=ShardState.REMOVED).first()


def _move_url(move: Move) -> str:
    return reverse("admin:cluster_move_change", args=(move.pk,))


def _move_words(move: Move) -> SafeString:
    return format_html(
        '<a href="{}">{} {}</a> does it.', _move_url(move), move.get_kind_display().capitalize(), move.pk
    )
