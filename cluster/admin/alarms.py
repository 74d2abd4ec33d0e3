"""The banner of the admin: alarms of the last day, shards that are not well, moves that have failed or do not go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cluster.admin.history import ALARMS_OF, alarm_warnings
from cluster.admin.shard_truth import living_shards
from cluster.admin.wording import counted, since
from cluster.models import Move, MoveStep
from cluster.states import MovePhase, PeerHealth, ShardState

#: Failures in a row after which a step is a person's business: beat has tried for some seconds.
_TRIED = 5
_SHOWN = 3


def cluster_warnings() -> Sequence[str]:
    """Return the sentences; named in the AppConfig as `admin_warnings`."""
    now = timezone.now()
    url = reverse("admin:cluster_clusterevent_changelist")
    return [
        *alarm_warnings(events_url=f"{url}?alarm__exact=1", now=now),
        *_sick_shards(now),
        *_failed_moves(now),
        *_stuck_steps(),
    ]


def _sick_shards(now: datetime) -> Iterator[SafeString]:
    """Yield a sentence for each shard that is dead, or that its node does not want to be."""
    for shard in living_shards():
        url = reverse("admin:cluster_shard_change", args=(shard.pk,))
        if ShardState(shard.state) is ShardState.REFUSED:
            yield format_html(
                'The node of shard <a href="{}">{}</a> will not be it: {}', url, shard.label, shard.last_error
            )
        elif not shard.is_local and PeerHealth(shard.health) is PeerHealth.DEAD:
            yield format_html(
                'Shard <a href="{}">{}</a> has been dead for {}: searches leave out its {} and say so, writes to it are'
                " refused.",
                url,
                shard.label,
                since(shard.health_since, now),
                counted(shard.rows, "row"),
            )


def _failed_moves(now: datetime) -> Iterator[SafeString]:
    """Yield a sentence for each of the newest moves that have failed in the last day."""
    failed = Move.objects.filter(phase=MovePhase.FAILED, ended_at__gte=now - ALARMS_OF).order_by("-id")
    for move in failed.filter(replica_name="")[:_SHOWN]:
        yield format_html(
            '<a href="{}">{} {}</a> has failed, {} ago: {}',
            reverse("admin:cluster_move_change", args=(move.pk,)),
            move.get_kind_display().capitalize(),
            move.pk,
            since(move.ended_at, now),
            move.error,
        )


def _stuck_steps() -> Iterator[SafeString]:
    """Yield a sentence for each of the first steps that were tried in vain again and again."""
    over = [phase.value for phase in MovePhase if phase.is_over]
    steps = MoveStep.objects.exclude(phase__in=over).filter(attempts__gte=_TRIED, move__paused=False)
    for step in steps.select_related("move", "source", "target").order_by("id")[:_SHOWN]:
        yield format_html(
            '<a href="{}">{} {}</a> does not go on from {} to {}: {} ({} in a row)',
            reverse("admin:cluster_move_change", args=(step.move_id,)),
            step.move.get_kind_display().capitalize(),
            step.move_id,
            step.source.label,
            step.target.label,
            step.error,
            counted(step.attempts, "attempt"),
        )
