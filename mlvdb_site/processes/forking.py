"""Children that are forked from the supervisor instead of started anew (Linux).

The supervisor has loaded everything the processes of a node need. A forked child shares that memory with all others
copy-on-write and is there in milliseconds. The rules that make it safe: no thread and no database connection in the
supervisor at the fork, nothing inherited stays open by accident, and the child never returns into the loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlvdb_site.processes import lifeline

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_FROM_BYTES = 1024 * 1024
_BODY_BYTES = 16 * 1024 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_OWN_HANDLERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def is_safe() -> bool:
    """Return whether children may be forked here: macOS kills processes that use its frameworks after a fork."""
    return sys.platform == "linux"


def limit_arenas() -> None:
    """Keep malloc to two arenas and large blocks out of them, in this process and in those forked from it.

    By default every request thread gets a heap of its own, which keeps what it once used, and blocks of up to 32 MB
    end up in it once such a one was freed. (A started process reads MALLOC_ARENA_MAX and MALLOC_MMAP_THRESHOLD_
    instead; C libraries without either ignore this.)
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM_BYTES)


def keep_memory_of_bodies() -> None:
    """Let malloc use the memory of one large body for the next one, in this process and in those forked from it.

    What is mapped anew for each of them is cleared page by page by the system: a quarter of a worker's processor time
    under a load of JSON. Up to 32 MB an arena stay; the rest goes back, and that too after a checkpoint
    (`vectors.runtime.release_memory`).
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _BODY_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def freeze() -> None:
    """Make what is loaded now permanent: collections in children leave it alone, so that its pages stay shared."""
    gc.collect()
    gc.freeze()


def fork_main(
    module: str,
    arguments: Sequence[str],
    *,
    name: str,
    environ: Mapping[str, str],
    descriptors: Sequence[int],
    output_fd: int,
    working_dir: Path,
    blocked: Sequence[signal.Signals],
) -> int:
    """Fork a child that runs `main(arguments)` of a module with its output to `output_fd`; return its process id."""
    from django.db import connections

    connections.close_all()
    if threading.active_count() != 1:
        raise RuntimeError(f"cannot fork beside threads: {threading.enumerate()}")
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        lifeline.die_with(parent)
        lifeline.name_process(f"mlvdb-{name}")
        signal.set_wakeup_fd(-1)
        for number in _OWN_HANDLERS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        _inherit_only(descriptors, output_fd)
        os.environ.update(environ)
        os.chdir(working_dir)
        sys.argv = [module, *arguments]
        importlib.import_module(module).main(arguments)
        code = 0
    except SystemExit as exit_request:
        code = _exit_code(exit_request)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            # The temporary directory of Celery's pool, for one; each finalizer runs in the process that made it only.
            multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: the frames below belong to the supervisor.
        os._exit(code)


def _inherit_only(descriptors: Sequence[int], output_fd: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    # Replaced rather than closed: the supervisor's objects, which this process still holds, must never close a
    # descriptor that got the number later.
    for entry in os.listdir("/proc/self/fd"):
        descriptor = int(entry)
        if descriptor > 2 and descriptor != nothing and descriptor not in descriptors:
            with contextlib.suppress(OSError):
                os.fstat(descriptor)
                os.dup2(nothing, descriptor, inheritable=False)


def _exit_code(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code
    print(request.code, file=sys.stderr)  # noqa: T201
    return 1
