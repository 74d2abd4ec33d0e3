"""The client between nodes: what every request from one node to another goes through.

A call is signed, has one deadline for everything (looking up the name, connecting, sending, the last byte of the
answer), a limit for the size of the answer, and a clear error (`cluster.transport.errors`) for each way it can fail. It
follows no redirect and knows no proxy. Connections are kept and reused. A call that loses its connection is tried once
more, on a fresh one, when it is idempotent: a kept connection may have been closed by the peer in the meantime. What
is not idempotent gets a fresh connection at once, and one try. Nothing else is tried again here; those who call have
better reasons to.
"""

from __future__ import annotations

import http.client
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import orjson
import requests
from django.apps import apps
from django.conf import settings
from django.db import connections
from django.utils.module_loading import import_string
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from cluster.transport.connections import CallLimits, limited, peer_adapter
from cluster.transport.errors import PeerError, PeerGarbled, PeerLost, PeerRefused, PeerSilent
from cluster.transport.messages import (
    BINARY,
    JSON,
    PeerAnswer,
    failure,
    is_base_url,
    read_json,
    rejection,
    request_to,
)
from cluster.transport.silence import Outcome, SilenceBook
from mlvdb_site.http.signing import ALIVE_PATH, NODE_HEADER, NODE_PREFIX

logger = logging.getLogger(__name__)

_ALIVE_BYTES = 1024

_refused_hooks: list[Callable[[str], None]] = []


@cache
def _app_hooks() -> tuple[Callable[[str], None], ...]:
    """Return the hooks that the app names; looked up at the first refusal, since they load half of the cluster."""
    return tuple(import_string(name) for name in cast(Any, apps.get_app_config("cluster")).refused_hooks)


def on_refused(hook: Callable[[str], None]) -> None:
    """Have `hook(base URL)` called, in the calling thread, whenever a peer takes no connection (PeerRefused)."""
    if hook not in _refused_hooks:
        _refused_hooks.append(hook)


