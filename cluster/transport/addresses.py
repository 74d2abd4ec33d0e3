"""Looking up the addresses of a peer with a deadline, which the C library's `getaddrinfo` does not have.

A lookup runs in a thread of its own; while it hangs, others that need the same name wait for the same thread, each to
its own deadline. Addresses are looked up anew for every connection: connections are kept, names may move.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

Address = tuple[socket.AddressFamily, Any]


class _Lookup:
    """A running lookup and what came of it."""

    def __init__(self, host: str, port: int) -> None:
        self.done = threading.Event()
        self.found: list[Address] = []
        self.error: OSError | None = None
        self._name = (host, port)

    def run(self) -> None:
        try:
            self.found = _resolved(*self._name)
        except OSError as error:
            self.error = error
        except UnicodeError as error:
            self.error = OSError(f"no host name: {error}")
        finally:
            with _lock:
                _running.pop(self._name, None)
            self.done.set()


_lock = threading.Lock()
_running: dict[tuple[str, int], _Lookup] = {}


def addresses(host: str, port: int, *, timeout_s: float) -> list[Address]:
    """Return the TCP addresses of a host, in the order to try them.

    Raise TimeoutError when they are not known in time, OSError (`socket.gaierror`) when there are none.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        if _is_numeric(family, host):
            return [(family, (host, port) if family == socket.AF_INET else (host, port, 0, 0))]
    with _lock:
        lookup = _running.get((host, port))
        if lookup is None:
            lookup = _Lookup(host, port)
            try:
                threading.Thread(target=lookup.run, name="lookup", daemon=True).start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error)) from None
            _running[host, port] = lookup
    if not lookup.done.wait(max(0.0, timeout_s)):
        raise TimeoutError(f"{host} was not looked up within {timeout_s:.3g} s")
    if lookup.error is not None:
        raise lookup.error
    return lookup.found


def _resolved(host: str, port: int) -> list[Address]:
    return [(family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_numeric(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return True


def _forget() -> None:
    """In a forked child there is no thread that would finish a lookup of its parent."""
    global _lock, _running
    _lock, _running = threading.Lock(), {}


os.register_at_fork(after_in_child=_forget)
