"""Copies on other nodes: asked through `/cluster/node/shards/<uid>/read`, which answers from its own copy alone."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgpack
from django.conf import settings

from cluster.query_processor.reading import Read
from cluster.transport import wire
from cluster.transport.client import PeerAnswer, peer_client
from cluster.transport.errors import PeerGarbled, PeerRejected
from vectors import errors
from vectors.errors import MLVectorDBError
from vectors.query_processor import Answer, RequestOptions
from vectors.store.log import Position

CONTENT_TYPE = "application/msgpack"
POSITION = "position"
"""The operation that answers where a copy is, and nothing else."""


class CopyPosition(NamedTuple):
    """Where a copy is, what it has promised, and which epoch its node knows."""

    position: Position
    promised_term: int
    epoch: int


def remote_position(url: str, cluster: str, shard_uid: str, *, timeout_s: float) -> CopyPosition:
    """Ask a copy where it is. Raise the errors of `cluster.transport`."""
    answer = _call(url, cluster, shard_uid, msgpack.packb({"op": POSITION}), timeout_s)
    try:
        found = msgpack.unpackb(answer.body)
        position = Position(int(found["term"]), int(found["seq"]))
        return CopyPosition(position, int(found["promised_term"]), answer.epoch or 0)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise PeerGarbled(f"answered no position: {error!r}", url=url) from None


def remote_read(
    url: str,
    cluster: str,
    shard_uid: str,
    read: Read,
    options: RequestOptions,
    at_least: Position | None,
    *,
    timeout_s: float,
) -> Answer[Any]:
    """Have a copy answer a read within `timeout_s`.

    `at_least` is what its log must have. Raise the errors of `cluster.transport`, and those of `vectors.errors` that
    are the answer: a 4xx of the peer, which any other copy would give as well.
    """
    body = wire.read_request(read.operation, read.arguments, options, at_least)
    try:
        answer = _call(url, cluster, shard_uid, body, timeout_s)
    except PeerRejected as rejected:
        raise domain_error(rejected) or rejected from rejected
    try:
        return wire.answer_of(read.operation, answer.body)
    except ValueError as error:
        raise PeerGarbled(f"answered nothing that can be read: {error}", url=url) from None


def domain_error(rejected: PeerRejected) -> MLVectorDBError | None:
    """Return the error that a peer's refusal of a read is to this node's client; None when it is about the peer."""
    made = _BY_CODE.get(rejected.peer_code)
    if made is None or not 400 <= rejected.peer_status < 500 or made.status != rejected.peer_status:
        return None
    return made(rejected.peer_message, field=rejected.peer_field, detail=rejected.peer_detail)


def _call(url: str, cluster: str, shard_uid: str, body: bytes, timeout_s: float) -> PeerAnswer:
    query = urlencode({"cluster": cluster})
    return peer_client().call(
        url,
        "POST",
        f"/cluster/node/shards/{quote(shard_uid, safe='')}/read?{query}",
        body=body,
        content_type=CONTENT_TYPE,
        timeout_s=min(timeout_s, settings.MLVDB_PEER_TIMEOUT_S),
    )


_BY_CODE = {
    kind.code: kind
    for kind in (
        errors.InvalidInput,
        errors.DimensionMismatch,
        errors.InvalidFilter,
        errors.NotFound,
        errors.NamespaceNotFound,
        errors.VectorNotFound,
        errors.TokenLost,
    )
}
