"""One probe of a node: ask for its status, and read the answer.

The question tells the node where the primary's log ends, so that a replica knows how far behind it is. A node that
answers, but is not the one it should be, has failed the probe: its `code` and `error` say why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection

from cluster.services.candidates import STATUS_PATH, Host
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerRejected
from vectors.errors import MLVectorDBError


class ShardStatus(NamedTuple):
    """A node's copy of one shard, as the node says."""

    role: str
    term: int
    seq: int
    promised_term: int
    damage: bool
    quarantined: bool
    rows: int = 0
    size_bytes: int = 0
    cluster: str = ""
    epoch: int = 0
    copies: Any = ()

    @property
    def position(self) -> tuple[int, int]:
        """What copies are compared by."""
        return self.term, self.seq


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node says of itself; `cluster` is empty for one that is in none."""

    node: str
    version: str
    protocol: int
    cluster: str
    epoch: int
    is_owner: bool
    shards: Mapping[str, ShardStatus] = field(default_factory=dict)

    def cluster_of(self, shard_uid: str) -> str:
        """Return the cluster that its copy of a shard belongs to: the node's own, but for a shard of its cluster's."""
        shard = self.shards.get(shard_uid)
        return self.cluster if shard is None else shard.cluster or self.cluster

    def epoch_of(self, shard_uid: str) -> int:
        """Return the epoch of that cluster as the node knows it."""
        shard = self.shards.get(shard_uid)
        return self.epoch if shard is None or not shard.cluster else shard.epoch

    @classmethod
    def of(cls, document: Any) -> NodeStatus:
        """Read it; raise ValueError for anything that is not a status."""
        try:
            return cls(
                node=str(document["node"]),
                version=str(document["version"]),
                protocol=int(document["protocol"]),
                cluster=str(document["cluster"] or ""),
                epoch=_whole(document["epoch"]),
                is_owner=bool(document["is_owner"]),
                shards={str(shard["uid"]): _shard(shard) for shard in document["shards"]},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the answer is not a node's status: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one probe: `status` when a node answered, `error` why the probe failed."""

    ok: bool
    took_ms: float
    status: NodeStatus | None = None
    error: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every peer of a round, and what its answer is held against."""

    host: Host
    epoch: int
    heads: Mapping[str, tuple[int, int]]

    @property
    def body(self) -> dict[str, Any]:
        """The body of the request."""
        return {
            "cluster": self.host.cluster,
            "epoch": self.epoch,
            "heads": {uid: list(position) for uid, position in self.heads.items()},
        }


def probe(url: str, body: Mapping[str, Any], *, check: Callable[[Mapping[str, Any]], None], timeout_s: float) -> Probe:
    """Probe the node at `url`; never raises for what the peer does.

    `check` is given what the node says of itself and raises what speaks against it.
    """
    began = time.monotonic()
    status: NodeStatus | None = None
    code = error = ""
    try:
        answer = peer_client().json(url, "POST", STATUS_PATH, json=dict(body), timeout_s=timeout_s, even_if_silent=True)
        status = NodeStatus.of(answer)
        check(answer)
    except PeerRejected as rejected:
        code, error = rejected.peer_code, rejected.message
    except MLVectorDBError as refusal:
        code, error = refusal.code, refusal.message
    except ValueError as garbled:
        code, error = "not_a_node", f"{url}: {garbled}"
    return Probe(not code, round((time.monotonic() - began) * 1000, 2), status, error, code)


def status_ask(url: str, *, timeout_s: float) -> NodeStatus | None:
    """Return what a node says of itself, None when it does not answer as one; tells it nothing."""
    try:
        return NodeStatus.of(peer_client().json(url, "GET", STATUS_PATH, timeout_s=timeout_s, even_if_silent=True))
    except (PeerError, ValueError):
        return None


def statuses_ask(urls: Sequence[str]) -> list[NodeStatus | None]:
    """Return what nodes say of themselves, all asked at once; of each as `status_ask`, within a probe's time."""
    if not urls:
        return []
    with ThreadPoolExecutor(len(urls), thread_name_prefix="status") as pool:
        return list(pool.map(_status_by_thread, urls))


def _status_by_thread(url: str) -> NodeStatus | None:
    try:
        return status_ask(url, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S)
    finally:
        # Hooks of the transport may have opened one.
        connection.close()


def _shard(document: Any) -> ShardStatus:
    return ShardStatus(
        role=str(document["role"]),
        term=_whole(document["term"]),
        seq=_whole(document["seq"]),
        promised_term=_whole(document["promised_term"]),
        damage=bool(document.get("damage")),
        quarantined=bool(document.get("quarantined")),
        rows=_whole(document.get("rows", 0)),
        size_bytes=_whole(document.get("size_bytes", 0)),
        cluster=str(document.get("cluster") or ""),
        epoch=_whole(document.get("epoch", 0)),
        copies=document.get("copies", []),
    )


def _whole(value: Any) -> int:
    """Return a number that a column can hold."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"not a whole number: {value!r}"[:200])
    return value
