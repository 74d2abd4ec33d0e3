"""An HTTP server on a raw socket that does to each request what the test wants: answer, cut, stay silent, pass on."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit

Step = Callable[[socket.socket, bytes], bool]
"""Takes the connection and a whole request; returns whether the connection stays open."""


def answer(status: int, body: Any = None, *, content_type: str = "application/json", **headers: str) -> Step:
    """Answer with a status and a body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Status", f"Content-Type: {content_type}", f"Content-Length: {len(content)}"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def step(connection: socket.socket, request: bytes) -> bool:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + content)
        return True

    return step


def error(status: int, code: str, **headers: str) -> Step:
    """Answer with an error in the node's shape."""
    body = {"error": {"code": code, "message": f"it is {code}", "field": "f", "detail": {"a": 1}}, "request_id": "r1"}
    return answer(status, body, **headers)


def cut(connection: socket.socket, request: bytes) -> bool:
    """Close the connection instead of answering."""
    return False


def half_an_answer(connection: socket.socket, request: bytes) -> bool:
    """Announce more than is sent, then close."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    return False


def silence(connection: socket.socket, request: bytes) -> bool:
    """Never answer; the client goes away first."""
    connection.settimeout(10)
    with contextlib.suppress(OSError):
        connection.recv(1)
    return False


def pass_on(url: str, *, keep_answer: bool = False) -> Step:
    """Send the request to a node, and its answer back, or nothing when the answer is kept."""
    parts = urlsplit(url)

    def step(connection: socket.socket, request: bytes) -> bool:
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as node:
            node.sendall(request)
            received = read_message(node)
        if keep_answer:
            return False
        connection.sendall(received)
        return True

    return step


def read_message(connection: socket.socket) -> bytes:
    """Return a request or answer with its body, empty at the end of the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class FaultServer:
    """Runs the steps in `steps` in turn, then `afterwards` for every further request."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.afterwards: Step = cut
        self.requests: list[bytes] = []
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listening.close()

    def then(self, *steps: Step) -> Self:
        """Add steps."""
        self.steps.extend(steps)
        return self

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while request := read_message(connection):
                with self._lock:
                    self.requests.append(request)
                    step = self.steps.popleft() if self.steps else self.afterwards
                try:
                    if not step(connection, request):
                        return
                except OSError:
                    return
