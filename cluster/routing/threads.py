"""Threads that call other nodes on behalf of a request, at most so many at a time for one peer.

A request that asks several nodes, or a second one because the first is late, does not wait for those it no longer
needs: their calls end in these threads, each at its own deadline. The bound for each peer keeps one that is slow or
stopped from taking the threads that the others need; a call beyond it is not queued but refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_IDLE = 8


class PeerBusy(Exception):
    """Raised when so many calls to a peer are under way already that another one would only wait behind them."""


class CallThreads:
    """The calling threads of one process; they are made as needed, and a few are kept.

    `on_idle` runs in a thread before it waits for its next call (to give up what it holds).
    """

    def __init__(self, *, per_peer: int, on_idle: Callable[[], object] = lambda: None) -> None:
        self._per_peer = per_peer
        self._on_idle = on_idle
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self._idle = 0
        self._calls: SimpleQueue[tuple[str, Callable[[], object]] | None] = SimpleQueue()

    def start(self, peer: str, call: Callable[[], object]) -> None:
        """Have `call` made in a thread, in the context of this one (the id of the request is in it); it must not raise.

        Raise PeerBusy when the peer has too many.
        """
        call = partial(copy_context().run, call)
        with self._lock:
            if self._under_way[peer] >= self._per_peer:
                raise PeerBusy(f"{peer} has not answered {self._per_peer} calls yet")
            self._under_way[peer] += 1
            needs_thread = self._idle == 0
            if not needs_thread:
                self._idle -= 1
        if needs_thread:
            thread = threading.Thread(target=self._run, args=(peer, call), name="peer-call", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._done(peer)
                raise PeerBusy(f"no thread can be started: {error}") from None
        else:
            self._calls.put((peer, call))

    def under_way(self, peer: str) -> int:
        """Return how many calls to a peer are under way."""
        with self._lock:
            return self._under_way[peer]

    def _run(self, peer: str, call: Callable[[], object]) -> None:
        while True:
            try:
                call()
            finally:
                self._done(peer)
            self._on_idle()
            with self._lock:
                if self._idle >= _IDLE:
                    return
                self._idle += 1
            following: Any = self._calls.get()
            peer, call = following
            del following

    def _done(self, peer: str) -> None:
        with self._lock:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]
