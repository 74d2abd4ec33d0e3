"""Shards against one node, measured: requests, routing, moves, and requests while rows move.

See README.md beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.node import Node
from benchmarks.replication import ask, until
from benchmarks.single_node import Table, elsewhere, msgpack_batches, processor, rows_of
from benchmarks.wire import Load, json_request, prepared, run, timed

LOCAL = (1, 2, 4)
PLAIN, REMOTE = "a plain node", "1 local shard and 1 remote one"
SECONDS = 2.0
LOOK_EVERY_S = 0.1
"""How often it is asked whether a move is over: each time is a request beside those that are measured."""


def words(shards: int) -> str:
    """Return what a coordinator with so many local shards is called."""
    return f"{shards} local shard{'' if shards == 1 else 's'}"


@contextlib.contextmanager
def coordinator(shards: int) -> Iterator[Node]:
    """Run a node with local shards within the context."""
    settings = {"MLVDB_ENABLE_SHARDING": "true", "MLVDB_SHARDS": str(shards)}
    with Node(**settings) as node:
        node.start()
        yield node


@contextlib.contextmanager
def plain() -> Iterator[Node]:
    """Run a node by itself within the context."""
    with Node() as node:
        node.start()
        yield node


# -- requests ------------------------------------------------------------------------------------------------------


def requests(table: Table, rows: np.ndarray, queries: np.ndarray, *, repeats: int) -> None:
    """Measure the same requests on a plain node and on coordinators with the same rows.

    All nodes are there at once and are asked in turn, one client each time, so that what else the machine does meets
    them alike; the medians of the turns are compared.
    """
    with contextlib.ExitStack() as stack:
        nodes = {PLAIN: stack.enter_context(plain())}
        for shards in LOCAL:
            nodes[words(shards)] = stack.enter_context(coordinator(shards))
        nodes[REMOTE] = stack.enter_context(coordinator(1))
        remote = stack.enter_context(plain())
        ask(nodes[REMOTE], "POST", f"/sharding/shards?shard_id=shard_1&shard_url={remote.url}")
        until(lambda: has_settled(nodes[REMOTE], 2), "the remote shard to own slots")
        for node in nodes.values():
            elsewhere(run, node.port, msgpack_batches(rows, "packed"), clients=2)
            elsewhere(run, node.port, msgpack_batches(rows[:1000], "small"), clients=1)
        seen = _in_turn(nodes, _searches("small", queries), repeats=repeats)
        _compare(
            table, "search, top 10, of 1,000 rows", 1000, seen, targets={REMOTE: "≤ 3 ms more"}, more="≤ 1 ms more"
        )
        seen = _in_turn(nodes, _searches("packed", queries), repeats=repeats)
        _compare(table, f"search, top 10, of {len(rows):,} rows", len(rows), seen)
        read = [prepared("GET", f"/vectors/row-{number}?namespace=small") for number in range(512)]
        seen = _in_turn(nodes, read, repeats=repeats)
        _compare(table, "point read", 1000, seen, targets={REMOTE: "≤ 3 ms more"}, more="≤ 1 ms more")
        single = [
            json_request("POST", "/vectors?namespace=single", {"id": f"s-{number}", "values": query.tolist()})
            for number, query in enumerate(queries[:512])
        ]
        seen = _in_turn(nodes, single, repeats=repeats, expect=201)
        _compare(table, "single insert", 1, seen, targets={REMOTE: "≤ 3 ms more"}, more="≤ 1 ms more")
        batch = msgpack_batches(rows[:1000], "batch")
        seen = _in_turn(nodes, batch, repeats=repeats)
        _compare(table, "batch of 1,000", 1000, seen, targets={words(4): "≤ 1.5 ×"})


def _searches(namespace: str, queries: np.ndarray) -> list[bytes]:
    return [
        json_request(
            "POST", f"/search?namespace={namespace}", {"query": query.tolist(), "top_k": 10, "with_values": False}
        )
        for query in queries[:256]
    ]


def _in_turn(
    nodes: Mapping[str, Node], prepared_requests: Sequence[bytes], *, repeats: int, expect: int = 200
) -> dict[str, Load]:
    """Return for each node its turn with the middle p50."""
    loads: dict[str, list[Load]] = {name: [] for name in nodes}
    for turn in range(repeats + 1):
        for name, node in nodes.items():
            load = elsewhere(run, node.port, prepared_requests, clients=1, seconds=SECONDS, expect=expect)
            # The first turn warms everything up.
            if turn:
                loads[name].append(load)
    return {name: sorted(runs, key=lambda load: load.p50_ms)[len(runs) // 2] for name, runs in loads.items()}


def _compare(
    table: Table,
    what: str,
    rows: int,
    seen: Mapping[str, Load],
    *,
    targets: Mapping[str, str] | None = None,
    more: str = "",
) -> None:
    bare = seen[PLAIN]
    for name, load in seen.items():
        difference = f" = {load.p50_ms - bare.p50_ms:+.2f} ms, {load.p50_ms / bare.p50_ms:.2f} ×"
        target = "" if name == PLAIN else (targets or {}).get(name, more)
        table.add(
            f"{what}, {name}",
            rows,
            f"p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms{'' if name == PLAIN else difference}",
            target,
        )


# -- routing -------------------------------------------------------------------------------------------------------


def routing(table: Table) -> None:
    """Measure what it takes to say which of four shards each of 1,000 ids belongs to, within a process."""
    import uuid

    import django

    django.setup()
    from cluster.query_processor.sharded.routing import parts_of
    from cluster.sharding.table import SlotTable
    from cluster.sharding.view import ShardingView, ShardMember
    from cluster.states import ShardState
    from vectors.engine.ids import key_of, slots_of

    owners = SlotTable.even(dict.fromkeys(range(4), 1.0))
    members = tuple(
        ShardMember(number, f"shard_{number}", f"{number:032d}", owners.owned_by(number), ShardState.ACTIVE, shard_id=1)
        for number in range(4)
    )
    view = ShardingView("hash", 1, members, owners.owners.astype(np.uint16))
    kinds: dict[str, list[Any]] = {
        "integers": list(range(1000)),
        "UUIDs": [uuid.uuid4() for _ in range(1000)],
        "strings": [f"row-{number}" for number in range(1000)],
    }
    for kind, ids in kinds.items():
        keys = [key_of(value) for value in ids]
        seconds = timed(lambda keys=keys: parts_of(view, slots_of(keys)), times=200)
        table.add(f"routing 1,000 ids ({kind}) to four shards", 1000, f"{1000 * seconds:.2f} ms", "≤ 1 ms")


# -- moves ---------------------------------------------------------------------------------------------------------


def moves(table: Table, rows: np.ndarray) -> None:
    """Measure how fast rows move: to a second local shard, and to a remote one, each taking its share."""
    with coordinator(1) as node, plain() as remote:
        elsewhere(run, node.port, msgpack_batches(rows, "packed"), clients=4)
        # What rests is in segments; a checkpoint of what has just been loaded is no part of a move.
        node.manage("checkpoint")
        for label, url in (("shard_1", ""), ("shard_2", remote.url)):
            query = f"shard_id={label}" + (f"&shard_url={url}" if url else "")
            until(lambda: not running(node), "no move", every_s=LOOK_EVERY_S)
            before = {move["id"] for move in ask(node, "GET", "/cluster/moves")["moves"]}
            ask(node, "POST", f"/sharding/shards?{query}")
            until(
                lambda label=label: not running(node) and owns_slots(node, label),
                f"{label} to have its share",
                every_s=LOOK_EVERY_S,
            )
            # A shard may be filled by two moves that were asked for at once: the second has nothing left to do.
            asked = [move for move in ask(node, "GET", "/cluster/moves")["moves"] if move["id"] not in before]
            moved, seconds = max((move["rows_done"], took_s(move)) for move in asked)
            table.add(
                f"moving {moved:,} of {len(rows):,} rows to a new {'remote' if url else 'local'} shard",
                moved,
                f"{seconds:.2f} s = {moved / seconds:,.0f} rows/s",
                "≥ 20,000 rows/s",
            )
        count = ask(node, "POST", "/count?namespace=packed", {})["count"]
        if count != len(rows):
            raise RuntimeError(f"{count} of {len(rows)} rows are there")


def beside_a_move(table: Table, rows: np.ndarray, queries: np.ndarray, *, seconds: float) -> None:
    """Measure searches and inserts while rows move to and fro between two local shards, against none moving."""
    with coordinator(2) as node:
        elsewhere(run, node.port, msgpack_batches(rows, "packed"), clients=4)
        node.manage("checkpoint")
        closed_s: list[float] = []
        kinds = {
            "searches": (_searches("packed", queries), 200),
            "single inserts": (
                [
                    json_request("POST", "/vectors?namespace=single", {"id": f"b-{number}", "values": query.tolist()})
                    for number, query in enumerate(queries[:512])
                ],
                201,
            ),
        }
        for name, (asked, status) in kinds.items():
            elsewhere(run, node.port, asked, clients=1, seconds=1.0, expect=status)
            idle = elsewhere(run, node.port, asked, clients=1, seconds=seconds, expect=status)
            with _moving(node) as moved:
                busy = elsewhere(run, node.port, asked, clients=1, seconds=seconds, expect=status)
            closed_s += _closed_s(node, moved)
            table.add(
                f"{name}, 1 client, while rows move",
                len(rows),
                f"p50 {busy.p50_ms:.2f} ms, p99 {busy.p99_ms:.2f} ms; idle p50 {idle.p50_ms:.2f} ms, p99 "
                f"{idle.p99_ms:.2f} ms: p99 {busy.p99_ms / idle.p99_ms:.1f} × ({len(moved)} moves)",
                "p99 ≤ 2 ×",
            )
        pauses = sorted(1000 * seconds for seconds in closed_s)
        table.add(
            f"writes of the slots that move are closed, {len(pauses)} times",
            len(rows),
            f"{pauses[len(pauses) // 2]:.0f} ms, at most {pauses[-1]:.0f} ms",
            "≤ 200 ms",
        )


def _closed_s(node: Node, moved: Sequence[int]) -> list[float]:
    """Return for how long the steps of some moves have closed slots to writes."""
    moves = [move for move in ask(node, "GET", "/cluster/moves")["moves"] if move["id"] in moved]
    return [step["closed_s"] for move in moves for step in move["steps"] if step["closed_s"] is not None]


@contextlib.contextmanager
def _moving(node: Node) -> Iterator[list[int]]:
    """Move all of shard_0 to shard_1 and back, again and again, until the context ends; yields the moves."""
    stop = threading.Event()
    moved: list[int] = []

    def to_and_fro() -> None:
        ends = ("shard_0", "shard_1")
        while not stop.is_set():
            answer = ask(node, "POST", f"/sharding/shards/{ends[0]}/redistribute/{ends[1]}", expect=202)
            moved.append(answer["move"])
            until(lambda: not running(node), "the move", every_s=LOOK_EVERY_S)
            ends = (ends[1], ends[0])

    mover = threading.Thread(target=to_and_fro)
    mover.start()
    try:
        until(lambda: bool(moved) and running(node), "a move to run", every_s=LOOK_EVERY_S)
        yield moved
    finally:
        stop.set()
        mover.join()


def running(node: Node) -> bool:
    """Whether a move is under way."""
    return any(move["ended_at"] is None for move in ask(node, "GET", "/cluster/moves")["moves"])


def has_settled(node: Node, shards: int) -> bool:
    """Whether so many shards own slots, and nothing moves."""
    info = ask(node, "GET", "/sharding/info")["shards"]
    return sum(shard["slots"] > 0 for shard in info.values()) == shards and not running(node)


def owns_slots(node: Node, label: str) -> bool:
    """Whether a shard owns slots."""
    return bool(ask(node, "GET", "/sharding/info")["shards"][label]["slots"])


def took_s(move: Mapping[str, Any]) -> float:
    """Return how long a move took."""
    begun, ended = (datetime.fromisoformat(move[moment]) for moment in ("started_at", "ended_at"))
    return (ended - begun).total_seconds()


PARTS = ("requests", "routing", "moves", "beside")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="(n, d) rows, .npy")
    parser.add_argument("--rows", type=int, default=20_000, help="rows that are searched")
    parser.add_argument("--move-rows", type=int, default=120_000, help="rows of the shards between which rows move")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each node with each request")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of requests beside moves")
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to run")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    if options.data is None:
        base = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
    else:
        base = np.load(options.data, allow_pickle=False).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    parts = options.only or PARTS
    data = "random unit vectors" if options.data is None else options.data.name
    head = (
        f"{os.cpu_count()} × {processor()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}; {base.shape[1]} dimensions, {data}; "
        "two web workers per node, all nodes and the load on the same machine"
    )
    print(head + "\n")
    table = Table()
    if "requests" in parts:
        requests(table, rows_of(base, options.rows), base, repeats=options.repeats)
    if "routing" in parts:
        routing(table)
    if "moves" in parts:
        moves(table, rows_of(base, options.move_rows))
    if "beside" in parts:
        beside_a_move(table, rows_of(base, options.move_rows), base, seconds=options.seconds)
    if options.out is not None:
        options.out.write_text(head + "\n\n" + "\n".join(table.lines) + "\n")


if __name__ == "__main__":
    main()