class PeerClient:
    """Calls to other nodes; safe to use from any number of threads. Use the process's own: `peer_client()`."""

    def __init__(self) -> None:
        self._adapter: HTTPAdapter = peer_adapter()
        self._silence = SilenceBook(self._probe)

    def call(
        self,
        base_url: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = BINARY,
        accept: str = "*/*",
        timeout_s: float | None = None,
        idempotent: bool = True,
        even_if_silent: bool = False,
        max_answer_bytes: int | None = None,
    ) -> PeerAnswer:
        """Return a peer's answer of 2xx to one request.

        `path` begins with a slash and includes the query, both percent-encoded. `timeout_s` (MLVDB_PEER_TIMEOUT_S) is
        for the whole call, the second try included. `even_if_silent` asks also a peer that is known to be silent: for
        probes and for background work that has nobody waiting. Raise PeerRejected for an answer that is an error of the
        peer, and the other errors of `cluster.transport.errors`.
        """
        base_url = base_url.rstrip("/")
        if self._silence.is_silent(base_url) and not even_if_silent:
            raise PeerSilent(
                f"has not answered for {self._silence.silent_s(base_url):.1f} s and was not asked",
                url=base_url,
                waited=False,
            )
        if not is_base_url(base_url):
            # A primary that is a program without HTTP is a member like another, and one that is never reached.
            raise PeerRefused("is not the URL of a node" if base_url else "the node has no URL", url=base_url)
        limits = CallLimits(
            base_url,
            timeout_s=settings.MLVDB_PEER_TIMEOUT_S if timeout_s is None else timeout_s,
            connect_timeout_s=settings.MLVDB_PEER_CONNECT_TIMEOUT_S,
            answer_bytes=settings.MLVDB_PEER_ANSWER_BYTES if max_answer_bytes is None else max_answer_bytes,
            doubt_after_s=settings.MLVDB_PROBE_TIMEOUT_S,
            doubt=lambda: self._silence.doubt(base_url),
        )
        try:
            answer = self._tried(limits, request_to(base_url, method, path, body, content_type, accept), idempotent)
        except PeerSilent:
            self._silence.doubt(base_url)
            raise
        except PeerRefused:
            self._silence.heard(base_url)
            _tell_refused(base_url)
            raise
        except PeerGarbled:
            self._silence.heard(base_url)
            raise
        self._silence.heard(base_url)
        if 200 <= answer.status < 300:
            if path.startswith(NODE_PREFIX) and NODE_HEADER not in answer.headers:
                raise PeerGarbled("answers, but not as a node of MLVectorDB", url=base_url)
            return answer
        raise rejection(base_url, answer)

    def json(
        self,
        base_url: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        timeout_s: float | None = None,
        idempotent: bool = True,
        even_if_silent: bool = False,
    ) -> dict[str, Any]:
        """Send `json` as a body (None: no body) and return the object that is answered, empty for an empty answer.

        Raise what `call` raises, and PeerGarbled for an answer that is no JSON object.
        """
        answer = self.call(
            base_url,
            method,
            path,
            body=None if json is None else orjson.dumps(json),
            content_type=JSON,
            accept=JSON,
            timeout_s=timeout_s,
            idempotent=idempotent,
            even_if_silent=even_if_silent,
        )
        return read_json(base_url, answer)

    def is_silent(self, base_url: str) -> bool:
        """Whether calls to a peer fail at once because it has been silent."""
        return self._silence.is_silent(base_url.rstrip("/"))

    def close(self) -> None:
        """Close the kept connections."""
        self._adapter.close()

    def _tried(self, limits: CallLimits, request: requests.PreparedRequest, idempotent: bool) -> PeerAnswer:
        # What must not be done twice is not sent over a connection that the peer may just be closing.
        limits.fresh = not idempotent
        with limited(limits):
            try:
                return self._once(limits, request)
            except PeerLost as lost:
                if not idempotent or limits.left_s <= 0:
                    raise
                logger.debug("peer_lost_once url=%s error=%s", limits.url, lost.message)
            limits.start_again()
            try:
                return self._once(limits, request)
            except PeerRefused as refused:
                # The peer ended in between: what it was asked first, it may have done.
                refused.may_be_done = True
                raise

    def _once(self, limits: CallLimits, request: requests.PreparedRequest) -> PeerAnswer:
        try:
            # All other waits are bounded by the sockets themselves; this time-out is for a TLS handshake.
            handshake_s = max(0.001, min(limits.connect_timeout_s, limits.left_s))
            response = self._adapter.send(request, stream=True, timeout=handshake_s)
            try:
                return self._read(limits, response)
            finally:
                # Back into the pool when all of it was read, closed otherwise.
                response.close()
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise failure(error, limits) from None

    def _read(self, limits: CallLimits, response: requests.Response) -> PeerAnswer:
        raw = response.raw
        headers = response.headers
        announced = headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > limits.answer_bytes:
            raise PeerGarbled(f"announced {announced} bytes in answer", url=limits.url)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise PeerGarbled("answered in a compressed form that nobody asked for", url=limits.url)
        body = raw.read(decode_content=False)
        if len(body) > limits.answer_bytes:
            raise PeerGarbled(f"sent more than {limits.answer_bytes} bytes in answer", url=limits.url)
        return PeerAnswer(response.status_code, headers, body)

    def _probe(self, base_url: str) -> Outcome:
        try:
            self.call(
                base_url,
                "GET",
                ALIVE_PATH,
                timeout_s=settings.MLVDB_PROBE_TIMEOUT_S,
                even_if_silent=True,
                max_answer_bytes=_ALIVE_BYTES,
            )
        except PeerSilent:
            return "silent"
        except PeerError as error:
            # The root itself is this node's own trouble.
            return "unknown" if type(error) is PeerError else "answers"
        finally:
            # A refusal is told to others, who may have written it down: in a thread that no request ever ends.
            connections.close_all()
        return "answers"


_client: PeerClient | None = None


def peer_client() -> PeerClient:
    """Return the client of this process, made on first use: connections and threads do not survive a fork."""
    global _client
    if _client is None:
        # Two threads may both make one here; the first to store it wins, and the other holds no connection yet.
        _client = _client or PeerClient()
    return _client


def _tell_refused(base_url: str) -> None:
    for hook in (*_app_hooks(), *_refused_hooks):
        try:
            hook(base_url)
        except Exception:
            # What somebody makes of the refusal must not hide the refusal itself.
            logger.exception("refused_hook_failed url=%s", base_url)


def _forget_parent() -> None:
    global _client
    _client = None


os.register_at_fork(after_in_child=_forget_parent)
