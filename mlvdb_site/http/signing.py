"""Signatures of requests between nodes: HMAC-SHA256 with the secret that the nodes of a cluster share. Pure.

Signed are the sender's id, the method, the path with its query, and the SHA-256 of the body; the body is checked when
it is read (`mlvdb_site.http.parsers.read_body`). There is no time and no counter in it: a node needs no clock to be
understood. A request that somebody recorded can be sent again; it can not be changed, and it does no harm, because
what nodes ask of each other is idempotent and fenced by term, epoch or position. A signature hides nothing: between
machines, TLS or a private network does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final
from urllib.parse import unquote_to_bytes

NODE_HEADER: Final = "X-MLVDB-Node"
DIGEST_HEADER: Final = "X-MLVDB-Content-SHA256"
SIGNATURE_HEADER: Final = "X-MLVDB-Signature"

NODE_PREFIX: Final = "/cluster/node/"
"""Paths below are for nodes only."""
ALIVE_PATH: Final = "/cluster/node/alive"

NO_BODY_SHA256: Final = hashlib.sha256(b"").hexdigest()

_VERSION = "v1"
_DIGEST = re.compile(r"[0-9a-f]{64}").fullmatch
_NODE = re.compile(r"[0-9a-f]{32}").fullmatch


class SignatureCheck(Enum):
    """What the signature of a request is worth. UNEXPECTED: there is one, and this node has no secret to check it."""

    ABSENT = "absent"
    VALID = "valid"
    WRONG = "wrong"
    UNEXPECTED = "unexpected"


def sign(secret: str, *, node: str, method: str, path_and_query: str, body_sha256: str) -> dict[str, str]:
    """Return the headers of a request from `node`; without a secret only the one that names the sender.

    `path_and_query` is the target as it is sent (how its path is percent-encoded does not matter), `body_sha256` the
    lower-case hexadecimal digest of the body (`NO_BODY_SHA256` for none).
    """
    if not secret:
        return {NODE_HEADER: node}
    path, _, query = path_and_query.partition("?")
    signature = _signature(secret, node, method, unquote_to_bytes(path), query.encode(), body_sha256)
    return {NODE_HEADER: node, DIGEST_HEADER: body_sha256, SIGNATURE_HEADER: f"{_VERSION}={signature}"}


def check_signature(secret: str, meta: Mapping[str, Any]) -> SignatureCheck:
    """Return what the signature in a WSGI environment is worth; the body's digest is still to be compared."""
    text = meta.get("HTTP_X_MLVDB_SIGNATURE")
    if text is None:
        return SignatureCheck.ABSENT
    if not secret:
        return SignatureCheck.UNEXPECTED
    version, _, given = text.partition("=")
    digest = meta.get("HTTP_X_MLVDB_CONTENT_SHA256", "")
    node = node_of(meta)
    if version != _VERSION or node is None or not _DIGEST(digest) or not _DIGEST(given):
        return SignatureCheck.WRONG
    # PEP 3333: the path comes percent-decoded, its bytes as Latin-1; the query as it was sent.
    path = (meta.get("SCRIPT_NAME", "") + meta.get("PATH_INFO", "")).encode("latin-1", "replace")
    query = meta.get("QUERY_STRING", "").encode("latin-1", "replace")
    expected = _signature(secret, node, meta["REQUEST_METHOD"], path, query, digest)
    return SignatureCheck.VALID if hmac.compare_digest(given, expected) else SignatureCheck.WRONG


def node_of(meta: Mapping[str, Any]) -> str | None:
    """Return the id of the node that a request says it comes from, None for a request of anything else."""
    node = meta.get("HTTP_X_MLVDB_NODE", "")
    return node if _NODE(node) else None


def body_digest(meta: Mapping[str, Any]) -> str:
    """Return the digest that the body of a signed request must have."""
    return str(meta.get("HTTP_X_MLVDB_CONTENT_SHA256", ""))


def _signature(secret: str, node: str, method: str, path: bytes, query: bytes, digest: str) -> str:
    head = f"mlvdb {_VERSION}\n{node}\n{method.upper()}\n{digest}\n".encode()
    # The lengths keep what is path apart from what is query: a decoded path may hold any byte.
    lengths = f"{len(path)} {len(query)}\n".encode()
    return hmac.new(secret.encode(), head + lengths + path + query, hashlib.sha256).hexdigest()
