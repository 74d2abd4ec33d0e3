"""Back-off counted in sweeps: no clock is compared between processes, and a jumping one delays nothing."""

from __future__ import annotations

_QUICK_TRIES = 5
_SLOWEST_SWEEPS = 15


class Sweeps:
    """The sweeps of one process; what fails again and again is due in fewer and fewer of them."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> None:
        """Begin the next sweep."""
        self._number += 1

    def is_due(self, attempts: int) -> bool:
        """Whether what has failed so many times in a row is tried in this sweep."""
        return self._number % min(2 ** max(0, attempts - _QUICK_TRIES), _SLOWEST_SWEEPS) == 0
