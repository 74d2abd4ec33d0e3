"""Between the port and the engine: requests become operations and searches, rows become answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from vectors.engine import ids, search
from vectors.engine.distances import Query
from vectors.engine.namespace import NamespaceSpec, NamespaceView
from vectors.engine.operations import Upsert
from vectors.engine.parts import Part
from vectors.engine.shard import ShardEngine
from vectors.errors import DimensionMismatch, NamespaceNotFound, NotReady, TokenLost, VectorNotFound
from vectors.query_processor.port import Hit, RequestOptions, SearchRequest, VectorBatch
from vectors.store import log, terms
from vectors.store.recovery import OpenShard
from vectors.store.terms import TokenState
from vectors.tokens import parse_token


def with_generated_keys(keys: Sequence[bytes | None], namespace: str, idempotency_key: str | None) -> list[bytes]:
    """Return the keys of a batch, with a UUID for each row that came without an id.

    An idempotency key makes them the same when the request is repeated.
    """
    lacking = [number for number, key in enumerate(keys) if key is None]
    if not lacking:
        return list(keys)  # type: ignore[arg-type]
    if idempotency_key is None:
        source = os.urandom(16 * len(lacking))
    else:
        source = hashlib.shake_256(f"{namespace}\0{idempotency_key}".encode()).digest(16 * len(lacking))
    made = list(keys)
    for number, key in zip(lacking, ids.uuid_keys(len(lacking), random_bytes=source), strict=True):
        made[number] = key
    return made  # type: ignore[return-value]


def upsert_operation(keys: list[bytes], batch: VectorBatch) -> Upsert:
    """Return the operation of a batch; of a repeated key the last row wins."""
    last = {key: number for number, key in enumerate(keys)}
    if len(last) == len(keys):
        return Upsert(keys, batch.values, batch.metadata)
    chosen = sorted(last.values())
    return Upsert(
        [keys[number] for number in chosen], batch.values[chosen], [batch.metadata[number] for number in chosen]
    )


def wanted_search(
    request: SearchRequest, view: NamespaceView, place: tuple[Part, int] | None, *, prefix: str
) -> search.Wanted:
    """Return what a search asks of the engine; `place` is where the row is that it searches by, in the same state.

    `prefix` stands before the names of fields in errors. Raise DimensionMismatch, or VectorNotFound for an unknown id.
    """
    spec = view.spec
    values = request.query
    if values is None:
        assert request.key is not None
        if place is None:
            raise unknown_vector(request.key, field=prefix + "id")
        values = place[0].matrix[place[1]]
    elif len(values) != spec.dimension:
        raise DimensionMismatch(
            f"namespace {spec.name} has dimension {spec.dimension}, got {len(values)} values",
            field=prefix + "query",
            detail={"namespace": spec.name, "dimension": spec.dimension, "got": len(values)},
        )
    metric = request.metric or spec.metric
    return search.Wanted(
        Query.of(values, metric),  # type: ignore[arg-type]
        request.top_k + request.offset,
        request.filter,
        request.score_threshold,
        request.recall,
        request.exact,
    )


def strategy_of(results: Sequence[search.Result]) -> str:
    """Return how the rows of some searches were found, as one word: where they were not all found alike, by both."""
    ways = {result.strategy for result in results}
    return ways.pop() if len(ways) == 1 else "index+exact"


def hits_of(result: search.Result, request: SearchRequest) -> list[Hit]:
    """Return the hits that a request asked for, behind its offset."""
    return [
        Hit(
            found.key,
            found.view.part.matrix[found.row] if request.with_values else None,
            found.view.part.metadata[found.row] if request.with_metadata else None,
            found.score,
        )
        for found in result.found[request.offset :]
    ]


def spec_of(engine: ShardEngine, namespace: str) -> NamespaceSpec:
    """Return what is known of a namespace; raise NamespaceNotFound."""
    spec = engine.spec(namespace)
    if spec is None:
        raise unknown_namespace(namespace)
    return spec


def unknown_namespace(namespace: str) -> NamespaceNotFound:
    """Return the error for a namespace that is not there."""
    return NamespaceNotFound(f"there is no namespace {namespace}", field="namespace")


def unknown_vector(key: bytes, *, field: str = "id") -> VectorNotFound:
    """Return the error for an id that is not there."""
    return VectorNotFound(f"there is no vector {ids.id_of(key)!r}", field=field)


def check_tokens(opened: OpenShard, options: RequestOptions) -> None:
    """Raise TokenLost for a session token whose entry this log will not get, NotReady for one that it may still get.

    Every acknowledged entry of this log is in the engine by now: a primary of the token's term has it or never will.
    """
    if not options.min_seq:
        return
    text = options.min_seq.get(opened.head.label)
    if text is None:
        return
    token = parse_token(text)
    shard_id, label = opened.head.shard_id, opened.head.label
    state = terms.token_state(token, uid=opened.head.uid, history=terms.read_terms(shard_id), seq=opened.engine.seq)
    if state is TokenState.HELD:
        return
    detail = {"shard": label, "token": text}
    if state is TokenState.LATER:
        head = log.read_head(shard_id)
        if head is None or not head.takes_writes or token.term > head.term:
            raise NotReady(
                f"this copy of shard {label} does not have the entry of that token yet", detail=detail, retry_after_s=1
            )
    raise TokenLost(f"shard {label} does not have the entry of that token", field="min_seq", detail=detail)


def lost_entries(opened: OpenShard) -> int:
    """Return how many log entries a damaged shard could not read."""
    lost = opened.damage.get("log")
    return 0 if lost is None else int(lost["last_seq"]) - opened.engine.seq
