"""URLs of nodes: the one form in which they are stored and compared, and this node's own.

Two spellings of one place (localhost, 127.0.0.1) stay two URLs; that they lead to one node is seen by the node id that
answers there.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

from mlvdb_site.processes.record import running_record
from vectors.errors import InvalidInput

_DEFAULT_PORTS = {"http": 80, "https": 443}
_WILDCARDS = frozenset({"0.0.0.0", "::", "[::]", ""})
_LONGEST = 255


def node_url(text: str, *, field: str = "replica_url") -> str:
    """Return the base URL of a node: lower-case scheme and host, no default port, nothing behind it.

    Raise InvalidInput for what cannot be one.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"{field} is not a URL: {error}", field=field) from None
    host = (parts.hostname or "").lower()
    whole = parts.scheme.lower() in _DEFAULT_PORTS and host and port != 0
    behind = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    is_name = not any(letter.isspace() or letter == "%" for letter in host)
    if not whole or behind or len(text) > _LONGEST or not is_name:
        raise InvalidInput(f"{field} must be the URL of a node, such as http://10.0.0.5:8000", field=field)
    if host in _WILDCARDS:
        raise InvalidInput(f"{field} must be a URL under which other nodes reach it, which {host} is not", field=field)
    scheme = parts.scheme.lower()
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}" if port in (None, _DEFAULT_PORTS[scheme]) else f"{scheme}://{name}:{port}"


def own_url() -> str:
    """Return the URL under which other nodes reach this one, as far as this node can know; empty where none can.

    MLVDB_ADVERTISE_URL, else what the `serve` that runs this node has recorded, else where the settings say it listens.
    A program that is a node itself (`cluster.library`) serves no HTTP, and has none.
    """
    if not settings.MLVDB_SERVES_HTTP:
        return ""
    if settings.MLVDB_ADVERTISE_URL:
        return node_url(settings.MLVDB_ADVERTISE_URL, field="MLVDB_ADVERTISE_URL")
    record = running_record(settings.NODE_FILES)
    if record is not None and record.advertise_url:
        return node_url(record.advertise_url, field="MLVDB_ADVERTISE_URL")
    host = settings.MLVDB_HOST
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.MLVDB_PORT}"


def check_own_url() -> str:
    """Return `own_url`; raise InvalidInput where this node listens on a wildcard address and nobody said its URL."""
    if settings.MLVDB_SERVES_HTTP and not settings.MLVDB_ADVERTISE_URL and settings.MLVDB_HOST in _WILDCARDS:
        raise InvalidInput(
            f"this node listens on {settings.MLVDB_HOST}, so others need to be told its URL: set MLVDB_ADVERTISE_URL "
            "(--advertise-url)",
            field="MLVDB_ADVERTISE_URL",
        )
    return own_url()
