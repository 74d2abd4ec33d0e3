"""What a measurement is, how calls are timed, and the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RECALLS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""What the searches of a curve ask for, besides exact ones."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table; a column that does not apply is None. `curve` names the curve it is a point of."""

    what: str
    per_s: float
    unit: str
    p50_ms: float | None = None
    p99_ms: float | None = None
    recall: float | None = None
    curve: str = ""


def timed(call: Callable[[int], object], count: int, *, seconds: float) -> np.ndarray:
    """Call with 0 to `count` - 1, round and round, for some time; return what each call took, in seconds."""
    latencies = []
    began = now = time.perf_counter()
    turn = 0
    while now - began < seconds:
        call(turn % count)
        after = time.perf_counter()
        latencies.append(after - now)
        now = after
        turn += 1
    return np.array(latencies)


def searches(
    what: str, latencies: np.ndarray, *, seconds: float | None = None, recall: float | None = None, curve: str = ""
) -> Measure:
    """Return the line of some searches that followed one another, or took `seconds` side by side."""
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    per_s = len(latencies) / (float(latencies.sum()) if seconds is None else seconds)
    return Measure(what, per_s, "searches/s", float(p50), float(p99), recall, curve)


def table(measures: Sequence[Measure]) -> list[str]:
    """Return the lines of the table."""
    width = max(len(measure.what) for measure in measures)
    lines = [f"{'':{width}}  {'rate':>18}  {'p50 ms':>8}  {'p99 ms':>8}  {'recall':>6}"]
    for measure in measures:
        rate = f"{measure.per_s:,.0f} {measure.unit}"
        lines.append(
            f"{measure.what:{width}}  {rate:>18}  {_shown(measure.p50_ms, 2):>8}  {_shown(measure.p99_ms, 2):>8}"
            f"  {_shown(measure.recall, 3):>6}"
        )
    return lines


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
