"""Asking several copies for one answer: one after the other while they are late or fail, or all until enough said so.

Every call has the deadline of the request. Whoever is still under way when the answer is there ends in its own thread
(`cluster.routing.threads`), at that deadline at the latest, and nobody looks at what it brings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.routing.threads import CallThreads, PeerBusy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """One copy that may be asked. `call` takes the seconds it has and returns the answer or raises.

    `peer` is the URL of its node, empty for the copy here: that one is asked in the thread of the request.
    """

    name: str
    peer: str
    call: Callable[[float], T]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of an attempt: its answer, or its error."""

    name: str
    answer: T | None = None
    error: Exception | None = None


class NoAnswer(Exception):
    """Raised when no attempt brought an answer; `errors` has what each of those that ended said, in that order."""

    def __init__(self, errors: Sequence[tuple[str, Exception]]) -> None:
        super().__init__("; ".join(f"{name}: {error}" for name, error in errors) or "no answer in time")
        self.errors = list(errors)


@dataclass(slots=True)
class _Arrivals(Generic[T]):
    """The outcomes of calls under way, in the order in which they come."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    outcomes: list[Outcome[T]] = field(default_factory=list)

    def run(self, attempt: Attempt[T], timeout_s: float) -> None:
        """Make a call and note what became of it."""
        outcome: Outcome[T]
        try:
            outcome = Outcome(attempt.name, answer=attempt.call(timeout_s))
        except Exception as error:
            outcome = Outcome(attempt.name, error=error)
        self.note(outcome)

    def note(self, outcome: Outcome[T]) -> None:
        """Add an outcome."""
        with self.changed:
            self.outcomes.append(outcome)
            self.changed.notify_all()

    def next(self, number: int, *, until: float, clock: Callable[[], float]) -> Outcome[T] | None:
        """Wait for the outcome of that number, until a moment of the clock at the latest."""
        with self.changed:
            while len(self.outcomes) <= number:
                left = until - clock()
                if left <= 0:
                    return None
                self.changed.wait(left)
            return self.outcomes[number]


def first_answer(
    attempts: Sequence[Attempt[T]],
    *,
    deadline: float,
    hedge_after_s: float,
    is_final: Callable[[Exception], bool],
    threads: CallThreads,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome[T]:
    """Return the first answer of the attempts, asked in order: the next one when one fails, or is late.

    `deadline` is a moment of `clock`. An error for which `is_final` holds is an answer too (there is no such row), and
    is raised. Raise NoAnswer when every attempt failed, or the deadline passed.
    """
    if len(attempts) == 1:
        return _only_answer(attempts[0], deadline=deadline, is_final=is_final, clock=clock)
    arrivals: _Arrivals[T] = _Arrivals()
    errors: list[tuple[str, Exception]] = []
    waiting = list(attempts)
    seen = under_way = 0
    while waiting or under_way:
        now = clock()
        if now >= deadline:
            break
        if waiting:
            attempt = waiting.pop(0)
            try:
                _begin(attempt, arrivals, deadline - now, threads)
                under_way += 1
            except PeerBusy as error:
                errors.append((attempt.name, error))
                continue
        until = deadline
        if waiting:
            until = min(deadline, clock() + hedge_after_s)
        outcome = arrivals.next(seen, until=until, clock=clock)
        if outcome is None:
            continue
        seen += 1
        under_way -= 1
        if outcome.error is None:
            return outcome
        if is_final(outcome.error):
            raise outcome.error
        errors.append((outcome.name, outcome.error))
    raise NoAnswer(errors)


class Gathering(Generic[T]):
    """Asks every attempt at the same time, and hands out what becomes of each as it comes.

    The caller stops when it knows enough; those that are still under way then are left to end by themselves. A lone
    attempt is made in the calling thread.
    """

    def __init__(
        self,
        attempts: Sequence[Attempt[T]],
        *,
        deadline: float,
        threads: CallThreads,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arrivals: _Arrivals[T] = _Arrivals()
        self._deadline = deadline
        self._clock = clock
        self._seen = 0
        timeout_s = deadline - clock()
        self._asked = len(attempts) if timeout_s > 0 else 0
        for attempt in attempts[: self._asked]:
            if self._asked == 1:
                self._arrivals.run(attempt, timeout_s)
                return
            try:
                _begin(attempt, self._arrivals, timeout_s, threads)
            except PeerBusy as error:
                self._arrivals.note(Outcome(attempt.name, error=error))

    def next(self, *, within_s: float | None = None) -> Outcome[T] | None:
        """Return the next outcome; None when all are known, and when none comes in time: `within_s`, or the deadline
        where that is nearer."""
        if self._seen == self._asked:
            return None
        until = self._deadline if within_s is None else min(self._deadline, self._clock() + within_s)
        outcome = self._arrivals.next(self._seen, until=until, clock=self._clock)
        if outcome is not None:
            self._seen += 1
        return outcome


def _only_answer(
    attempt: Attempt[T], *, deadline: float, is_final: Callable[[Exception], bool], clock: Callable[[], float]
) -> Outcome[T]:
    timeout_s = deadline - clock()
    if timeout_s <= 0:
        raise NoAnswer([])
    try:
        return Outcome(attempt.name, answer=attempt.call(timeout_s))
    except Exception as error:
        if is_final(error):
            raise
        raise NoAnswer([(attempt.name, error)]) from error


def _begin(attempt: Attempt[T], arrivals: _Arrivals[T], timeout_s: float, threads: CallThreads) -> None:
    if attempt.peer:
        threads.start(attempt.peer, lambda: arrivals.run(attempt, timeout_s))
    else:
        arrivals.run(attempt, timeout_s)
