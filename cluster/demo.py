"""The demonstration's cluster: digits on a coordinator, then a remote shard that takes its share, and a replica."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TextIO

from django.db.models import Q

from cluster.health.shards import shards_check
from cluster.models import Move, ReplicaCopy, Shard, ShardCopy
from cluster.services.registry import replica_add
from cluster.services.sharding import shard_add
from cluster.shards_overview import sharding_info
from cluster.states import CopyState, Membership, ShardState
from vectors import demo
from vectors.client import Client, ClientError, Retries
from vectors.errors import MLVectorDBError, Unavailable

ACTOR = "demonstration"

_READY_WITHIN_S = 60.0
_COMPLETE_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.1


class Unfinished(Unavailable):
    """Raised when something did not come about in time; it goes on in the background."""

    code = "unfinished"


def run(base_url: str, nodes: Mapping[str, str], out: TextIO) -> None:
    """Load the digits into the coordinator at `base_url`, add `nodes` to it, and show the cluster and a search.

    `nodes` are the URLs of one shard and one replica by name. A second time finds all of it there. Whatever goes wrong
    is one line: the nodes themselves are running.
    """
    try:
        for name, url in nodes.items():
            _wait_for(partial(_is_ready, url), f"{name} at {url} to be ready", _READY_WITHIN_S)
        # One that was asked before it was up counts as suspect for a moment.
        _wait_for(_shards_are_well, "the shards to answer", _COMPLETE_WITHIN_S)
    except MLVectorDBError as error:
        print(f"The cluster is not complete: {error.message}", file=out)
    demo.run(base_url, out, once_loaded=partial(_complete, base_url, nodes, out))


def _complete(base_url: str, nodes: Mapping[str, str], out: TextIO) -> None:
    try:
        (shard, shard_url), (replica, replica_url) = nodes.items()
        shard_add(label=shard, url=shard_url, actor=ACTOR)
        _wait_for(_nothing_moves, f"{shard} to have its share of the rows", _COMPLETE_WITHIN_S)
        replica_add(name=replica, url=replica_url, actor=ACTOR)
        _wait_for(_copies_follow, f"{replica} to have its copies", _COMPLETE_WITHIN_S)
        _wait_for(_shards_are_well, "the shards to answer", _COMPLETE_WITHIN_S)
    except MLVectorDBError as error:
        print(f"The cluster is not complete: {error.message}", file=out)
    for line in _picture(base_url, nodes):
        print(line, file=out)


def _picture(base_url: str, nodes: Mapping[str, str]) -> Iterator[str]:
    shards: Mapping[str, Mapping[str, Any]] = sharding_info()["shards"]
    copies = [
        *ReplicaCopy.objects.filter(state=CopyState.FOLLOWING).values_list("replica__name", flat=True),
        *ShardCopy.objects.filter(state=CopyState.FOLLOWING).values_list("name", flat=True),
    ]
    rows = sum(shard["vector_count"] for shard in shards.values())
    yield ""
    yield f"A cluster of {1 + len(nodes)} nodes, {rows:,} rows over {len(shards)} shards:"
    yield ""
    here = ", ".join(_rows(label, shard) for label, shard in shards.items() if shard["is_local"])
    yield f"  {base_url}   coordinator: {here}"
    for name, url in nodes.items():
        if name in shards:
            yield f"  {url}   {_rows(name, shards[name])}"
        else:
            yield f"  {url}   {name}, with copies of {copies.count(name)} shards"
    yield ""
    yield f"As a picture: {base_url}/admin/cluster/topology/"


def _rows(label: str, shard: Mapping[str, Any]) -> str:
    return f"{label} with {shard['vector_count']:,} rows"


def _nothing_moves() -> bool:
    coming = Shard.objects.filter(Q(fill_due=True) | Q(state__in=(ShardState.NEW, ShardState.REFUSED)))
    return not coming.exists() and not Move.objects.filter(ended_at__isnull=True).exists()


def _copies_follow() -> bool:
    copies = ReplicaCopy.objects.all()
    ready = Q(state=CopyState.FOLLOWING, membership=Membership.MEMBER)
    if not copies.exists() or copies.exclude(ready).exists():
        return False
    # Those of shards on other nodes are known from the nodes, which a look at their health asks.
    remote = Shard.objects.exclude(url="").exclude(state=ShardState.REMOVED)
    shards_check(remote)
    return not remote.exclude(pk__in=ShardCopy.objects.filter(ready).values("shard")).exists()


def _shards_are_well() -> bool:
    shards_check(Shard.objects.exclude(state=ShardState.REMOVED))
    return all(shard["is_healthy"] for shard in sharding_info()["shards"].values())


def _is_ready(url: str) -> bool:
    # A key of the coordinator's is none of theirs.
    with Client(url, "", retries=Retries(attempts=1)) as client:
        try:
            return client.is_ready()
        except ClientError:
            return False


def _wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unfinished(
                f"{seconds:.0f} s were not enough for {what}; see the log in {os.environ['MLVDB_DATA_DIR']}"
            )
        time.sleep(_LOOK_EVERY_S)
