"""The lines of the children: all of them to `<data-dir>/logs/<name>.log`, warnings and errors to the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TextIO

LOG_BYTES = 10 * 1024 * 1024
LOG_GENERATIONS = 3


class Show(Enum):
    """Which lines of a child go to the terminal besides its log."""

    NOTHING = "nothing"
    SERIOUS = "serious"  # warnings, errors, tracebacks
    EVERYTHING = "everything"


_SERIOUS = re.compile(rb"\b(WARNING|ERROR|CRITICAL|FATAL)\b")
_LEVEL_WITHIN = 120
_LEVEL = re.compile(rb"\b(DEBUG|INFO|NOTICE|WARNING|ERROR|CRITICAL|FATAL)\b")
_LINE_LIMIT = 64 * 1024


class RotatingLog:
    """A log file that is moved aside to `.1` … `.3` as it reaches 10 MiB."""

    def __init__(self, path: Path, *, limit_bytes: int = LOG_BYTES, generations: int = LOG_GENERATIONS) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self.generations = generations
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append; a disk that is full costs log lines, not the node."""
        with contextlib.suppress(OSError):
            if self._size + len(data) > self.limit_bytes and self._size:
                self._rotate()
            self._size += self._file.write(data) or 0

    def tail(self, lines: int) -> str:
        """Return the last lines of the current file."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self.generations, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        self._file = self.path.open("ab", buffering=0)
        self._size = 0


class ChildOutput:
    """The reading end of one child's stdout and stderr; cut into lines, logged, and shown where they matter."""

    def __init__(self, name: str, log: RotatingLog, *, print_line: Callable[[str, str], None], show: Show) -> None:
        self.name = name
        self.log = log
        self.show = show
        self._print_line = print_line
        self._rest = b""
        self._serious = False

    def feed(self, data: bytes) -> None:
        """Take what the child wrote, in pieces of any size."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        if lines:
            self.log.write(b"\n".join(lines) + b"\n")
        for line in lines:
            if self.show is Show.EVERYTHING or (self.show is Show.SERIOUS and self._matters(line)):
                self._print_line(self.name, line.decode(errors="replace"))

    def finish(self) -> None:
        """Take the end of the output."""
        if self._rest:
            self.feed(b"\n")

    def _matters(self, line: bytes) -> bool:
        # The lines of a traceback follow the line that carries the level; the next line with a level ends it.
        if _LEVEL.search(line[:_LEVEL_WITHIN]):
            self._serious = _SERIOUS.search(line[:_LEVEL_WITHIN]) is not None
        elif line.startswith(b"Traceback (most recent call last)"):
            self._serious = True
        return self._serious


class Terminal:
    """What the person who runs `serve` sees; one line per event, flushed, and never a reason to stop."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def line(self, text: str) -> None:
        """Print one line of the supervisor's own."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text + "\n")
            self.stream.flush()

    def child_line(self, name: str, text: str) -> None:
        """Print one line of a child, named."""
        self.line(f"{name:>11} | {text}")

    def plain_line(self, _name: str, text: str) -> None:
        """Print one line of a child that speaks to the person itself."""
        self.line(text)
