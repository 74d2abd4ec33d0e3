"""Nobody outlives the process that started it, whichever way that ends.

On Linux the kernel sends SIGKILL to a child whose parent dies (prctl(2), PR_SET_PDEATHSIG; kept across exec, not
across fork, so every generation asks for itself). Elsewhere a thread in each of our Python processes waits for the end
of a pipe that only the supervisor can write to, and `keeper` does so for programs that are not ours.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

LIFELINE_VARIABLE = "MLVDB_LIFELINE_FD"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_prctl: Callable[..., int] | None = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def kernel_ends_children() -> bool:
    """Return whether the kernel ends the children of a dead parent (Linux)."""
    return _prctl is not None


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies; end at once if it already has.

    Between fork and exec, or first thing in the child. "Parent" is the thread that forked: fork from the main thread.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        # The parent died before the request was made: nobody will send the signal any more.
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they are seen and reaped (Linux)."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_process(name: str) -> None:
    """Give this process the name that `top` and `ps -o comm` show (Linux; 15 bytes)."""
    if _prctl is not None:
        _prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def hold_on(parent_pid: int | None = None) -> None:
    """Bind this forked or executed Python process to its parent; call it first thing in every one of ours.

    `parent_pid` is the process that forked this one; None for a child of the supervisor, which on Linux is bound
    before it gets here.
    """
    if _prctl is not None:
        if parent_pid is not None:
            die_with(parent_pid)
        return
    watched: list[int] = []
    if os.environ.get(LIFELINE_VARIABLE):
        watched.append(int(os.environ[LIFELINE_VARIABLE]))
    parent = multiprocessing.parent_process()
    if parent is not None and isinstance(parent.sentinel, int):
        watched.append(parent.sentinel)
    if watched:
        threading.Thread(target=end_after, args=(watched,), name="lifeline", daemon=True).start()


def end_after(descriptors: list[int]) -> None:
    """Wait until one of the pipes ends, then end this process."""
    readable: list[int] = []
    while not readable:
        try:
            readable = select.select(descriptors, [], [])[0]
        except (OSError, ValueError):
            # Not inherited here (spawned, not forked): the other pipe, or the parent's own end, has to do.
            descriptors = [descriptor for descriptor in descriptors if _is_open(descriptor)]
            if not descriptors:
                return
    os.kill(os.getpid(), signal.SIGKILL)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
