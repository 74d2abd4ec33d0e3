"""Who asks for a change of the cluster, in the words of its history."""

from __future__ import annotations

from rest_framework.request import Request

from mlvdb_site.http.signing import node_of

LOCAL = "local"
"""The actor of a program on a node's own machine, where there is no key."""


def actor_of(request: Request) -> str:
    """Return the key, node or user that sent a request.

    A signature proves a node; without a secret its header is believed as far as the request itself is: it comes from
    this machine.
    """
    http = request._request
    key = getattr(http, "api_key", None)
    if key is not None:
        return f"key {key.name} ({key.prefix})"
    node = node_of(http.META)
    if node is not None and hasattr(http, "signed_digest"):
        return f"node {node}"
    user = request.user
    if user is not None and user.is_authenticated:
        return f"user {user.get_username()}"
    return LOCAL if node is None else f"node {node}"
