"""Copies and shards on other nodes, asked through `/cluster/node/shards/<uid>/read` and `…/write`.

A copy of this node's own cluster answers for itself alone. A shard's node answers the coordinator for the whole shard:
it chooses among the shard's copies and waits for levels itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
from django.conf import settings

from cluster.query_processor.errors import CopyBehind, CopySyncing, ShardUnavailable
from cluster.query_processor.reading import Read
from cluster.transport import wire
from cluster.transport.client import PeerAnswer, peer_client
from cluster.transport.errors import PeerGarbled, PeerRejected, refusals
from cluster.transport.messages import shard_path
from vectors import errors
from vectors.errors import MLVectorDBError
from vectors.query_processor import Answer, RequestOptions, WriteResult
from vectors.store.log import Position

CONTENT_TYPE = "application/msgpack"
POSITION = "position"
"""The operation that answers where a copy is, and nothing else."""


LAGGING_HEADER = "X-MLVDB-Lagging"
"""On the answer to a write: the names of copies that are too far behind to take the primary's place."""


class RemoteWrite(NamedTuple):
    """What came of a write at a shard's node, and which of its copies lag too far."""

    result: WriteResult
    lagging: frozenset[str]


class CopyPosition(NamedTuple):
    """Where a copy is, what it has promised, and which epoch of the shard's cluster its node knows."""

    position: Position
    promised_term: int
    epoch: int


def remote_position(url: str, cluster: str, shard_uid: str, *, timeout_s: float) -> CopyPosition:
    """Ask a copy where it is. Raise the errors of `cluster.transport`."""
    answer = _call(url, cluster, shard_uid, msgpack.packb({"op": POSITION}), timeout_s)
    try:
        found = msgpack.unpackb(answer.body)
        position = Position(int(found["term"]), int(found["seq"]))
        # The header has the epoch of the node's own cluster, which need not be the shard's.
        return CopyPosition(position, int(found["promised_term"]), int(found.get("epoch", answer.epoch or 0)))
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


def remote_write(
    url: str,
    cluster: str,
    shard_uid: str,
    operation: str,
    arguments: Mapping[str, Any],
    options: RequestOptions,
    *,
    timeout_s: float,
) -> RemoteWrite:
    """Have a shard's node do a write at its level within `timeout_s`.

    Raise the errors of `cluster.transport`; `PeerRejected` is what the node itself has said, see `domain_error`.
    """
    answer = _call(
        url,
        cluster,
        shard_uid,
        wire.read_request(operation, arguments, options),
        timeout_s,
        route="write",
        # Rows written twice are the same rows; a deletion done twice would be counted by what was left to delete.
        idempotent=operation != "delete",
    )
    try:
        lagging = frozenset(name for name in answer.headers.get(LAGGING_HEADER, "").split(",") if name)
        return RemoteWrite(wire.write_answer_of(answer.body), lagging)
    except ValueError as error:
        raise PeerGarbled(f"answered nothing that can be read: {error}", url=url) from None


def domain_error(rejected: PeerRejected, *, of_shard: bool = False) -> MLVectorDBError | None:
    """Return the error that a peer's refusal is to this node's client; None when it is about the peer.

    What another copy might answer otherwise is about the peer too, but where the peer has answered for all copies of a
    shard (`of_shard`).
    """
    return rejected.as_own(_OF_SHARD if of_shard else _OF_ANY_COPY)


def _call(
    url: str,
    cluster: str,
    shard_uid: str,
    body: bytes,
    timeout_s: float,
    *,
    route: str = "read",
    idempotent: bool = True,
) -> PeerAnswer:
    return peer_client().call(
        url,
        "POST",
        shard_path(shard_uid, route, cluster=cluster),
        body=body,
        content_type=CONTENT_TYPE,
        timeout_s=min(timeout_s, settings.MLVDB_PEER_TIMEOUT_S),
        idempotent=idempotent,
    )


_OF_ANY_COPY = refusals(
    errors.InvalidInput,
    errors.DimensionMismatch,
    errors.InvalidFilter,
    errors.NotFound,
    errors.NamespaceNotFound,
    errors.VectorNotFound,
    errors.TokenLost,
    errors.StaleScope,
)
"""What every copy would say."""

_OF_SHARD = _OF_ANY_COPY | refusals(
    errors.SlotsClosed,
    errors.NotPrimary,
    errors.TooLarge,
    errors.MemoryLimitReached,
    errors.StorageFull,
    errors.NotReady,
    errors.NotEnoughCopies,
    errors.Busy,
    errors.CheckpointBehind,
    errors.StorageBusy,
    errors.StorageError,
    errors.ShardDamaged,
    CopyBehind,
    CopySyncing,
    ShardUnavailable,
)
"""What a node says that has asked the copies of its shard."""
