"""When a request is sent again, and after which pause. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vectors.client.errors import ErrorAnswer
from vectors.client.primary import NOT_PRIMARY

#: Answered before anything was done, so even what must not happen twice may be sent again.
_NOTHING_DONE = frozenset({"busy", "checkpoint_behind", "storage_busy"})
#: Stays as it is until a person acts.
_LASTING = frozenset({"shard_damaged"})
_PASSING_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is tried and how long the pauses are.

    The pause before attempt i + 1 is drawn evenly from 0 to `first_s` · 2^i (full jitter), plus the Retry-After of the
    answer. An answer that asks for a longer pause than `longest_s` is not waited for.
    """

    attempts: int = 5
    first_s: float = 0.1
    longest_s: float = 10.0
    draw: Callable[[], float] = random.random

    def pause_s(self, attempt: int, *, retry_after_s: float | None = None) -> float | None:
        """Return the pause after failed attempt `attempt` (1 is the first), None when there is to be no other one."""
        if attempt >= self.attempts:
            return None
        jitter_s = self.draw() * min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))
        if retry_after_s is None:
            return jitter_s
        return retry_after_s + jitter_s if retry_after_s <= self.longest_s else None


def passes(error: ErrorAnswer, *, repeatable: bool) -> bool:
    """Return whether a request that was answered with `error` may be sent again with any hope.

    `repeatable`: doing it twice is the same as doing it once.
    """
    if error.code == NOT_PRIMARY:
        # Refused before anything was done. Nobody says who the primary is while another one is being made.
        return True
    if error.status not in _PASSING_STATUSES or error.code in _LASTING:
        return False
    return repeatable or error.code in _NOTHING_DONE
