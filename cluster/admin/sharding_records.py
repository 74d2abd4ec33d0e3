"""Namespaces of all shards, what shards have yet to be told of them, steps of moves, and what this node was told."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from cluster.admin.move_truth import StepNow
from cluster.admin.operated import RecordAdmin, block
from cluster.admin.shard_truth import slots_in
from cluster.admin.wording import admin_link, counted, share
from cluster.models import Assignment, MoveStep, NamespaceErrand, ShardedNamespace
from vectors.engine.ids import SLOT_COUNT


@admin.register(ShardedNamespace)
class ShardedNamespaceAdmin(RecordAdmin):
    """The namespaces that lie on all shards; a dropped one stays here as long as a shard has to be told."""

    list_display = ("name", "dimension", "metric", "recall_target", "picture", "created_at", "dropped_at")
    list_filter = ("metric", ("dropped_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "uid")
    ordering = ("name", "-id")
    fields = ("name", "uid", "dimension", "metric", "recall_target", "picture", "created_at", "dropped_at")
    readonly_fields = fields


@admin.register(NamespaceErrand)
class NamespaceErrandAdmin(RecordAdmin):
    """What a shard that could not be reached has yet to be told of a namespace; told again by beat."""

    list_display = ("namespace", "shard", "attempts", "last_error")
    list_select_related = ("namespace", "shard")
    ordering = ("namespace__name", "shard__label")
    fields = ("namespace", "shard", "attempts", "last_error")
    readonly_fields = fields


@admin.register(MoveStep)
class MoveStepAdmin(RecordAdmin):
    """The steps of every move of slots; the page of a move has the same, live."""

    list_display = ("name", "move", "slot_count", "phase_word", "rows", "size", "attempts", "error")
    list_filter = ("phase", "source", "target")
    list_select_related = ("move", "source", "target")
    ordering = ("-id",)
    fields = (
        "name",
        "move",
        "slot_count",
        "phase_word",
        "rows",
        "size",
        "attempts",
        "error",
        "uid",
        "state_report",
    )
    readonly_fields = fields

    @admin.display(description="step", ordering="id")
    def name(self, step: MoveStep) -> str:
        """Return from where to where."""
        return f"{step.source} to {step.target}"

    @admin.display(description="slots")
    def slot_count(self, step: MoveStep) -> str:
        """Return how many slots it moves."""
        return f"{StepNow(step).slots:,}"

    @admin.display(description="phase", ordering="phase")
    def phase_word(self, step: MoveStep) -> SafeString:
        """Return the phase as a coloured word."""
        return StepNow(step).phase

    @admin.display(description="rows", ordering="rows_done")
    def rows(self, step: MoveStep) -> str:
        """Return the rows done and to be done."""
        return StepNow(step).rows

    @admin.display(description="bytes", ordering="bytes_done")
    def size(self, step: MoveStep) -> str:
        """Return the bytes done and to be done."""
        return StepNow(step).size

    @admin.display(description="where it is within its phase")
    def state_report(self, step: MoveStep) -> SafeString | str:
        """Return it as it is stored."""
        return block(step.state)


@admin.register(Assignment)
class AssignmentAdmin(RecordAdmin):
    """What a coordinator has told this node: that it is a shard, and which slots it owns."""

    list_display = ("label", "coordinator", "owns", "epoch", "received_at")
    fields = ("label", "shard", "coordinator", "coordinator_node", "cluster", "owns", "epoch", "received_at")
    readonly_fields = fields

    @admin.display(description="coordinator", ordering="coordinator_url")
    def coordinator(self, assignment: Assignment) -> SafeString:
        """Return a link to the coordinator's admin."""
        return admin_link(assignment.coordinator_url)

    @admin.display(description="owns")
    def owns(self, assignment: Assignment) -> str:
        """Return how many slots, and which part of all that is."""
        count = slots_in(bytes(assignment.slots))
        return f"{counted(count, 'slot')} ({share(count, SLOT_COUNT)})"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Assignment]:
        """Return what was told, by the shard's label."""
        return super().get_queryset(request).order_by("label")
