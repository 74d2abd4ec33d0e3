"""Killing a process before a line of its code: which lines a call runs, and the call in a process that dies there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from django.db import connection

Line = tuple[str, int]

_KILLED = 9


def lines_of(call: Callable[[], object], path: Path, *, traced: Collection[str]) -> list[Line]:
    """Return the distinct lines of the `traced` files that `call` runs, in the order in which they are first run.

    It runs in a process of its own, which writes them to `path`.
    """
    seen: dict[Line, None] = {}

    def run() -> None:
        _watched(call, seen.setdefault, traced)
        path.write_text("\n".join(f"{name}:{number}" for name, number in seen))

    assert _in_a_child(run) == 0
    return [(name, int(number)) for name, _, number in (line.rpartition(":") for line in path.read_text().split())]


def killed_at(call: Callable[[], object], line: Line, *, traced: Collection[str]) -> bool:
    """Run `call` in a process that is killed before `line`; return whether it came that far."""

    def die(found: Line) -> None:
        if found == line:
            os._exit(_KILLED)

    code = _in_a_child(lambda: _watched(call, die, traced))
    assert code in (0, _KILLED)
    return code == _KILLED


def _in_a_child(call: Callable[[], object]) -> int:
    """Run `call` in a forked process and return its exit code."""
    connection.close()
    child = os.fork()
    if not child:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _watched(call: Callable[[], object], at_line: Callable[[Line], object], traced: Collection[str]) -> None:
    """Run `call`, telling `at_line` (file, line number) before each line of the traced files, in whichever thread."""

    def trace(frame, event, argument):  # type: ignore[no-untyped-def]
        if frame.f_code.co_filename not in traced:
            return None
        if event == "line":
            at_line((frame.f_code.co_filename, frame.f_lineno))
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
