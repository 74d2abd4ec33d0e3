"""Moves: what is being copied and what was, live; those of slots can be paused, resumed and cancelled here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_protect

from cluster.admin.confirmation import Confirmation, confirmation_page
from cluster.admin.live import LiveAdmin, NowList
from cluster.admin.move_truth import MoveNow, move_now, move_part, moves_now, progress_part
from cluster.admin.operated import actor_of, block, refused
from cluster.admin.records import LabelledList
from cluster.admin.wording import NOTHING, clock
from cluster.models import Move
from cluster.moves.control import move_cancel, move_pause, move_resume
from cluster.states import MovePhase
from vectors.errors import MLVectorDBError

_FACTS = ("kind", "subject", "actor", "started_at", "ended_at", "plan_report")
_DONE = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}


class MoveList(NowList, LabelledList):
    """A page of moves, each with what is known of it and its `shard_label`."""


@admin.register(Move)
class MoveAdmin(LiveAdmin):
    """Rows are written by tasks alone; a person with the right to change moves and to operate steers them."""

    list_display = ("name", "subject", "progress_now", "started", "actor")
    list_filter = ("kind", "phase")
    search_fields = ("replica_name", "actor")
    ordering = ("-id",)
    change_list_template = "admin/cluster/move/change_list.html"
    change_form_template = "admin/cluster/move/change_form.html"
    show_full_result_count = False
    fields = _FACTS
    readonly_fields = _FACTS
    actions = ("pause", "resume", "cancel")

    parts = {"move": progress_part}

    # What is shown.

    @admin.display(description="move", ordering="id")
    def name(self, move: Move) -> str:
        """Return kind and number."""
        return f"{move.get_kind_display()} {move.pk}"

    @admin.display(description="of")
    def subject(self, move: Move) -> str:
        """Return what it copies to, or how many slots it moves between which shards."""
        if move.replica_name:
            return f"{getattr(move, 'shard_label', move.shard[:8])} to {move.replica_name}"
        return ", ".join(dict.fromkeys(f"{source} to {target}" for source, target in _now(move).ways)) or NOTHING

    @admin.display(description="progress")
    def progress_now(self, move: Move) -> SafeString:
        """Return phase, bar, rows, bytes, rate and estimated time, in a place that is renewed."""
        return self.in_list("move", move)

    @admin.display(description="started", ordering="started_at")
    def started(self, move: Move) -> str:
        """Return when it began, to the second."""
        return clock(move.started_at)

    @admin.display(description="plan")
    def plan_report(self, move: Move) -> SafeString | str:
        """Return the plan."""
        return block(move.plan)

    def rows_now(self, rows: Sequence[Move]) -> Sequence[MoveNow]:
        """Return how far some moves are, in their order."""
        return moves_now(rows)

    def page_part(self, row: Move) -> SafeString:
        """Return how far one move is, with its steps and history."""
        return move_part(move_now(row))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that knows how far they are, and of which shards."""
        return MoveList

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never: the actions of shards ask for moves, and show their plans."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Move | None = None) -> bool:
        """Never: what was moved stays known."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Move | None = None) -> bool:
        """Never by a form."""
        return False

    def has_steer_permission(self, request: HttpRequest) -> bool:
        """Who may change moves and operate."""
        return super().has_change_permission(request)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Show how far it is, and the ways to steer it."""
        move = context.get("original")
        if move is not None:
            context |= {"now": _now(move), "may_steer": self.has_steer_permission(request)}
        return super().render_change_form(request, context, *args, **kwargs)

    # Steering.

    def get_urls(self) -> list[URLPattern]:
        """Add the ways to steer."""
        return [
            path("<int:move_id>/<str:verb>/now/", self.own_view(self.steer_view), name="cluster_move_steer"),
            *super().get_urls(),
        ]

    @admin.action(description="Pause", permissions=["steer"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Move]) -> None:
        """Stop where they are until resumed."""
        self._each(request, queryset, "pause")

    @admin.action(description="Resume", permissions=["steer"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Move]) -> None:
        """Go on."""
        self._each(request, queryset, "resume")

    @admin.action(description="Cancel …", permissions=["steer"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Move]) -> HttpResponse | None:
        """Go to the page that says what it means."""
        chosen = list(queryset[:2])
        if len(chosen) != 1:
            messages.error(request, "Choose one move: they run one after the other.")
            return None
        return HttpResponseRedirect(self.view_url("steer", chosen[0].pk, "cancel"))

    @method_decorator(csrf_protect)
    def steer_view(self, request: HttpRequest, move_id: int, verb: str) -> HttpResponseBase:
        """Pause or resume; or say what cancelling means, then cancel."""
        move = Move.objects.filter(pk=move_id).first()
        if move is None or verb not in _DONE:
            return self.to_list()
        if not self.has_steer_permission(request):
            raise PermissionDenied
        refusals: list[str] = []
        if request.method == "POST":
            try:
                self._steer(request, move, verb)
            except MLVectorDBError as refusal:
                if verb != "cancel":
                    refused(request, refusal)
                    return HttpResponseRedirect(self.view_url("change", move.pk))
                refusals.append(refusal.message)
            else:
                return HttpResponseRedirect(self.view_url("change", move.pk))
        if verb != "cancel":
            return HttpResponseRedirect(self.view_url("change", move.pk))
        return confirmation_page(self, request, self._cancellation(move, refusals))

    def _cancellation(self, move: Move, refusals: list[str]) -> Confirmation:
        done = [step for step in move_now(move).steps if not MovePhase(step.step.phase).may_be_cancelled]
        return Confirmation(
            title=f"Cancel {self.name(move)}",
            button=f"Cancel {self.name(move)}",
            back=self.view_url("change", move.pk),
            steps=[
                "Steps whose slots are still with their source are undone: what was copied is deleted at its target,"
                " and nothing is lost, since the source has all of it.",
                "Steps whose slots were closed, switched or cleaned are ended the way they were begun: those slots stay"
                f" where they went. There {'is' if len(done) == 1 else 'are'} {len(done)} of them now.",
                "Slots that have moved do not come back by this; a rebalance or another redistribution moves them.",
            ],
            refusals=refusals,
        )

    def _each(self, request: HttpRequest, queryset: QuerySet[Move], verb: str) -> None:
        for move in queryset:
            try:
                self._steer(request, move, verb)
            except MLVectorDBError as refusal:
                refused(request, refusal, subject=str(self.name(move)).capitalize())

    def _steer(self, request: HttpRequest, move: Move, verb: str) -> None:
        services: dict[str, Callable[..., Any]] = {
            "pause": move_pause,
            "resume": move_resume,
            "cancel": move_cancel,
        }
        services[verb](move.pk, actor=actor_of(request))
        self.log_change(request, move, f"{_DONE[verb].capitalize()}.")
        messages.success(request, f"{str(self.name(move)).capitalize()}: {_DONE[verb]}.")


def _now(move: Any) -> MoveNow:
    now: MoveNow | None = getattr(move, "now", None)
    if now is None:
        [now] = moves_now([move])
        move.now = now
    return now
