"""Who is silent: peers that accept and say nothing are waited for once, not by every request.

One late answer proves nothing: a digest takes minutes, a search may have been given five milliseconds. So lateness only
raises a doubt, and a doubt is settled by asking the peer for `/cluster/node/alive`, which costs it next to nothing:

1. A call that is late by MLVDB_PROBE_TIMEOUT_S, or has timed out, *doubts* its peer. Calls go on as before.
2. A prober asks. Any answer, or a refusal, clears the peer: whoever refuses is not waited for either.
3. No answer in time: the peer is *silent*. Calls to it fail at once with PeerSilent, except those that are made to find
   out (`even_if_silent`). The prober asks again every second, and the first answer to anyone clears the peer.

The book is each process's own, and its probers are threads that end when there is nobody left to ask.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger(__name__)

PROBE_EVERY_S = 1.0
_PROBERS = 8
"""Probes of different peers under way at a time; each takes MLVDB_PROBE_TIMEOUT_S at most."""
IDLE_S = 5.0
"""How long a prober waits for more to do before it ends."""

Outcome = Literal["answers", "silent", "unknown"]
"""What came of a probe; `unknown`: this node could not ask."""


class SilenceBook:
    """The doubted and the silent peers of this process, by base URL, and the threads that ask them.

    `probe` asks a peer whether it answers; it must return within a bounded time.
    """

    def __init__(
        self, probe: Callable[[str], Outcome], *, every_s: float = PROBE_EVERY_S, idle_s: float = IDLE_S
    ) -> None:
        self._probe = probe
        self._every_s = every_s
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._doubted: set[str] = set()
        self._silent: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []
        self._probers = 0

    def is_silent(self, url: str) -> bool:
        """Whether calls to a peer should fail at once."""
        # Without the lock: one look at a dictionary, in every call.
        return url in self._silent

    def silent_s(self, url: str) -> float:
        """Return for how many seconds a peer has been known as silent, 0 when it is not."""
        since = self._silent.get(url)
        return 0.0 if since is None else time.monotonic() - since

    def doubt(self, url: str) -> None:
        """Have a peer asked, now, unless it is being asked already."""
        with self._changed:
            if url in self._doubted or url in self._silent:
                return
            self._doubted.add(url)
            self._ask_at(time.monotonic(), url)

    def heard(self, url: str) -> None:
        """Clear a peer that has just answered, whatever it answered."""
        if url not in self._doubted and url not in self._silent:
            return
        with self._changed:
            self._doubted.discard(url)
            was_silent = self._silent.pop(url, None) is not None
        if was_silent:
            logger.info("peer_heard_again url=%s", url)

    def _ask_at(self, moment: float, url: str) -> None:
        heapq.heappush(self._due, (moment, url))
        if self._probers < min(_PROBERS, len(self._due)):
            try:
                threading.Thread(target=self._run, name="prober", daemon=True).start()
            except RuntimeError as error:
                # No thread to be had. Whoever is called here waits for this peer as for any other.
                logger.warning("peer_not_probed url=%s error=%s", url, error)
                self._doubted.discard(url)
                self._silent.pop(url, None)
                return
            self._probers += 1
        self._changed.notify()

    def _run(self) -> None:
        try:
            while (url := self._next()) is not None:
                try:
                    outcome = self._probe(url)
                except Exception:
                    logger.exception("peer_probe_failed url=%s", url)
                    outcome = "unknown"
                self._settle(url, outcome)
        finally:
            with self._changed:
                self._probers -= 1

    def _next(self) -> str | None:
        """Wait for the next peer to ask, None when there was nothing to do for a while."""
        with self._changed:
            idle_until = time.monotonic() + self._idle_s
            while True:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    url = heapq.heappop(self._due)[1]
                    if url in self._doubted or url in self._silent:
                        return url
                    continue
                if not self._due and now >= idle_until:
                    return None
                until = self._due[0][0] if self._due else idle_until
                self._changed.wait(until - now)

    def _settle(self, url: str, outcome: Outcome) -> None:
        if outcome == "answers":
            self.heard(url)
            return
        with self._changed:
            if url in self._doubted:
                self._doubted.discard(url)
                if outcome == "silent":
                    self._silent[url] = time.monotonic()
                    logger.warning("peer_silent url=%s", url)
            # Cleared by another's call meanwhile: that answer is newer than this silence.
            if url in self._silent:
                self._ask_at(time.monotonic() + self._every_s, url)
