"""Threads that are at work against nodes until a context ends; the first error of any of them is the test's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

_LOOK_EVERY_S = 0.02


class AtWork:
    """A context manager: `jobs` run in a thread each from its beginning, until they see that `_stop` is set.

    The end of the context sets it, waits, and fails where a job has failed or is still there after `ends_within_s`.
    """

    def __init__(self, jobs: Iterable[Callable[[], None]], *, ends_within_s: float) -> None:
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._ends_within_s = ends_within_s
        self._threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self._ends_within_s)
        if exception[0] is None:
            assert not self.errors, self.errors[0]
            assert not [thread for thread in self._threads if thread.is_alive()], f"{type(self).__name__}: a job hangs"

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.errors.append(error)

    def _wait(self, condition: Callable[[], bool], *, timeout_s: float, missing: Callable[[], Any]) -> None:
        """Wait until a condition is true and no job has failed; say what is missing when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert not self.errors, self.errors[0]
            assert time.monotonic() < deadline, f"after {timeout_s:g} s: {missing()}"
            self._stop.wait(_LOOK_EVERY_S)
