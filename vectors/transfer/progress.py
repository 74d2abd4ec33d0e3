"""How far a long command is: a bar that redraws itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_S = 0.1
_LINE_S = 5.0
_BAR_WIDTH = 24


class Progress:
    """Rows done of a total (None: unknown), shown on `out`."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, out: TextIO, what: str, *, total: int | None, done: int = 0) -> None:
        self.done = done
        self._first = done
        self._out = out
        self._what = what
        self._total = total
        self._is_terminal = out.isatty()
        self._began = self._shown = self.timer()
        self._width = 0

    @property
    def took_s(self) -> float:
        """Seconds since the start."""
        return self.timer() - self._began

    @property
    def rows_per_s(self) -> float:
        """The mean rate since the start."""
        return (self.done - self._first) / max(self.took_s, 1e-9)

    def add(self, rows: int) -> None:
        """Count rows in, and show them when it is time."""
        self.done += rows
        now = self.timer()
        if now - self._shown < (_REDRAW_S if self._is_terminal else _LINE_S):
            return
        self._shown = now
        if self._is_terminal:
            self._draw(self._bar())
        else:
            self._out.write(f"{self._line()}\n")
            self._out.flush()

    def finish(self) -> None:
        """Take the bar away."""
        if self._is_terminal and self._width:
            self._draw("")
            self._out.write("\r")
            self._out.flush()

    def _line(self) -> str:
        rows = f"{self._what} {self.done:,}"
        if self._total:
            rows += f" of {self._total:,} rows ({100 * self.done // self._total} %)"
        else:
            rows += " rows"
        return f"{rows}, {self.rows_per_s:,.0f} rows/s{self._eta()}"

    def _bar(self) -> str:
        if not self._total:
            return self._line()
        filled = _BAR_WIDTH * self.done // self._total
        return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {self._line()}"

    def _eta(self) -> str:
        if not self._total or self.done <= self._first:
            return ""
        left_s = round((self._total - self.done) / self.rows_per_s)
        return f", {left_s // 60}:{left_s % 60:02d} left"

    def _draw(self, text: str) -> None:
        self._out.write("\r" + text.ljust(self._width))
        self._out.flush()
        self._width = len(text)
