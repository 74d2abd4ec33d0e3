"""The pace of a move: as fast as it can while the node has little else to do, small steps with rests beside clients.

What comes in with a page has to be applied by whoever searches next, and holds the log while it is written. So a page
is what a client's request may have to wait for; beside clients it is a small one, and after it the move rests as long
as it worked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings

from mlvdb_site.http.metrics import requests_counted

_CLIENTS_ROUTES = ("search", "vectors", "count", "namespaces")
_BUSY_PER_S = 5.0
"""So many requests of clients a second are worth being waited for."""

_FIRST_LOOK_S = 0.05
_LOOK_EVERY_S = 0.25
_SMALL_SHARE = 32
"""A page beside clients is this part of MLVDB_MOVE_SLICE_BYTES."""

_SMALLEST_BYTES = 1024
_LONGEST_REST_S = 0.5


class Pace:
    """How much a move takes at once, and how long it rests then. For one thread."""

    timer: Callable[[], float] = staticmethod(time.monotonic)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self) -> None:
        self._looked_at = self.timer()
        self._seen = self._requests()
        # Until it is known: a move has a few things to do before its first page, and then it mostly is.
        self._is_gentle = True
        self._look_after_s = _FIRST_LOOK_S

    @property
    def is_gentle(self) -> bool:
        """Whether clients are at work on this node, as of a moment ago."""
        now = self.timer()
        passed_s = now - self._looked_at
        if passed_s >= self._look_after_s:
            seen = self._requests()
            self._is_gentle = (seen - self._seen) / passed_s >= _BUSY_PER_S
            self._seen, self._looked_at, self._look_after_s = seen, now, _LOOK_EVERY_S
        return self._is_gentle

    def page_bytes(self) -> int:
        """Return about how much the next page is to have."""
        most = int(settings.MLVDB_MOVE_SLICE_BYTES)
        return max(min(most, _SMALLEST_BYTES), most // _SMALL_SHARE) if self.is_gentle else most

    def rest(self, worked_s: float) -> None:
        """Leave the node to its clients for as long as a page took."""
        if self.is_gentle:
            self.sleep(min(worked_s, _LONGEST_REST_S))

    @staticmethod
    def _requests() -> float:
        return requests_counted(settings.NODE_FILES.metrics, routes=_CLIENTS_ROUTES)
