"""Curves of throughput over recall as a picture: SVG, written by hand, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from vectors.bench.measures import Measure

_WIDTH, _HEIGHT = 720, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 64, 56
_RECALL_MARKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_PERFECT = 0.9997
"""Where a recall of 1 stands: the scale, in misses, has no end."""

_COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#862e9c")
_INK, _FAINT = "#57606a", "#d0d7de"


def picture(measures: Sequence[Measure], *, title: str) -> str:
    """Return an SVG of all measures that are points of curves; raise ValueError where there are none.

    Across: recall, by the number of misses, logarithmic; upwards: searches per second, logarithmic.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for measure in measures:
        if measure.curve and measure.recall is not None:
            curves.setdefault(measure.curve, []).append((measure.recall, measure.per_s))
    if not curves:
        raise ValueError("there are no points of a curve")
    return "\n".join(_svg({name: sorted(points, key=_by_recall) for name, points in curves.items()}, title)) + "\n"


class _Scales:
    """Where recalls and rates lie in the picture."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        lowest = min(recall for recall, _rate in points)
        self.marks = [mark for mark in _RECALL_MARKS if mark >= lowest] or [_RECALL_MARKS[-1]]
        below = [mark for mark in _RECALL_MARKS if mark < lowest]
        self.marks = [*below[-1:], *self.marks]
        self._first, self._last = _misses(min(self.marks[0], lowest)), _misses(1.0)
        rates = [rate for _recall, rate in points]
        self._low = math.floor(2 * math.log10(min(rates) * 0.9)) / 2
        self._high = math.ceil(2 * math.log10(max(rates) * 1.1)) / 2

    def x(self, recall: float) -> float:
        """Return the place of a recall."""
        share = (_misses(recall) - self._first) / (self._last - self._first)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, rate: float) -> float:
        """Return the place of a rate."""
        share = (math.log10(rate) - self._low) / (self._high - self._low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def rates(self) -> Iterator[float]:
        """Yield the rates to mark: 1, 2 and 5 of each power of ten."""
        for power in range(math.floor(self._low), math.ceil(self._high) + 1):
            for step in (1, 2, 5):
                rate = step * 10.0**power
                if self._low <= math.log10(rate) <= self._high:
                    yield rate


def _by_recall(point: tuple[float, float]) -> tuple[float, float]:
    recall, rate = point
    return recall, -rate


def _misses(recall: float) -> float:
    return -math.log10(1.0 - min(recall, _PERFECT))


def _svg(curves: dict[str, list[tuple[float, float]]], title: str) -> Iterator[str]:
    scales = _Scales([point for points in curves.values() for point in points])
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    yield _text(_LEFT, 22, title, size=14, colour="#1f2328")
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for rate in scales.rates():
        y = scales.y(rate)
        yield f'<line x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="{_FAINT}"/>'
        yield _text(_LEFT - 8, y + 4, f"{rate:,.0f}" if rate >= 1 else f"{rate:g}", anchor="end")
    for mark, label in [*((mark, f"{mark:g}") for mark in scales.marks), (1.0, "1")]:
        x = scales.x(mark)
        yield f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}" stroke="{_FAINT}"/>'
        yield _text(x, bottom + 18, label, anchor="middle")
    yield _text((_LEFT + right) / 2, _HEIGHT - 14, "recall of the 10 nearest, measured", anchor="middle")
    middle = (_TOP + bottom) / 2
    yield _text(20, middle, "searches per second", anchor="middle", turned=True)
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{scales.x(recall)},{scales.y(rate)}" for recall, rate in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for recall, rate in points:
            yield (
                f'<circle cx="{scales.x(recall)}" cy="{scales.y(rate)}" r="3.5" fill="{colour}">'
                f"<title>{escape(name)}: {rate:,.0f}/s at {recall:.4f}</title></circle>"
            )
        place = _LEFT + 190 * number
        yield f'<line x1="{place}" y1="44" x2="{place + 22}" y2="44" stroke="{colour}" stroke-width="3"/>'
        yield _text(place + 28, 48, name)
    yield "</svg>"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = _INK, turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{turn}>'
        f"{escape(text)}</text>"
    )
