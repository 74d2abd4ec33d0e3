"""Connections that keep to the limits of a call: one deadline for all of it, and a budget for the bytes of the answer.

Time-outs of a socket hold for each of its reads: a peer that sends a byte now and then would never meet one. Here every
wait of a socket is bounded by what is left of the call, whoever above is reading: a status line, endless headers, a
body or a chunk's trailer. The limits of a call are those of its thread, since one thread carries a call from connecting
to the last byte. What breaks a limit is raised as a `PeerError` where it happens and passes through urllib3 and
requests as it is; the connection is closed on its way.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from cluster.transport.addresses import addresses
from cluster.transport.errors import PeerError, PeerGarbled, PeerRefused, PeerSilent

_HEAD_BYTES = 256 * 1024
_BEGIN = b"HTTP/"
_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN})
_PEERS = 256
_CONNECTIONS_OF_A_PEER = 64

_thread = threading.local()


class CallLimits:
    """What one call may take. `doubt` is called once when the answer is `doubt_after_s` late; the call goes on waiting.

    `fresh` asks for a connection that was not used before.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        answer_bytes: int,
        doubt_after_s: float,
        doubt: Callable[[], None],
    ) -> None:
        now = time.monotonic()
        self.url = url
        self.timeout_s = timeout_s
        self.deadline = now + timeout_s
        self.connect_timeout_s = connect_timeout_s
        self.answer_bytes = answer_bytes
        self.fresh = False
        self._nothing_yet = True
        self._bytes_left = answer_bytes + _HEAD_BYTES
        self._doubt_at = now + doubt_after_s if doubt_after_s < timeout_s else None
        self._doubt = doubt

    @property
    def left_s(self) -> float:
        """Seconds left; not above 0 when the time is over."""
        return self.deadline - time.monotonic()

    def wait_s(self) -> float:
        """Return how long a socket may wait now; raise PeerSilent when the time is over."""
        now = time.monotonic()
        if now >= self.deadline:
            raise PeerSilent(f"gave no complete answer within {self.timeout_s:.3g} s", url=self.url)
        if self._doubt_at is None:
            return self.deadline - now
        if now >= self._doubt_at:
            self._doubt_at = None
            self._doubt()
            return self.deadline - now
        return self._doubt_at - now

    def received(self, data: memoryview) -> None:
        """Look at bytes that came; raise PeerGarbled when they are more than an answer may have, or begin none."""
        if self._nothing_yet and len(data):
            self._nothing_yet = False
            begin = bytes(data[: len(_BEGIN)])
            # Said now: whoever speaks something else may never send the end of line that is waited for.
            if not _BEGIN.startswith(begin):
                raise PeerGarbled(f"answered something that is not HTTP: it begins with {begin!r}", url=self.url)
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise PeerGarbled(f"sent more than {self.answer_bytes} bytes in answer", url=self.url)

    def start_again(self) -> None:
        """Prepare for the second try, on a fresh connection; the deadline stays."""
        self.fresh = True
        self._nothing_yet = True
        self._bytes_left = self.answer_bytes + _HEAD_BYTES


@contextmanager
def limited(limits: CallLimits) -> Iterator[None]:
    """Apply limits to everything this thread sends and receives in the block."""
    _thread.limits = limits
    try:
        yield
    finally:
        _thread.limits = None


def peer_adapter() -> HTTPAdapter:
    """Return requests' adapter over such connections: no proxies, no retries of its own."""
    return _PeerAdapter(pool_connections=_PEERS, pool_maxsize=_CONNECTIONS_OF_A_PEER, max_retries=0)


class _LimitedWaits:
    """Mixed into a socket: no wait outlasts the call."""

    def recv_into(self, buffer: Any, *args: Any) -> int:
        limits = _limits()
        while True:
            self.settimeout(limits.wait_s())  # type: ignore[attr-defined]
            try:
                count: int = super().recv_into(buffer, *args)  # type: ignore[misc]
            except TimeoutError:
                continue
            limits.received(memoryview(buffer)[:count])
            return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        limits = _limits()
        with memoryview(data) as view, view.cast("B") as left:
            sent = 0
            while sent < len(left):
                self.settimeout(limits.wait_s())  # type: ignore[attr-defined]
                try:
                    sent += self.send(left[sent:], flags)  # type: ignore[attr-defined]
                except TimeoutError:
                    continue


class _PeerSocket(_LimitedWaits, socket.socket):
    pass


class _PeerTLSSocket(_LimitedWaits, ssl.SSLSocket):
    pass


class _Connecting:
    """Mixed into a connection: looks the name up and connects within the limits, and says what went wrong."""

    def _new_conn(self) -> socket.socket:
        limits = _limits()
        host: str = self.host.strip("[]")  # type: ignore[attr-defined]
        until = min(limits.deadline, time.monotonic() + limits.connect_timeout_s)
        failure: OSError | None = None
        try:
            candidates = addresses(host, self.port, timeout_s=until - time.monotonic())  # type: ignore[attr-defined]
        except TimeoutError:
            raise PeerSilent("could not be looked up in time", url=limits.url) from None
        except OSError as error:
            raise _not_connected(error, limits.url) from None
        for family, address in candidates:
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            try:
                return _connected(family, address, left_s)
            except OSError as error:
                failure = error
        if failure is None or isinstance(failure, TimeoutError):
            raise PeerSilent(f"took no connection within {limits.connect_timeout_s:.3g} s", url=limits.url)
        raise _not_connected(failure, limits.url)


class _PeerConnection(_Connecting, HTTPConnection):
    pass


class _PeerTLSConnection(_Connecting, HTTPSConnection):
    pass


class _FreshOnDemand:
    """Mixed into a pool: a call that asks for a fresh connection gets one in the place of a pooled one."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)  # type: ignore[misc]
        if _limits().fresh:
            connection.close()  # it connects again when it is used
        return connection


class _PeerPool(_FreshOnDemand, HTTPConnectionPool):
    ConnectionCls = _PeerConnection


class _PeerTLSPool(_FreshOnDemand, HTTPSConnectionPool):
    ConnectionCls = _PeerTLSConnection


class _PeerAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = _PeerTLSSocket
        super().init_poolmanager(*args, **options, ssl_context=context)
        self.poolmanager.pool_classes_by_scheme = {"http": _PeerPool, "https": _PeerTLSPool}


def _limits() -> CallLimits:
    limits: CallLimits | None = getattr(_thread, "limits", None)
    if limits is None:
        raise RuntimeError("a connection between nodes is used outside of a call")
    return limits


def _connected(family: socket.AddressFamily, address: Any, timeout_s: float) -> socket.socket:
    connection = _PeerSocket(family, socket.SOCK_STREAM)
    try:
        # Head and body of a request are two sends; the second must not wait for the acknowledgement of the first.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout_s)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _not_connected(error: OSError, url: str) -> PeerError:
    if error.errno in _OWN_FAULT:
        return PeerError(f"could not be tried: {_reason(error)}", url=url)
    return PeerRefused(f"cannot be reached: {_reason(error)}", url=url)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
