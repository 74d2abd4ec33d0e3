"""A coordinator and its shards as a person starts, adds, restarts and refuses them; real nodes."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.processes.node import NodeProcess, wait_for

FILLED_WITHIN_S = 60.0
SHARDING = ("--enable-sharding",)
ROWS = 400


def shards_of(node: NodeProcess) -> dict[str, Any]:
    return dict(node.get("/sharding/info").json().get("shards", {}))


def slots_of(node: NodeProcess) -> dict[str, int]:
    return {label: shard["slots"] for label, shard in shards_of(node).items()}


def write(node: NodeProcess, first: int = 0, count: int = ROWS) -> None:
    rows = [{"id": number, "values": [number, 1.0, 2.0]} for number in range(first, first + count)]
    answer = node.session.put(f"{node.base_url}/vectors/batch", json={"vectors": rows}, timeout=10)
    assert answer.status_code == 200, answer.text


def ids_in(node: NodeProcess) -> list[int]:
    return [row["id"] for row in node.get("/namespaces/vectors?limit=100000").json()]


def is_at_rest(node: NodeProcess) -> bool:
    """Return whether no move is under way."""
    moves = node.get("/cluster/moves").json()
    rows = moves["moves"] if isinstance(moves, dict) else moves
    return all(move["phase"] in ("done", "failed", "cancelled") for move in rows)


def start_refused(node: NodeProcess) -> str:
    """Start a node that refuses to, and return what it says."""
    process = node.launch()
    try:
        assert process.wait(60) == 2
    except subprocess.TimeoutExpired:
        raise AssertionError(f"did not refuse to start:\n{node.log_tail()}") from None
    return node.output


def test_a_node_started_with_shards_spreads_its_rows_and_keeps_them_without_the_flags(make: Any) -> None:
    node = make(*SHARDING, "--shards", "3", "--sharding-strategy", "round_robin").start()
    assert sorted(slots_of(node)) == ["shard_0", "shard_1", "shard_2"]
    assert sum(slots_of(node).values()) == 16384
    assert max(slots_of(node).values()) <= 5462
    write(node)
    assert ids_in(node) == list(range(ROWS))
    before = node.get("/sharding/info").json()
    counts = {label: shard["vector_count"] for label, shard in before["shards"].items()}
    assert sum(counts.values()) == ROWS
    assert min(counts.values()) > 0

    node.options = ()
    node.restart()

    after = node.get("/sharding/info").json()
    assert (after["sharding_strategy"], after["epoch"]) == ("round_robin", before["epoch"])
    assert slots_of(node) == {label: shard["slots"] for label, shard in before["shards"].items()}
    assert ids_in(node) == list(range(ROWS))
    write(node, first=ROWS)
    assert len(ids_in(node)) == 2 * ROWS


def test_another_strategy_than_the_stored_one_refuses_to_start(make: Any) -> None:
    node = make(*SHARDING, "--sharding-strategy", "hash").start()
    node.stop()

    node.options = ("--sharding-strategy", "round_robin")
    said = start_refused(node)

    assert "sharding strategy is hash" in said
    node.options = (*SHARDING, "--shards", "7")
    node.start()
    assert len(slots_of(node)) == 2


def test_a_node_with_rows_that_is_given_shards_moves_their_share_to_them(make: Any) -> None:
    node = make().start()
    write(node)

    node.options = SHARDING
    node.restart()

    assert ids_in(node) == list(range(ROWS))
    wait_for(
        lambda: slots_of(node) == {"shard_0": 8192, "shard_1": 8192} and is_at_rest(node),
        timeout_s=FILLED_WITHIN_S,
        what="an even split",
    )
    assert ids_in(node) == list(range(ROWS))


def test_a_plain_node_becomes_a_remote_shard_by_one_request_and_remembers_it(make: Any) -> None:
    coordinator, shard = make(*SHARDING, "--shards", "1").start(), make().start()
    write(coordinator)

    answer = coordinator.post(f"/sharding/shards?shard_id=shard_r&shard_url={shard.base_url}")

    assert answer.status_code == 200, answer.text
    assert answer.json()["is_local"] is False
    wait_for(
        lambda: slots_of(coordinator) == {"shard_0": 8192, "shard_r": 8192} and is_at_rest(coordinator),
        timeout_s=FILLED_WITHIN_S,
        what="the share of the new shard",
    )
    assert ids_in(coordinator) == list(range(ROWS))
    refused = shard.session.put(
        f"{shard.base_url}/vectors/batch", json={"vectors": [{"id": 1, "values": [1.0, 2.0, 3.0]}]}, timeout=10
    )
    assert refused.status_code == 409
    assert refused.json()["error"]["detail"]["primary_url"] == coordinator.base_url

    shard.restart()
    coordinator.restart()

    assert slots_of(coordinator) == {"shard_0": 8192, "shard_r": 8192}
    # The coordinator may have missed the shard while that restarted, and refuse such reads until it has looked again.
    wait_for(lambda: coordinator.get("/namespaces/vectors").ok, timeout_s=20, what="answers of the shard")
    assert ids_in(coordinator) == list(range(ROWS))
    write(coordinator, first=ROWS)
    assert len(ids_in(coordinator)) == 2 * ROWS


def test_a_removed_shard_is_drained_and_its_node_is_a_plain_one_again(make: Any) -> None:
    coordinator, shard = make(*SHARDING, "--shards", "1").start(), make().start()
    coordinator.post(f"/sharding/shards?shard_id=shard_r&shard_url={shard.base_url}")
    wait_for(
        lambda: slots_of(coordinator).get("shard_r") == 8192 and is_at_rest(coordinator),
        timeout_s=FILLED_WITHIN_S,
        what="the share of the new shard",
    )
    write(coordinator)

    answer = coordinator.session.delete(f"{coordinator.base_url}/sharding/shards/shard_r", timeout=10)

    assert answer.status_code == 202, answer.text
    wait_for(lambda: slots_of(coordinator) == {"shard_0": 16384}, timeout_s=FILLED_WITHIN_S, what="the removal")
    assert ids_in(coordinator) == list(range(ROWS))

    def takes_writes() -> bool:
        row = {"vectors": [{"id": 1, "values": [1.0]}]}
        return shard.session.put(f"{shard.base_url}/vectors/batch", json=row, timeout=10).status_code == 200

    wait_for(takes_writes, timeout_s=20, what="a plain node")
    assert ids_in(shard) == [1]
