"""Which node takes this session's writes: the one it was made for, until a replica names its primary."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from vectors.client.errors import ErrorAnswer

NOT_PRIMARY = "not_primary"
MOST_HOPS = 3
"""How often one request is sent on: a node may name one that has been replaced itself."""


class Primary:
    """Where writes are sent. Thread-safe.

    It is remembered until that node cannot be reached or names another; then `base_url` is asked again.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._lock = threading.Lock()
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The base URL for the next write."""
        return self._url or self._base_url

    def follow(self, error: ErrorAnswer, *, asked: str) -> str | None:
        """Return where to send a write that `asked` has refused, and remember it; None when nobody says where.

        From https never to http: the request may carry a key.
        """
        url = primary_url(error.detail) if error.code == NOT_PRIMARY else None
        if url is None or url == asked or (asked.startswith("https:") and not url.startswith("https:")):
            if error.code == NOT_PRIMARY:
                self.forget(asked)
            return None
        with self._lock:
            self._url = url
        return url

    def forget(self, url: str) -> None:
        """Forget a primary that cannot be reached, or is none any more."""
        with self._lock:
            if self._url == url:
                self._url = None


def primary_url(detail: Mapping[str, object]) -> str | None:
    """Return the URL in the detail of a `not_primary` error, None when there is none."""
    url = detail.get("primary_url")
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    return url.rstrip("/") if parts.scheme in ("http", "https") and parts.hostname else None
