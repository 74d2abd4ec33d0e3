"""What has happened in the cluster, in words: events with their authors, and moves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cluster.admin.progress import Progress
from cluster.admin.wording import since
from cluster.models import ClusterEvent, Move, Replica

ALARMS_OF = timedelta(days=1)
_SHOWN = 12
_MOVES = 5
_ALARMS = 3
_LOOKED_THROUGH = 200

_UID = re.compile(r"\b[0-9a-f]{32}\b")

#: What in an event's outcome is a sentence for people, the most telling first.
_SENTENCES = ("may_be_lost", "risk", "reason", "message", "error")


@dataclass(frozen=True, slots=True)
class Line:
    """An event in a history: how long ago it was, and in words what has come of it."""

    event: ClusterEvent
    since: SafeString
    words: str


def events_about(subject: str) -> list[Line]:
    """Return the newest events about a replica, a shard or a move, with how long ago they were."""
    now = timezone.now()
    events = ClusterEvent.objects.filter(subject=subject).order_by("-id")[:_SHOWN]
    return [Line(event, since(event.at, now), outcome(event)) for event in events]


def moves_of(replica: Replica) -> list[Progress]:
    """Return the newest moves of a replica."""
    now = timezone.now()
    return [Progress(move, now) for move in Move.objects.filter(replica=replica).order_by("-id")[:_MOVES]]


def action_words(event: ClusterEvent) -> str:
    """Return what was done."""
    return event.action.replace("_", " ")


def outcome(event: ClusterEvent) -> str:
    """Return in a line what has come of it."""
    after = event.after
    if not isinstance(after, Mapping):
        return ""
    for name in _SENTENCES:
        if isinstance(after.get(name), str) and after[name]:
            return str(after[name])
    told = [f"{name} {value}" for name, value in after.items() if isinstance(value, (str, int, float)) and value]
    return short(", ".join(told))


def short(text: str) -> str:
    """Return a text with the beginnings of the uids in it."""
    return _UID.sub(lambda uid: uid[0][:8], text)


def alarm_warnings(*, events_url: str, now: datetime) -> list[SafeString]:
    """Return a sentence for each of the newest alarms of the last day, of one kind and subject the newest alone."""
    newest: dict[tuple[str, str], ClusterEvent] = {}
    for event in ClusterEvent.objects.filter(alarm=True, at__gte=now - ALARMS_OF).order_by("-id")[:_LOOKED_THROUGH]:
        newest.setdefault((event.action, event.subject), event)
    events = list(newest.values())
    warnings = [
        format_html(
            'Alarm, {} ago: {} {}{} (<a href="{}">all alarms</a>)',
            since(event.at, now),
            action_words(event),
            short(event.subject),
            f": {words}" if (words := outcome(event)) else "",
            events_url,
        )
        for event in events[:_ALARMS]
    ]
    if len(events) > _ALARMS:
        warnings.append(format_html('and <a href="{}">{} more alarms</a>', events_url, len(events) - _ALARMS))
    return warnings
