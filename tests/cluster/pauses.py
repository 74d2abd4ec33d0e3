"""Requests that wait, met at the moment when they begin to."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import pytest


class _Clock:
    """In the place of a module's `time`: something happens when it first sleeps; `pauses` are what it slept."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, do: Callable[[], None]) -> None:
        self.pauses: list[float] = []
        self._do = do

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        if len(self.pauses) == 1:
            self._do()


def on_first_pause(monkeypatch: pytest.MonkeyPatch, module: ModuleType, do: Callable[[], None]) -> list[float]:
    """Have something happen when a request first waits in a module, which does not sleep then; return its pauses."""
    clock = _Clock(do)
    monkeypatch.setattr(module, "time", clock)
    return clock.pauses
