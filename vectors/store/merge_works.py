"""The steps of a merge run that are at work side by side, on segments of which none is in two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from vectors.store.low_priority import Started
from vectors.store.merge_plan import Step
from vectors.store.merge_steps import Made


@dataclass(slots=True, eq=False)
class Work:
    """A step at work; `began` is by the monotonic clock."""

    step: Step
    began: float
    started: Started[Made] | None = field(default=None, repr=False)

    def result(self) -> Made:
        """Wait for what it has made; raise what it has raised."""
        assert self.started is not None
        return self.started.result()


class Works:
    """Up to `at_once` works, which share as many threads."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._running: list[Work] = []
        self._ended: SimpleQueue[Work] = SimpleQueue()

    @property
    def are_running(self) -> bool:
        """Whether there are any, ended ones that were not taken yet included."""
        return bool(self._running)

    @property
    def have_room(self) -> bool:
        """Whether another one may begin."""
        return len(self._running) < self._at_once

    @property
    def busy(self) -> frozenset[str]:
        """The segments, by uid, that they are about."""
        return frozenset(segment.uid for work in self._running for segment in work.step.segments)

    def threads(self) -> int:
        """Return how many threads each of them may use now."""
        return max(1, self._at_once // max(1, len(self._running)))

    def begin(self, step: Step, make: Callable[[], Made], *, now: float) -> None:
        """Start a step in a thread of its own, at low priority."""
        work = Work(step, now)
        self._running.append(work)
        work.started = Started(make, when_ended=lambda: self._ended.put(work))

    def take_ended(self, *, within_s: float) -> Work | None:
        """Return one that has ended, waiting for it so long; None where none does, and at once where none is there."""
        if not self._running:
            return None
        try:
            work = self._ended.get(timeout=within_s)
        except Empty:
            return None
        self._running.remove(work)
        return work

    def abandon(self) -> None:
        """Wait for all that are at work and remove what they have written."""
        for work in self._running:
            try:
                work.result().discard()
            except Exception:  # nothing was made then, and another error is on its way
                continue
        self._running.clear()
