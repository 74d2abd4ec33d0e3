"""What goes from node to node and comes back: requests as they are sent, and what answers and failures say."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import orjson
import requests
from django.conf import settings
from requests.structures import CaseInsensitiveDict

from cluster.transport.connections import CallLimits
from cluster.transport.errors import PeerError, PeerGarbled, PeerLost, PeerRejected, PeerSilent
from mlvdb_site.http.request_id import HEADER as REQUEST_ID_HEADER
from mlvdb_site.http.request_id import current_request_id
from mlvdb_site.http.signing import NO_BODY_SHA256, NODE_PREFIX, sign

EPOCH_HEADER = "X-MLVDB-Epoch"
JSON = "application/json"
BINARY = "application/octet-stream"

_LONGEST_CODE = 64
_LONGEST_MESSAGE = 2000


class PeerAnswer(NamedTuple):
    """An answer as it came, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def epoch(self) -> int | None:
        """The epoch the peer is at, None where the answer does not say."""
        text = self.headers.get(EPOCH_HEADER, "")
        return int(text) if text.isascii() and text.isdigit() else None


def shard_path(uid: str, what: str, **query: str | int) -> str:
    """Return the path, with its query, of what a node does about its copy of a shard."""
    path = f"{NODE_PREFIX}shards/{quote(uid, safe='')}/{what}"
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


@lru_cache(maxsize=1024)
def is_base_url(base_url: str) -> bool:
    """Return whether a URL (without a slash at its end) leads to a node: http or https, a host, and nothing else."""
    try:
        parts = urlsplit(base_url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.path
    except ValueError:
        return False


def request_to(
    base_url: str, method: str, path: str, body: bytes | None, content_type: str, accept: str
) -> requests.PreparedRequest:
    """Return the request as it will be sent.

    Prepared by hand: requests would look for proxies, cookies and credentials in the environment for each call.
    """
    secret: str = settings.MLVDB_CLUSTER_SECRET
    digest = "" if not secret else NO_BODY_SHA256 if not body else hashlib.sha256(body).hexdigest()
    headers = {
        "Accept": accept,
        "Accept-Encoding": "identity",
        "User-Agent": "mlvectordb-node",
        **sign(secret, node=settings.MLVDB_NODE_ID, method=method, path_and_query=path, body_sha256=digest),
    }
    request_id = current_request_id()
    if request_id:
        headers[REQUEST_ID_HEADER] = request_id
    if body is not None:
        headers["Content-Type"] = content_type
    if body is not None or method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = str(len(body or b""))
    request = requests.PreparedRequest()
    request.method = method
    request.url = base_url + path
    request.headers = CaseInsensitiveDict(headers)
    request.body = body
    request.hooks = {}
    return request


def read_json(base_url: str, answer: PeerAnswer) -> dict[str, Any]:
    """Return the object in an answer's body, empty where there is none; raise PeerGarbled for anything else."""
    if not answer.body:
        return {}
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError as error:
        raise PeerGarbled(f"answered no JSON: {error}", url=base_url) from None
    if type(document) is not dict:
        raise PeerGarbled("answered JSON that is no object", url=base_url)
    return document


def rejection(base_url: str, answer: PeerAnswer) -> PeerError:
    """Return the error for an answer that is not 2xx."""
    if 300 <= answer.status < 400:
        return PeerGarbled(f"answered a redirect ({answer.status}), which nodes do not follow", url=base_url)
    try:
        error = orjson.loads(answer.body)["error"]
        code, message, field, detail = error["code"], error["message"], error["field"], error["detail"]
        if not (
            isinstance(code, str)
            and isinstance(message, str)
            and isinstance(field, str | None)
            and isinstance(detail, dict)
        ):
            raise TypeError("not the one error shape")
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return PeerGarbled(f"answered {answer.status}, but not as a node of MLVectorDB", url=base_url)
    wait = answer.headers.get("Retry-After", "")
    return PeerRejected(
        url=base_url,
        peer_status=answer.status,
        peer_code=code[:_LONGEST_CODE],
        peer_message=message[:_LONGEST_MESSAGE],
        peer_field=field,
        peer_detail=detail,
        retry_after_s=float(wait) if wait.isascii() and wait.isdigit() else None,
    )


def failure(error: Exception, limits: CallLimits) -> PeerError:
    """Return what an error of the layers below says about the peer."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, (requests.Timeout, TimeoutError)):
            return PeerSilent(f"gave no complete answer within {limits.timeout_s:.3g} s", url=limits.url)
    # A chunk size that is no number comes as an incomplete read, with the ValueError behind it.
    broken = any(type(cause) is ValueError for cause in causes)
    for cause in causes if not broken else ():
        if isinstance(cause, (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead)):
            return PeerLost(f"closed the connection before its answer was complete: {cause!r}", url=limits.url)
    return PeerGarbled(f"answered something that is not HTTP as a node speaks it: {causes[-1]!r}"[:400], url=limits.url)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what lies behind it: libraries wrap errors as cause, context, argument or reason."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or any(current is other for other in seen):
            continue
        seen.append(current)
        yield current
        inner = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        waiting.extend(item for item in inner if isinstance(item, BaseException))
