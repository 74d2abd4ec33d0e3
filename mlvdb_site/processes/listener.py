"""The listening socket of a node, held by the supervisor while web servers come and go.

Connections that arrive while a killed web server is being replaced wait in the queue instead of being refused, all
web workers accept from the one queue, and a port in use is known before anything else is started.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

LISTEN_VARIABLE = "MLVDB_LISTEN_FD"
BACKLOG = 1024


class AddressRefused(RuntimeError):
    """Raised when the address cannot be bound; the message is for the person at the terminal."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`, not inherited by default; raise AddressRefused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise AddressRefused(f"host {host} is no address of this machine: {error.strerror}") from None
    listening = socket.socket(family, kind, protocol)
    try:
        # A node that is restarted must not wait for old connections to time out.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit this. An answer leaves in two writes, head and body, and with Nagle's algorithm
        # the second would wait for the client's delayed acknowledgement: 40 ms a request.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if isinstance(error, PermissionError):
            raise AddressRefused(f"port {port} needs more rights than this user has") from None
        if error.errno == errno.EADDRINUSE:
            raise AddressRefused(f"port {port} on {host} is in use by another program (--port chooses one)") from None
        raise AddressRefused(f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from None
    listening.setblocking(False)
    return listening


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`: every address it stands for is a loopback address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def is_wildcard(host: str) -> bool:
    """Return whether `host` stands for every address of the machine."""
    return host in ("0.0.0.0", "::", "")


def url_of(host: str, port: int) -> str:
    """Return the base URL that reaches `host` from this machine."""
    if is_wildcard(host):
        host = "[::1]" if host == "::" else "127.0.0.1"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"
