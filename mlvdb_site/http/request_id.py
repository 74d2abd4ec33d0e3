"""The id of a request: taken from the client or made here, in the answer, in every log line and in every error."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"
META = "HTTP_X_REQUEST_ID"
"""The header in a WSGI environment."""

_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch
_current: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Return the id of the request this thread is answering, empty outside of one."""
    return _current.get()


@contextmanager
def under_request_id(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the id of the request with this WSGI environment; in the block it is the current one."""
    given = meta.get(META)
    request_id = given if given is not None and _SANE(given) else os.urandom(16).hex()
    token = _current.set(request_id)
    try:
        yield request_id
    finally:
        _current.reset(token)


def lines_wanted() -> bool:
    """Return whether each request gets a line in the log."""
    return logger.isEnabledFor(logging.DEBUG)


class RequestIdMiddleware:
    """Outermost: whatever happens inside, the answer carries the id."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request under its id."""
        with under_request_id(request.META) as request_id:
            request.request_id = request_id  # type: ignore[attr-defined]
            response = self._timed(request) if lines_wanted() else self.get_response(request)
        response.headers[HEADER] = request_id
        return response

    def _timed(self, request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        response = self.get_response(request)
        took_ms = (time.perf_counter() - began) * 1000
        logger.debug(
            "request method=%s path=%r status=%d took_ms=%.2f",
            request.method,
            request.path_info,
            response.status_code,
            took_ms,
        )
        return response
