"""Heavy work that gives way to searches: it runs in a thread of its own, at a lower priority."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_NICE = 10

Result = TypeVar("Result")


def at_low_priority(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises.

    A priority once lowered cannot be raised again without privileges. On Linux it is that of a thread and of the
    threads it starts, so a thread that ends with the work leaves the process as it was; elsewhere it stays as it is.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            results.append(work())
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="low-priority", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
