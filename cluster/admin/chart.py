"""The probes of a replica as a small picture: SVG inside the page, which needs no script and nobody's server. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from cluster.admin.wording import clock

_HEIGHT = 24
_LOWEST = 3
_SLOWEST_MS = 1000.0
_FAILED = "failed"


class Bar(NamedTuple):
    """One probe: when, whether it was answered as it should be, what the detector made of it, how long it took."""

    at: datetime
    ok: bool
    health: str
    took_ms: float
    error: str = ""


def health_chart(bars: Sequence[Bar], *, room: int, width: int) -> SafeString:
    """Return a picture of `bars`, oldest first, `width` pixels wide, with place for `room` of them.

    A bar is as high as its probe was slow (from 1 ms to 1 s, logarithmic), one that failed has the full height. The
    newest stands at the right edge. What it shows is told in words too.
    """
    if not bars:
        return format_html('<span class="no-chart">{}</span>', "no probe yet")
    drawn: dict[str, list[str]] = defaultdict(list)
    for x, bar in enumerate(bars, room - len(bars)):
        # One path for each colour: a page renews many of these pictures every two seconds.
        drawn[bar.health if bar.ok else _FAILED].append(f"M{x} {_HEIGHT}v-{_height(bar)}h.8v{_height(bar)}")
    words = _words(bars)
    return format_html(
        '<svg class="health-chart" role="img" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}"'
        ' preserveAspectRatio="none"><title>{}</title>{}</svg>',
        words,
        width,
        _HEIGHT,
        room,
        _HEIGHT,
        words,
        format_html_join(
            "", '<path class="probe probe-{}" d="{}"/>', ((name, "".join(paths)) for name, paths in drawn.items())
        ),
    )


def _height(bar: Bar) -> int:
    if not bar.ok:
        return _HEIGHT
    share = math.log10(max(1.0, min(bar.took_ms, _SLOWEST_MS))) / math.log10(_SLOWEST_MS)
    return _LOWEST + round(share * (_HEIGHT - 2 * _LOWEST))


def _words(bars: Sequence[Bar]) -> str:
    failed = [bar for bar in bars if not bar.ok]
    words = f"{len(bars)} probes from {clock(bars[0].at)} to {clock(bars[-1].at)}, {len(failed)} failed"
    if failed:
        return f"{words}, the last one at {clock(failed[-1].at)}: {failed[-1].error}"
    return f"{words}; the slowest took {max(bar.took_ms for bar in bars):.0f} ms"
