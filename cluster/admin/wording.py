"""How the pages of the cluster write durations, positions and states."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.dateformat import format as date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cluster.states import CopyState, Membership, MovePhase, PeerHealth, ShardState

NOTHING = "–"

#: By type, since states of different types that have one word are equal.
_TONES: dict[type, dict[Any, str]] = {
    PeerHealth: {PeerHealth.ALIVE: "good", PeerHealth.SUSPECT: "warn", PeerHealth.DEAD: "bad"},
    CopyState: {
        CopyState.FOLLOWING: "good",
        CopyState.SYNCING: "busy",
        CopyState.QUARANTINED: "bad",
        CopyState.REFUSED: "bad",
    },
    Membership: {Membership.MEMBER: "good", Membership.JOINING: "busy", Membership.LEAVING: "warn"},
    MovePhase: {
        MovePhase.DONE: "good",
        MovePhase.COPYING: "busy",
        MovePhase.FOLLOWING: "busy",
        MovePhase.CLOSING: "busy",
        MovePhase.SWITCHING: "busy",
        MovePhase.CLEANING: "busy",
        MovePhase.REOPENING: "warn",
        MovePhase.UNDOING: "warn",
        MovePhase.FAILED: "bad",
    },
    ShardState: {
        ShardState.NEW: "busy",
        ShardState.ACTIVE: "good",
        ShardState.DRAINING: "warn",
        ShardState.REFUSED: "bad",
    },
}
_VERDICTS = {"equal": "good", "differs": "bad", "unknown": "warn"}


State = CopyState | Membership | MovePhase | PeerHealth | ShardState


def tone(state: State) -> str:
    """Return the colour of a state: good, busy, warn, bad or quiet."""
    return _TONES[type(state)].get(state, "quiet")


def badge(state: State) -> SafeString:
    """Return a state as a coloured word."""
    return word_badge(tone(state), getattr(state, "label", state.value))


def word_badge(tone: str, word: str) -> SafeString:
    """Return a word in a colour."""
    return format_html('<span class="badge badge-{}">{}</span>', tone, word)


def verdict_badge(verdict: str) -> SafeString:
    """Return the outcome of comparing contents as a coloured word."""
    return word_badge(
        _VERDICTS.get(verdict, "quiet"), {"": "never compared", "unknown": "not told"}.get(verdict, verdict)
    )


def paused_badge() -> SafeString:
    """Return the word for a replica to which nothing is sent."""
    return word_badge("warn", "paused")


def duration(seconds: float) -> str:
    """Return a duration in its largest sensible unit."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def since(moment: datetime | None, now: datetime) -> SafeString:
    """Return how long ago a moment was, with the moment itself when pointed at."""
    if moment is None:
        return format_html('<span class="since">{}</span>', "never")
    return format_html(
        '<time class="since" datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        clock(moment),
        duration((now - moment).total_seconds()),
    )


def clock(moment: datetime) -> str:
    """Return date and time in the site's time zone."""
    return date_format(timezone.localtime(moment), "Y-m-d H:i:s")


def admin_link(url: str) -> SafeString:
    """Return a link to another node's admin; the URL was told by a node, and only one of HTTP is made a link."""
    if not url.startswith(("http://", "https://")):
        return format_html("{}", url or NOTHING)
    return format_html('<a href="{}/admin/">{}</a>', url, url)


def position(term: int, seq: int) -> str:
    """Return (term, seq)."""
    return f"({term}, {seq:,})"


def share(part: float, whole: float) -> str:
    """Return a part of a whole in per cent; nothing of nothing is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(size_bytes: int) -> str:
    """Return a number of bytes in its largest sensible unit."""
    return filesizeformat(size_bytes)


def shortened(text: str, length: int) -> str:
    """Return a text of at most `length` letters; what does not fit is left out at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def json_block(value: object) -> SafeString:
    """Return a JSON value in lines."""
    return format_html('<pre class="json">{}</pre>', orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
