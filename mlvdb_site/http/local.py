"""Protected mode: what a request must be for a node without API keys to answer it (API §7). Pure.

A node without keys trusts programs of its own machine and nothing else. The connection must come from loopback. That
alone lets in every web page open in a browser of this machine, so the host that the request names must be a loopback
name (against a foreign name rebound to 127.0.0.1), and a request that tells where it comes from must come from the
node itself. A proxy on this machine would lend its loopback address to the world: what was forwarded is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OWN_FETCH_SITES = frozenset({"same-origin", "none"})
# Searched for in all names at once: with the process's own environment there are a hundred of them in each request.
_FORWARDING = re.compile(r"\n(HTTP_(?:X_FORWARDED|FORWARDED|X_REAL_IP|VIA)[^\n]*)")


class TrustedProxies:
    """The addresses and networks of MLVDB_TRUSTED_PROXIES; raises ValueError for what is neither."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(entry, strict=False) for entry in entries)

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def refusal(meta: Mapping[str, Any], *, proxies: TrustedProxies, hosts: frozenset[str] = frozenset()) -> str | None:
    """Return why protected mode refuses a request, None when it answers it.

    `meta` is the WSGI environment. `hosts` are further names that a trusted proxy may pass on in `Host`.
    """
    address = meta.get("REMOTE_ADDR", "")
    trusted = address in proxies
    if not trusted:
        if not is_loopback(address):
            return f"the connection comes from {address or 'an unknown address'}, not from this machine"
        forwarding = _FORWARDING.search("\n" + "\n".join(meta))
        if forwarding is not None:
            return f"a proxy has forwarded it ({forwarding[1][5:].replace('_', '-').title()}), and is not trusted"
    host = meta.get("HTTP_HOST")
    if host is None:
        return "it has no Host header"
    name = host_name(host)
    if name not in LOOPBACK_NAMES and not (trusted and name in hosts):
        return f"its Host {host!r} is not a name of this machine"
    origin = meta.get("HTTP_ORIGIN")
    if origin is not None:
        schemes = ("http", "https") if trusted else (meta.get("wsgi.url_scheme", "http"),)
        if origin.lower() not in [f"{scheme}://{host.lower()}" for scheme in schemes]:
            return f"its Origin {origin!r} is a foreign one"
    site = meta.get("HTTP_SEC_FETCH_SITE")
    if site is not None and site.strip().lower() not in _OWN_FETCH_SITES:
        return f"another site made it (Sec-Fetch-Site: {site})"
    return None


@lru_cache(maxsize=64)
def is_loopback(address: str) -> bool:
    """Return whether an address is this machine's own: 127.0.0.0/8, ::1, or the first mapped into IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


@lru_cache(maxsize=64)
def host_name(host: str) -> str:
    """Return the name in a Host header, lower-case and without port; empty when it has no proper form."""
    name, bracket, rest = host.lower().partition("]")
    if bracket:
        name += bracket
    else:
        name, colon, rest = name.partition(":")
        rest = colon + rest
    if rest and not (rest[0] == ":" and rest[1:].isascii() and rest[1:].isdigit()):
        return ""
    return name
