"""A TCP proxy in front of a node that does to its link what networks and broken peers do; switched while it runs."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from tests.processes.node import free_port

_PIECE = 1 << 16
_TICK_S = 0.05
_SENDER = re.compile(rb"\r\nx-mlvdb-node: *([0-9a-f]+)", re.IGNORECASE)


class Fault(StrEnum):
    """What a link does. Nothing is lost on a held direction: what was sent arrives when the link is well again."""

    PASS = "pass"
    REFUSE = "refuse"  # connections are refused, open ones reset
    SILENT = "silent"  # connections are accepted, and nothing gets through
    SLOW = "slow"  # so many bytes per second in each direction of each connection
    LATE = "late"  # some requests take their time, each another: what was sent first need not be there first
    GARBAGE = "garbage"  # every request is answered with bytes that mean nothing; the node never sees it
    CUT_REQUESTS = "cut requests"  # what is sent to the node does not arrive; what it sends does
    CUT_ANSWERS = "cut answers"  # the node hears and acts, and its answers do not arrive
    RESET = "reset"  # connections are accepted, and reset at the first byte


@dataclass(eq=False)
class _Connection:
    """A client's connection, the one to the node behind it, and the id of the node that the client is, if it is one."""

    client: socket.socket
    node: socket.socket
    sender: str = ""

    def reset(self) -> None:
        """Reset both ends."""
        _reset(self.client)
        _reset(self.node)


class FaultProxy:
    """One link: listens on a port of its own and passes on to `target_port`, as far as its fault lets it.

    A fault holds for everybody, or for what one node (by its id) sends through the link and is answered.
    """

    def __init__(self, target_port: int) -> None:
        self.passed_bytes = 0
        self._target = ("127.0.0.1", target_port)
        self._fault = Fault.PASS
        self._fault_of: dict[str, Fault] = {}
        self._bytes_per_s = 0
        self._late, self._late_s = b"", 0.0
        self._random = random.Random(target_port)
        self._changed = threading.Condition()
        self._open: set[_Connection] = set()
        self._garbage = count()
        self._closed = False
        self._bound = _bound(free_port())
        self.port = int(self._bound.getsockname()[1])
        self._listen()

    @property
    def url(self) -> str:
        """The base URL of the node behind it."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, fault: Fault, *, bytes_per_s: int = 0, late_s: float = 0.0, late: bytes = b"") -> None:
        """Do this to everybody from now on, to open connections too.

        With LATE, requests that have the bytes `late` in them take up to `late_s`.
        """
        with self._changed:
            was, self._fault, self._bytes_per_s = self._fault, fault, bytes_per_s
            self._late, self._late_s = late, late_s
            self._changed.notify_all()
        if fault is Fault.REFUSE and was is not Fault.REFUSE:
            # A bound socket that does not listen refuses, and keeps the port.
            self._unlisten()
            self._bound = _bound(self.port)
        elif was is Fault.REFUSE and fault is not Fault.REFUSE:
            self._listen()
        if fault in (Fault.REFUSE, Fault.RESET):
            self.reset_all()

    def set_for(self, sender: str, fault: Fault) -> None:
        """Do this to what the node with this id sends, whatever holds for the others; REFUSE is not possible."""
        with self._changed:
            self._fault_of[sender] = fault
            self._changed.notify_all()

    def heal(self) -> None:
        """Pass everything on."""
        with self._changed:
            self._fault_of.clear()
        self.set(Fault.PASS)

    @contextlib.contextmanager
    def faulty(self, fault: Fault, *, bytes_per_s: int = 0, late_s: float = 0.0, late: bytes = b"") -> Iterator[None]:
        """Do this within the context, and pass everything on afterwards."""
        self.set(fault, bytes_per_s=bytes_per_s, late_s=late_s, late=late)
        try:
            yield
        finally:
            self.heal()

    def reset_all(self) -> None:
        """Reset every open connection."""
        with self._changed:
            victims, self._open = self._open, set()
            self._changed.notify_all()
        for victim in victims:
            victim.reset()

    def close(self) -> None:
        """End it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._unlisten()
        self.reset_all()

    def _listen(self) -> None:
        self._bound.listen(128)
        # Closing a socket does not wake the thread that accepts on it, and its port is taken as long as that waits.
        self._bound.settimeout(_TICK_S)
        self._accepting = threading.Thread(target=self._accept_on, args=(self._bound,), daemon=True)
        self._accepting.start()

    def _unlisten(self) -> None:
        with contextlib.suppress(OSError):
            self._bound.shutdown(socket.SHUT_RDWR)
        self._bound.close()
        self._accepting.join()

    def _accept_on(self, listening: socket.socket) -> None:
        while not self._closed:
            try:
                client, _address = listening.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.setblocking(True)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            node = socket.create_connection(self._target, timeout=5)
        except OSError:
            _reset(client)
            return
        node.settimeout(None)
        for end in (client, node):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, node)
        with self._changed:
            self._open.add(connection)
        threading.Thread(target=self._pump, args=(connection, node, client), daemon=True).start()
        self._pump(connection, client, node)

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        """Pass one direction of a connection on until either end is gone."""
        is_request = source is connection.client
        try:
            while data := source.recv(_PIECE):
                if is_request and not connection.sender and (named := _SENDER.search(data)):
                    connection.sender = named[1].decode()
                if not self._deliver(connection, data, sink, is_request=is_request):
                    break
        except OSError:
            pass
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _deliver(self, connection: _Connection, data: bytes, sink: socket.socket, *, is_request: bool) -> bool:
        """Do with data what the fault says; return whether the connection goes on."""
        while data:
            with self._changed:
                while self._holds(connection, is_request=is_request):
                    self._changed.wait()
                if self._closed or connection not in self._open:
                    return False
                fault, rate = self._fault_for(connection), self._bytes_per_s
            if fault is Fault.RESET:
                connection.reset()
                return False
            if fault is Fault.GARBAGE:
                if is_request:
                    connection.client.sendall(self._some_garbage())
                return is_request
            if fault is Fault.LATE and is_request and self._late in data:
                # This is the fault itself, not a wait for something: each request takes a time of its own on its way.
                time.sleep(self._random.uniform(0.0, self._late_s))
            piece = data if fault is not Fault.SLOW else data[: max(1, int(rate * _TICK_S))]
            sink.sendall(piece)
            self.passed_bytes += len(piece)
            data = data[len(piece) :]
            if fault is Fault.SLOW:
                with self._changed:
                    self._changed.wait(_TICK_S)
        return True

    def _fault_for(self, connection: _Connection) -> Fault:
        return self._fault_of.get(connection.sender, self._fault)

    def _holds(self, connection: _Connection, *, is_request: bool) -> bool:
        if self._closed or connection not in self._open:
            return False
        cut = Fault.CUT_REQUESTS if is_request else Fault.CUT_ANSWERS
        return self._fault_for(connection) in (Fault.SILENT, cut)

    def _some_garbage(self) -> bytes:
        """Return by turns noise, and an answer in good form whose body is noise."""
        noise = os.urandom(200)
        if next(self._garbage) % 2:
            return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n" + noise
        return noise


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Closing with this throws away what is unsent and sends RST; the shutdown wakes the thread that reads.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD)
    end.close()
