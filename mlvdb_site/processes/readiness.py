"""Waits for a node that is starting: asks `/readyz` through the supervisor's loop, without a thread."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable

from mlvdb_site.processes.supervisor import Supervisor

ASK_EVERY_S = 0.1
ASK_AFTER_ERROR_S = 1.0
ANSWER_WITHIN_S = 5.0
_READ_BYTES = 64 * 1024


class Readiness:
    """One question at a time to `/readyz`; `ready` turns true with the first 200, `progress` is what a 503 says."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, supervisor: Supervisor, *, host: str, port: int) -> None:
        self.supervisor = supervisor
        self.host = host
        self.port = port
        self.ready = False
        self.progress = "starting"
        self._socket: socket.socket | None = None
        self._received = b""
        self._next_at = 0.0

    def step(self) -> bool:
        """Ask if it is time to; return whether the node is ready. Call it again and again."""
        now = self.clock()
        if self._socket is None:
            if not self.ready and now >= self._next_at:
                self._ask()
        elif now - self._next_at > ANSWER_WITHIN_S:
            self.close()
        return self.ready

    def close(self, *, ask_again_s: float = ASK_EVERY_S) -> None:
        """Give the question up."""
        if self._socket is not None:
            self.supervisor.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._next_at = self.clock() + ask_again_s

    def _ask(self) -> None:
        self._next_at = self.clock()
        self._received = b""
        try:
            # A local address answers at once, or is in the listener's queue: connecting does not wait.
            self._socket = socket.create_connection((self.host, self.port), timeout=1.0)
            host = f"[{self.host}]" if ":" in self.host else self.host
            self._socket.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            self._socket.setblocking(False)
        except OSError:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._next_at = self.clock() + ASK_EVERY_S
            return
        self.supervisor.watch(self._socket.fileno(), selectors.EVENT_READ, self._on_answer)

    def _on_answer(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if data:
            return
        head, _, body = self._received.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        self.close(ask_again_s=ASK_EVERY_S if status == [b"503"] else ASK_AFTER_ERROR_S)
        self.ready = status == [b"200"]
        if not self.ready and status:
            self.progress = _progress(status[0].decode(errors="replace"), body)


def _progress(status: str, body: bytes) -> str:
    document: object = None
    with contextlib.suppress(ValueError):
        document = json.loads(body)
    if isinstance(document, dict):
        for key in ("percent", "progress"):
            if isinstance(document.get(key), (int, float)):
                return f"{document[key]:.0f} % of the data is mapped and replayed"
    return f"/readyz answers {status}"
