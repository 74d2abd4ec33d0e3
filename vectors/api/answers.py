"""Answers: rows, hits and write results in the words of the contract, and the headers that account for the shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlvdb_site.http.renderers import RawJSON
from vectors.engine.ids import id_of
from vectors.query_processor.port import Answer, Hit, NamespaceInfo, Record, ShardAccount, WriteResult


def record_answer(record: Record) -> dict[str, Any]:
    """Return a row as it is answered."""
    return {
        "id": id_of(record.key),
        "values": record.values,
        "metadata": RawJSON(record.metadata or b"{}"),
    }


def hit_answer(hit: Hit) -> dict[str, Any]:
    """Return a hit as it is answered; values and metadata only where they were asked for."""
    answer: dict[str, Any] = {"id": id_of(hit.key)}
    if hit.values is not None:
        answer["values"] = hit.values
    if hit.metadata is not None:
        answer["metadata"] = RawJSON(hit.metadata)
    answer["score"] = float(hit.score)
    return answer


def write_answer(result: WriteResult, message: str, **fields: Any) -> dict[str, Any]:
    """Return what a write answers."""
    return {"status": "success", "message": message, **fields, "seq": dict(result.seq)}


def namespace_answer(info: NamespaceInfo) -> dict[str, Any]:
    """Return what is known of a namespace."""
    return {
        "name": info.name,
        "dimension": info.dimension,
        "metric": info.metric,
        "recall_target": info.recall_target,
        "measured_recall": info.measured_recall,
        "recall_measured_at": info.recall_measured_at,
        "picture": info.picture,
        "count": info.count,
        "segments": info.segments,
        "indexed_rows": info.indexed_rows,
        "tail_rows": info.tail_rows,
        "size_bytes": info.size_bytes,
    }


def shard_answer(account: ShardAccount) -> dict[str, Any]:
    """Return how a shard took part in an answer (`explain=1`)."""
    answer: dict[str, Any] = {
        "shard": account.shard,
        "copy": account.copy,
        "lag": account.lag,
        "took_ms": round(account.took_ms, 3),
        "strategy": account.strategy,
        "candidates": account.candidates,
    }
    if account.error is not None:
        answer["error"] = account.error
    return answer


def shard_headers(answer: Answer[Any] | WriteResult) -> Mapping[str, str]:
    """Return the headers that say which shards an answer stands on; none for a write that left out none."""
    shards: Sequence[ShardAccount] = answer.shards
    if isinstance(answer, WriteResult) and not shards:
        return {}
    failed = [account.shard for account in shards if account.error is not None]
    headers = {
        "X-MLVDB-Complete": "false" if failed else "true",
        "X-MLVDB-Shards": f"{len(shards) - len(failed)}/{len(shards)}",
    }
    if failed:
        headers["X-MLVDB-Failed"] = ",".join(failed)
    stale = [
        f"{account.shard}:{'unknown' if account.lag is None else account.lag}"
        for account in shards
        # A shard of which no copy answered is not stale, it is not in the answer.
        if account.copy and (account.lag is None or account.lag > 0)
    ]
    if stale:
        headers["X-MLVDB-Stale"] = ",".join(stale)
    return headers
