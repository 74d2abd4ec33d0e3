"""Which scope a request needs, by its method and path. Pure; the table is documented in docs/access.md."""

from __future__ import annotations

READ, WRITE, OPERATE = "read", "write", "operate"

#: Open to everyone once keys exist: a load balancer has none.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
#: Pages with a login of their own, and files that hold no data.
OPEN_PREFIXES = ("/admin/", "/static/")

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_READ_POSTS = frozenset({"/search", "/search/batch", "/count", "/vectors/fetch"})
_DATA = frozenset({"vectors", "search", "count", "namespaces", "storage"})
_PICTURE_OF_NODE = frozenset({"metrics", "replication", "sharding", "cluster"})


def is_open(path: str) -> bool:
    """Return whether a node with keys answers `path` without one."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES) or path == "/admin"


def scopes_sufficient(method: str, path: str) -> tuple[str, ...]:
    """Return the scopes of which one suffices; empty: any key will do.

    Data is `read` and `write`. What the node and its cluster look like is for `read` and `operate` alike. Every change
    that is not of data is `operate`, so a route added later is closed until it is listed here.
    """
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    if method in _SAFE_METHODS:
        if first in _DATA:
            return (READ,)
        return (READ, OPERATE) if first in _PICTURE_OF_NODE else ()
    if method == "POST" and path in _READ_POSTS:
        return (READ,)
    return (WRITE,) if first in _DATA else (OPERATE,)
