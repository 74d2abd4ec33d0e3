"""A client's session: kept-alive connections, requests sent again where that is safe, the memory of its writes."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgpack
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, NewConnectionError

from vectors.client.errors import BadAnswer, ErrorAnswer, NoAnswer, error_of
from vectors.client.primary import MOST_HOPS, Primary
from vectors.client.retries import Retries, passes
from vectors.errors import InvalidInput
from vectors.tokens import Token, parse_token

CONNECT_TIMEOUT_S = 5.0
MSGPACK = "application/msgpack"

_CONNECTIONS = 64


class SessionTokens:
    """The newest position of each shard that this session has written to. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}

    def remember(self, seq: Mapping[str, str]) -> None:
        """Take in the `seq` of a write's answer; of two answers that crossed, the later position stays."""
        with self._lock:
            for label, text in seq.items():
                before = self._tokens.get(label)
                if before is None or _is_later(text, before):
                    self._tokens[label] = text

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tokens.clear()

    def header(self) -> str:
        """Return the value of X-MLVDB-Min-Seq, empty when nothing was written."""
        with self._lock:
            return ",".join(f"{label}:{text}" for label, text in self._tokens.items())

    def as_dict(self) -> dict[str, str]:
        """Return label → token."""
        with self._lock:
            return dict(self._tokens)


@dataclass(frozen=True, slots=True)
class Reply:
    """A good answer."""

    status: int
    headers: Mapping[str, str]
    data: Any


class Session:
    """Requests to one node, and writes to its primary where that is another. Thread-safe.

    A request is sent again after a passing failure, with growing pauses, as often as `retries` say; the last time over
    a connection of its own, in case the kept ones are what is broken.
    """

    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float, retries: Retries) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be like http://127.0.0.1:8000, got {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self.tokens = SessionTokens()
        self.primary = Primary(self.base_url)
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._lock = threading.Lock()
        self._connections: dict[str, requests.Session] = {}

    def close(self) -> None:
        """Close the connections."""
        for connections in self._connections.copy().values():
            connections.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        writes: bool = False,
        accepted: tuple[int, ...] = (),
    ) -> Reply:
        """Return the answer to a request, or raise a ClientError.

        `repeatable` says that doing it twice is the same as doing it once; otherwise it is sent again only when nothing
        can have happened. What `writes` goes to the primary: a replica refuses it and names that. Statuses in
        `accepted` are answers like a 2xx.
        """
        sent = {"Accept": MSGPACK, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = MSGPACK
        if self._api_key is not None:
            sent["Authorization"] = f"Bearer {self._api_key}"
        prepared = requests.Request(method, self.base_url, headers=sent, data=body).prepare()
        rest = f"{path}{'?' + urlencode(params) if params else ''}"
        attempt, hops = 1, 0
        while True:
            base_url = self.primary.url if writes else self.base_url
            # Set here, since preparing it would resolve an id that is `.` or `..` as a step in the path.
            prepared.url = f"{base_url}{rest}"
            error: ErrorAnswer | NoAnswer
            retry_after_s = None
            try:
                fresh = attempt > 1 and attempt == self._retries.attempts
                return self._once(base_url, prepared, accepted, fresh=fresh)
            except ErrorAnswer as refused:
                if writes and self.primary.follow(refused, asked=base_url) and hops < MOST_HOPS:
                    hops += 1
                    continue
                error, retry_after_s = refused, refused.retry_after_s
                may_repeat = passes(refused, repeatable=repeatable)
            except requests.RequestException as failed:
                error = NoAnswer(f"{method} {base_url}{path}: {_reason(failed)}")
                error.__cause__ = failed
                may_repeat = repeatable or _never_sent(failed)
                self.primary.forget(base_url)
            except BadAnswer:
                self.primary.forget(base_url)
                raise
            pause_s = self._retries.pause_s(attempt, retry_after_s=retry_after_s) if may_repeat else None
            if pause_s is None:
                raise error
            self.sleep(pause_s)
            attempt += 1

    def _once(
        self, base_url: str, prepared: requests.PreparedRequest, accepted: tuple[int, ...], *, fresh: bool
    ) -> Reply:
        connections = _new_connections(base_url) if fresh else self._connections_to(base_url)
        try:
            settings = connections.merge_environment_settings(base_url, {}, False, None, None)
            response = connections.send(
                prepared, timeout=(CONNECT_TIMEOUT_S, self._timeout_s), allow_redirects=False, **settings
            )
            return _reply(response, accepted)
        finally:
            if fresh:
                connections.close()

    def _connections_to(self, base_url: str) -> requests.Session:
        connections = self._connections.get(base_url)
        if connections is None:
            with self._lock:
                connections = self._connections.setdefault(base_url, _new_connections(base_url))
        return connections


def _new_connections(base_url: str) -> requests.Session:
    connections = requests.Session()
    # A proxy of the environment is for other machines; and a node in protected mode refuses what a proxy forwards.
    connections.trust_env = not _is_loopback(urlsplit(base_url).hostname or "")
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_CONNECTIONS)
    connections.mount("http://", adapter)
    connections.mount("https://", adapter)
    return connections


def _reply(response: requests.Response, accepted: tuple[int, ...]) -> Reply:
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    data: Any = None
    try:
        if media_type == MSGPACK:
            data = msgpack.unpackb(response.content, strict_map_key=False)
        elif media_type == "application/json":
            data = response.json()
        elif media_type.startswith("text/"):
            data = response.text
    except ValueError as error:
        raise BadAnswer(f"{response.status_code} with a body that is no {media_type}: {error}") from error
    if response.ok or response.status_code in accepted:
        return Reply(response.status_code, response.headers, data)
    error_answer = error_of(response.status_code, data, retry_after_s=_seconds(response.headers.get("Retry-After")))
    if error_answer is None:
        if response.status_code in (429, 502, 503, 504):
            # A proxy or balancer before the node, whose errors pass like the node's own.
            raise ErrorAnswer(
                f"answered by something before the node: {response.reason}",
                status=response.status_code,
                code="unavailable",
                retry_after_s=_seconds(response.headers.get("Retry-After")),
            )
        raise BadAnswer(f"{response.status_code} {response.reason}, not in the form of a node: {response.text[:200]!r}")
    raise error_answer


def _is_later(text: str, before: str) -> bool:
    try:
        new, old = parse_token(text), parse_token(before)
    except InvalidInput:
        # Another version's tokens: the last answer counts.
        return True
    return new.shard != old.shard or _position(new) > _position(old)


def _position(token: Token) -> tuple[int, int, int]:
    return token.epoch, token.term, token.seq


def _never_sent(error: requests.RequestException) -> bool:
    if isinstance(error, requests.ConnectTimeout):
        return True
    cause: Any = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if _never_sent(error):
        return "connection refused"
    return f"the connection broke ({error})"


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        # The HTTP-date form: nodes do not send it.
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
