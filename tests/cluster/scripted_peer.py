"""A peer that does exactly what a test says, byte by byte: for all that no real node would do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

NODE_ID = "0123456789abcdef" * 2


class Request:
    """A request as it came: method, target, headers (lower-case names) and body."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.target, self.headers, self.body = method, target, headers, body


class Connection:
    """One accepted connection; `number` counts from 0."""

    def __init__(self, sock: socket.socket, number: int, peer: ScriptedPeer) -> None:
        self.sock, self.number, self.peer = sock, number, peer
        self._rest = b""

    def request(self) -> Request | None:
        """Read one request; None when the client has hung up."""
        while b"\r\n\r\n" not in self._rest:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            self._rest += piece
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            self._rest += piece
        body, self._rest = self._rest[:length], self._rest[length:]
        request = Request(method, target, headers, body)
        self.peer.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def answer(self, body: bytes = b"{}", *, status: int = 200, headers: str = "") -> None:
        """Answer as a node does."""
        self.send(
            f"HTTP/1.1 {status} X\r\nX-MLVDB-Node: {NODE_ID}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def drip(self, data: bytes, every_s: float = 0.03) -> None:
        """Send byte after byte until the test is over."""
        for byte in data:
            if self.peer.closing.wait(every_s):
                return
            self.send(bytes([byte]))

    def hold(self) -> None:
        """Say nothing until the test is over."""
        self.peer.closing.wait(30)


class ScriptedPeer:
    """Listens on a free port and runs `script` on each connection, each in a thread of its own."""

    def __init__(self, script: Callable[[Connection], None], *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.closing = threading.Event()
        self.script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End everything."""
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            self._open.append(sock)
            threading.Thread(target=self._run, args=(sock, number), daemon=True).start()

    def _run(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            self.script(Connection(sock, number, self))
            sock.close()


def answers_everything(connection: Connection) -> None:
    """Answer each request with its own body."""
    while (request := connection.request()) is not None:
        connection.answer(request.body)
