"""A load generator in a process of its own: `python -m vectors.bench.generator < plan.json > latencies.json`.

Standard library only, raw sockets and prepared requests: what it costs must not be taken for the node's time.
The plan is `{"host", "port", "requests": [base64, ..], "connections", "seconds"}`.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
import time
from collections.abc import Sequence

_RECEIVE_BYTES = 256 * 1024
_TIMEOUT_S = 60.0


class BadAnswer(RuntimeError):
    """Raised when an answer is not a 200."""


class Connection:
    """A kept-alive connection that takes whole requests and reads whole answers."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> None:
        """Send a request and read its answer; raise BadAnswer unless it is a 200 with a length."""
        self._socket.sendall(request)
        received = self._receive()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        head = received[:end].lower()
        place = head.find(b"content-length:")
        if b" 200 " not in head[:16] or place < 0:
            raise BadAnswer(received[:300].decode(errors="replace"))
        missing = int(head[place + 15 :].split(b"\r\n", 1)[0]) - (len(received) - end - 4)
        while missing > 0:
            missing -= len(self._receive())

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self) -> bytes:
        piece = self._socket.recv(_RECEIVE_BYTES)
        if not piece:
            raise BadAnswer("the node closed the connection")
        return piece


def generate(host: str, port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> list[float]:
    """Send requests in turn over some connections for some time; return the latency of each in seconds."""
    latencies: list[list[float]] = [[] for _ in range(connections)]
    errors: list[Exception] = []
    start = threading.Barrier(connections)

    def work(number: int) -> None:
        try:
            connection = Connection(host, port)
            connection.ask(requests[number % len(requests)])
            start.wait()
            deadline = time.perf_counter() + seconds
            turn = number
            while (began := time.perf_counter()) < deadline:
                connection.ask(requests[turn % len(requests)])
                latencies[number].append(time.perf_counter() - began)
                turn += connections
            connection.close()
        except Exception as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [latency for one in latencies for latency in one]


def main() -> None:
    """Read a plan, generate its load, and write the latencies."""
    plan = json.load(sys.stdin)
    requests = [base64.b64decode(text) for text in plan["requests"]]
    latencies = generate(plan["host"], plan["port"], requests, connections=plan["connections"], seconds=plan["seconds"])
    json.dump(latencies, sys.stdout)


if __name__ == "__main__":
    main()
