"""Heavy work that gives way to searches: it runs in a thread of its own, at a lower priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

_NICE = 10

Result = TypeVar("Result")


class Started(Generic[Result]):
    """Work that goes on in its thread; `when_ended` is called there at the end, whatever became of it.

    A priority once lowered cannot be raised again without privileges. On Linux it is that of a thread and of the
    threads it starts, so a thread that ends with the work leaves the process as it was; elsewhere it stays as it is.
    """

    def __init__(self, work: Callable[[], Result], *, when_ended: Callable[[], None] = lambda: None) -> None:
        self._results: list[Result] = []
        self._errors: list[BaseException] = []
        # Neither is kept: what they hold, mapped files say, is let go at the end without a collector.
        self._thread = threading.Thread(target=self._run, args=(work, when_ended), name="low-priority", daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """Wait for the end; return what the work returned, or raise what it raised."""
        self._thread.join()
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _run(self, work: Callable[[], Result], when_ended: Callable[[], None]) -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._results.append(work())
        except BaseException as error:  # raised again where it is waited for
            self._errors.append(error)
        finally:
            when_ended()


def at_low_priority(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises."""
    return Started(work).result()
