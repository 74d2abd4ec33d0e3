"""Copies, probes, events, placements on their way: shown as they are, changed by services alone."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cluster.admin.history import action_words, outcome, short
from cluster.admin.operated import RecordAdmin, block
from cluster.admin.truth import CopyTruth, copies_with_lag
from cluster.admin.wording import NOTHING, badge, clock
from cluster.models import ClusterEvent, HealthCheck, PlacementPush, ReplicaCopy
from cluster.states import PeerHealth
from vectors.models import ShardHead


class LabelledList(ChangeList):
    """A page of rows that have a shard, each with its label: one query for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `shard_label`."""
        super().get_results(request)
        rows: list[Any] = list(self.result_list)
        labels = dict(ShardHead.objects.filter(uid__in={row.shard for row in rows}).values_list("uid", "label"))
        for row in rows:
            row.shard_label = labels.get(row.shard, row.shard[:8])
        self.result_list = rows


class OfShardAdmin(RecordAdmin):
    """Rows that have the uid of a shard, shown with its label."""

    @admin.display(description="shard", ordering="shard")
    def shard_name(self, row: Any) -> str:
        """Return the shard's label, the beginning of its uid where this node has no copy of it."""
        return str(getattr(row, "shard_label", row.shard))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that knows the labels."""
        return LabelledList


@admin.register(ReplicaCopy)
class ReplicaCopyAdmin(OfShardAdmin):
    """The copies of every replica; the page of a replica has the same, live."""

    list_display = ("replica", "shard_name", "state", "membership", "applied", "lag", "lag_s", "digest", "digest_at")
    list_filter = ("state", "membership", "digest_verdict")
    search_fields = ("replica__name",)
    list_select_related = ("replica",)
    fields = (
        "replica",
        "shard_name",
        "state",
        "state_since",
        "membership",
        "membership_epoch",
        "membership_seq",
        "applied",
        "lag",
        "lag_s",
        "digest",
        "digest_at",
        "digest_seq",
        "digest_report",
    )
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[ReplicaCopy]:
        """Return the copies with their lag."""
        return copies_with_lag()

    @admin.display(description="applied (term, seq)")
    def applied(self, copy: ReplicaCopy) -> str:
        """Return the newest entry it has answered to have."""
        return self._truth(copy).applied

    @admin.display(description="lag")
    def lag(self, copy: ReplicaCopy) -> str:
        """Return the operations it lacks."""
        return self._truth(copy).lag_words

    @admin.display(description="lag in time")
    def lag_s(self, copy: ReplicaCopy) -> str:
        """Return how long ago the oldest of them was logged."""
        return self._truth(copy).lag_s_words

    @admin.display(description="digest", ordering="digest_verdict")
    def digest(self, copy: ReplicaCopy) -> SafeString:
        """Return what comparing its contents has brought."""
        return self._truth(copy).verdict

    @admin.display(description="digests")
    def digest_report(self, copy: ReplicaCopy) -> SafeString | str:
        """Return all that was found."""
        return block(copy.digest_detail)

    def _truth(self, copy: ReplicaCopy) -> CopyTruth:
        return CopyTruth(copy, None, timezone.now())


@admin.register(HealthCheck)
class HealthCheckAdmin(RecordAdmin):
    """The probes of every replica and of every shard's node, newest first."""

    list_display = ("time", "peer", "outcome", "health_word", "took", "error")
    list_filter = ("ok", "health", "replica", "shard")
    list_select_related = ("replica", "shard")
    ordering = ("-id",)
    fields = ("at", "peer", "outcome", "health_word", "took", "error")
    readonly_fields = fields

    @admin.display(description="of")
    def peer(self, check: HealthCheck) -> str:
        """Return whose probe it is."""
        return f"replica {check.replica}" if check.shard is None else f"shard {check.shard}"

    @admin.display(description="at", ordering="id")
    def time(self, check: HealthCheck) -> str:
        """Return when, to the second."""
        return clock(check.at)

    @admin.display(description="answered", boolean=True, ordering="ok")
    def outcome(self, check: HealthCheck) -> bool:
        """Return whether it answered as it should."""
        return check.ok

    @admin.display(description="health then", ordering="health")
    def health_word(self, check: HealthCheck) -> SafeString:
        """Return what the failure detector thought then."""
        return badge(PeerHealth(check.health))

    @admin.display(description="took", ordering="took_ms")
    def took(self, check: HealthCheck) -> str:
        """Return how long the answer took."""
        return f"{check.took_ms:.1f} ms"


@admin.register(ClusterEvent)
class ClusterEventAdmin(RecordAdmin):
    """The history: who changed what, before and after; alarms are what a person should look at."""

    list_display = ("time", "author", "what", "concerns", "words", "epoch", "is_alarm")
    list_filter = ("alarm", "action")
    search_fields = ("actor", "action", "subject")
    ordering = ("-id",)
    fields = ("at", "actor", "what", "subject", "is_alarm", "epoch", "before_report", "after_report")
    readonly_fields = fields

    @admin.display(description="at", ordering="id")
    def time(self, event: ClusterEvent) -> str:
        """Return when, to the second."""
        return clock(event.at)

    @admin.display(description="subject", ordering="subject")
    def concerns(self, event: ClusterEvent) -> str:
        """Return what it was done to."""
        return short(event.subject)

    @admin.display(description="author", ordering="actor")
    def author(self, event: ClusterEvent) -> str:
        """Return who did it."""
        return short(event.actor)

    @admin.display(description="what", ordering="action")
    def what(self, event: ClusterEvent) -> str:
        """Return what was done."""
        return action_words(event)

    @admin.display(description="outcome")
    def words(self, event: ClusterEvent) -> str:
        """Return in a line what has come of it."""
        return outcome(event)

    @admin.display(description="alarm", ordering="alarm")
    def is_alarm(self, event: ClusterEvent) -> SafeString | str:
        """Return the word for what a person should look at."""
        return format_html('<strong class="badge badge-bad">{}</strong>', "alarm") if event.alarm else NOTHING

    @admin.display(description="before")
    def before_report(self, event: ClusterEvent) -> SafeString | str:
        """Return what it was."""
        return block(event.before)

    @admin.display(description="after")
    def after_report(self, event: ClusterEvent) -> SafeString | str:
        """Return what it became."""
        return block(event.after)


@admin.register(PlacementPush)
class PlacementPushAdmin(OfShardAdmin):
    """Placements on their way: those whose acknowledged epoch is lower are sent again."""

    list_display = ("url", "shard_name", "epoch", "acknowledged_epoch", "attempts", "last_error", "updated_at")
    ordering = ("url", "shard")
    fields = (
        "url",
        "shard_name",
        "epoch",
        "acknowledged_epoch",
        "attempts",
        "last_error",
        "updated_at",
        "document_report",
    )
    readonly_fields = fields

    @admin.display(description="document")
    def document_report(self, push: PlacementPush) -> SafeString | str:
        """Return what is sent."""
        return block(push.document)
