"""A client that costs next to nothing: prepared requests over raw sockets, so that what is timed is the server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def prepared(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    content_type: str = "application/json",
    accept: str = "application/json",
    node: str = "",
) -> bytes:
    """Return the bytes of an HTTP/1.1 request that keeps its connection; `node` sends it as a node with that id."""
    sender = f"X-MLVDB-Node: {node}\r\n" if node else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n{sender}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Wire:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a prepared request; return status and body."""
        self._socket.sendall(request)
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._receive()
        head = data[:end].lower()
        start = head.find(b"content-length:") + 15
        stop = head.find(b"\r\n", start)
        length = int(head[start : stop if stop > 0 else None])
        body = [data[end + 4 :]]
        have = len(body[0])
        while have < length:
            body.append(self._receive())
            have += len(body[-1])
        whole = b"".join(body)
        self._rest = whole[length:]
        return int(data[9:12]), whole[:length]

    def _receive(self) -> bytes:
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed the connection")
        return piece


@dataclass(frozen=True)
class Load:
    """What a load run saw: requests per second and latencies in ms."""

    per_s: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"{self.per_s:,.0f}/s (p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms)"


def run(port: int, requests: Sequence[bytes], *, clients: int, seconds: float = 0.0, expect: int = 200) -> Load:
    """Ask from `clients` connections: every request once, or round and round for `seconds`."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    failures: list[str] = []
    barrier = threading.Barrier(clients + 1)
    deadline = [0.0]

    def client(number: int) -> None:
        wire = Wire(port)
        mine = requests[number::clients]
        barrier.wait()
        try:
            while True:
                for request in mine:
                    began = time.perf_counter()
                    status, body = wire.ask(request)
                    ended = time.perf_counter()
                    if status != expect:
                        failures.append(f"{status}: {body[:300]!r}")
                        return
                    latencies[number].append(ended - began)
                    if seconds and ended > deadline[0]:
                        return
                if not seconds:
                    return
        except OSError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    deadline[0] = time.perf_counter() + seconds
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failures:
        raise RuntimeError(f"{len(failures)} clients failed, the first with {failures[0]}")
    everything = sorted(value for part in latencies for value in part)
    return Load(
        len(everything) / took,
        1000 * everything[len(everything) // 2],
        1000 * everything[min(len(everything) - 1, int(0.99 * len(everything)))],
    )


def json_request(method: str, path: str, document: object) -> bytes:
    """Return a prepared request with a JSON body."""
    return prepared(method, path, json.dumps(document).encode())


def timed(call: Callable[[], object], *, times: int) -> float:
    """Return the median seconds of a call."""
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return sorted(samples)[len(samples) // 2]
