"""How much memory filters may keep: one budget a process, shared by the columns and masks of all runs of rows."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any


class _Entry:
    """A kept value, its place and its size. Compared by identity."""

    __slots__ = ("key", "nbytes", "shelf", "value")

    def __init__(self, shelf: Shelf, key: Hashable, value: Any, nbytes: int) -> None:
        self.shelf = shelf
        self.key = key
        self.value = value
        self.nbytes = nbytes


class ColumnBudget:
    """Keeps values up to `limit_bytes`, those used last; 0 keeps nothing, None everything.

    Each owner has a `Shelf`; when the owner is garbage, what is on its shelf is let go. Thread-safe.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._entries: OrderedDict[_Entry, None] = OrderedDict()
        self._orphans: deque[Shelf] = deque()

    @property
    def limit_bytes(self) -> int | None:
        """The limit."""
        return self._limit

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        with self._lock:
            self._sweep()
            return self._used

    def shelf(self, owner: object) -> Shelf:
        """Return a new shelf that lives as long as `owner`."""
        shelf = Shelf(self)
        weakref.finalize(owner, self._orphan, shelf).atexit = False
        return shelf

    def get(self, shelf: Shelf, key: Hashable) -> Any:
        """Return a kept value, now the last used, or None."""
        with self._lock:
            entry = shelf.entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(entry)
            return entry.value

    def put(self, shelf: Shelf, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep a value of that size if it fits, in the place of an earlier one of the key."""
        with self._lock:
            self._sweep()
            earlier = shelf.entries.get(key)
            if earlier is not None:
                self._remove(earlier)
            if self._limit is not None:
                if nbytes > self._limit or not self._limit:
                    return
                while self._used + nbytes > self._limit:
                    self._remove(next(iter(self._entries)))
            entry = shelf.entries[key] = _Entry(shelf, key, value, nbytes)
            self._entries[entry] = None
            self._used += nbytes

    def discard(self, shelf: Shelf, key: Hashable) -> None:
        """Let a value go."""
        with self._lock:
            entry = shelf.entries.get(key)
            if entry is not None:
                self._remove(entry)

    def _orphan(self, shelf: Shelf) -> None:
        # A finalizer may run inside any allocation, so this thread may hold the lock already: then the next put sweeps.
        self._orphans.append(shelf)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        while self._orphans:
            for entry in list(self._orphans.popleft().entries.values()):
                self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry]
        del entry.shelf.entries[entry.key]
        self._used -= entry.nbytes


class Shelf:
    """The values of one owner inside a budget."""

    def __init__(self, budget: ColumnBudget) -> None:
        self._budget = budget
        self.entries: dict[Hashable, _Entry] = {}

    @property
    def nbytes(self) -> int:
        """Bytes kept here."""
        return sum(entry.nbytes for entry in list(self.entries.values()))

    def get(self, key: Hashable) -> Any:
        """Return a kept value or None."""
        return self._budget.get(self, key)

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep a value if the budget allows."""
        self._budget.put(self, key, value, nbytes)

    def discard(self, key: Hashable) -> None:
        """Let a value go."""
        self._budget.discard(self, key)
