"""Moves of slots to and from a shard on another node: over its routes, through whatever goes wrong on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
from django.db import connections, transaction
from django.test import Client

from cluster.api.node import slots as slots_route
from cluster.models import Assignment, Move, MoveStep
from cluster.moves import running
from cluster.moves.ends import RemoteEnd, end_of, text_of
from cluster.query_processor import ClusterQueryProcessor
from cluster.states import MovePhase
from cluster.topology import topology
from cluster.transport.errors import PeerError, PeerGarbled
from mlvdb_site.markers import topology_changed
from tests.api.conftest import checked_error
from tests.cluster.moving import (
    ROWS,
    AllDue,
    closed_slots,
    contents,
    held,
    phase,
    phases_seen,
    redistribute,
    run,
    settled,
    shard,
    write,
)
from tests.cluster.scripted_peer import Connection, Request
from tests.cluster.shards import Coordinator, RemoteShard
from tests.cluster.test_shard_node import ShardNode
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS
from vectors.errors import CursorMismatch, LogMismatch, SlotsOwned, StaleScope
from vectors.models import MoveCursor
from vectors.store.log import Position

pytestmark = pytest.mark.django_db(transaction=True)

LOCAL, REMOTE = "shard_0", "remote_0"


class Node:
    """The other node: its routes are this process's own. `faults` are what it does to the next requests of a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: dict[str, list[str]] = {}
        self.asked: list[str] = []
        real = RemoteShard._answer

        def answer(remote: RemoteShard, connection: Connection, request: Request) -> None:
            if "/slots/" in request.target:
                self._answer(connection, request)
            else:
                real(remote, connection, request)

        monkeypatch.setattr(RemoteShard, "_answer", answer)
        # Here coordinator and shard share a database, in which nobody has told this node that it is a shard.
        monkeypatch.setattr(
            slots_route, "assigned_or_409", lambda uid, _cluster, sender: (None, topology().shards[uid])
        )

    def _answer(self, connection: Connection, request: Request) -> None:
        operation = urlsplit(request.target).path.rpartition("/")[2]
        self.asked.append(operation)
        waiting = self.faults.get(operation)
        fault = waiting.pop(0) if waiting else ""
        if fault == "lost before":
            connection.sock.close()
            return
        if fault == "silent":
            connection.hold()
            return
        answer = Client(raise_request_exception=False).post(
            request.target,
            request.body,
            content_type=request.headers["content-type"],
            headers={"X-MLVDB-Node": "a" * 32},
        )
        connections.close_all()
        if fault == "lost after":
            connection.sock.close()
        elif fault == "garbage":
            connection.answer(b"\x00garbage")
        elif fault == "broken":
            error = {"code": "storage_error", "message": "it is broken", "field": None, "detail": {}}
            connection.answer(orjson.dumps({"error": error, "request_id": None}), status=503)
        else:
            connection.answer(answer.content, status=answer.status_code)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


@pytest.fixture
def processor(head: Any, node: Node, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[ClusterQueryProcessor]:
    """A shard of this node and one on another, both with rows."""
    for module in ("moves.control", "moves.running", "services.sharding_assignments"):
        monkeypatch.setattr(f"cluster.{module}.publish", lambda *_task: True)
    monkeypatch.setattr("cluster.replication.knocks.publish", lambda *_task: True)
    monkeypatch.setattr(running, "_sweeps", AllDue())
    settings.MLVDB_MOVE_SLICE_BYTES = 4096
    coordinator = Coordinator(head, local=1, remote=1)
    processor = ClusterQueryProcessor()
    write(processor, range(ROWS))
    yield processor
    coordinator.close()


@pytest.mark.parametrize(("source", "target"), [(LOCAL, REMOTE), (REMOTE, LOCAL)])
def test_rows_move_to_another_node_and_back(
    processor: ClusterQueryProcessor, source: str, target: str, settings: Any
) -> None:
    # The machine may be as slow as it likes.
    settings.MLVDB_MOVE_CLOSE_TIMEOUT_S = 30.0
    before = contents(processor)

    moves = [redistribute(source, target)]
    run()
    assert (held(source), contents(processor)) == (set(), before)
    moves.append(redistribute(target, source))
    run()

    assert [phase(move) for move in moves] == [MovePhase.DONE] * 2
    assert contents(processor) == before
    settled()


OPERATIONS = {
    (LOCAL, REMOTE): ["counts", "cursor", "set", "clean", "take", "position", "quorum", "forget"],
    (REMOTE, LOCAL): ["counts", "position", "pin", "rows", "entries", "set", "clean", "unpin"],
}
FAULTS = ["lost before", "lost after", "garbage", "broken"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("source", "target", "operation"), [(*way, name) for way, names in OPERATIONS.items() for name in names]
)
def test_what_goes_wrong_on_the_way_only_delays(
    processor: ClusterQueryProcessor, node: Node, source: str, target: str, operation: str, fault: str
) -> None:
    """Twice in a row, so that a connection which is tried again at once fails as well."""
    before = contents(processor)
    move = redistribute(source, target)
    node.faults[operation] = [fault] * 2

    for _ in range(6):
        run()
        assert not closed_slots()
        assert contents(processor) == before
        if phase(move) == MovePhase.DONE:
            break

    assert operation in node.asked
    assert len(node.faults[operation]) < 2
    assert phase(move) == MovePhase.DONE
    assert held(source) == set()
    if operation == "forget":
        # All that is left is a row that nobody asks for.
        MoveCursor.objects.all().delete()
    settled()


def test_a_node_that_falls_silent_while_slots_are_closed_opens_them_in_time(
    processor: ClusterQueryProcessor, node: Node, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.MLVDB_MOVE_CLOSE_TIMEOUT_S = 0.3
    before = contents(processor)
    move = redistribute(LOCAL, REMOTE)
    closed_at = opened_at = 0.0
    seen = phases_seen(monkeypatch)
    real = RemoteEnd._send

    def send(self: RemoteEnd, operation: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal closed_at
        if closed_slots() and not closed_at:
            closed_at = time.monotonic()
            node.faults["take"] = ["silent"] * 2
        return real(self, operation, *args, **kwargs)

    def note() -> None:
        nonlocal opened_at
        opened_at = time.monotonic()

    monkeypatch.setattr(RemoteEnd, "_send", send)
    monkeypatch.setattr("cluster.moves.step.placements_push", note)

    run()

    assert seen[-3:] == ["closing", "reopening", "following"]
    # Far less than MLVDB_PEER_TIMEOUT_S, for which any other request would have been waited for.
    assert opened_at - closed_at < settings.MLVDB_PEER_TIMEOUT_S / 2
    write(processor, range(ROWS), value=3.0)
    node.faults.clear()
    monkeypatch.setattr(RemoteEnd, "_send", real)
    # From here on the machine may be as slow as it likes.
    settings.MLVDB_MOVE_CLOSE_TIMEOUT_S = 30.0
    run()
    assert phase(move) == MovePhase.DONE
    assert contents(processor) == dict.fromkeys(before, 3.0)
    settled()


def test_refusals_of_another_node_are_those_of_a_copy_here(processor: ClusterQueryProcessor) -> None:
    end = end_of(shard(REMOTE))
    assert isinstance(end, RemoteEnd)

    assert end.cursor("a move") == ""
    end.set_slots(5, ALL_SLOTS)
    with pytest.raises(SlotsOwned):
        end.clean(ALL_SLOTS)
    with pytest.raises(StaleScope):
        end.set_slots(4, NO_SLOTS)
    with pytest.raises(CursorMismatch):
        end.take("a move", before="c:1", after="c:2", operations=[], namespaces={})
    with pytest.raises(LogMismatch):
        end.entries(ALL_SLOTS, after=Position(7, 1), max_bytes=1000)


@pytest.mark.parametrize("operation", ["position", "rows", "entries", "counts", "quorum", "cursor", "take"])
def test_an_answer_that_is_none_is_an_error_of_that_node(
    processor: ClusterQueryProcessor, node: Node, operation: str
) -> None:
    end = end_of(shard(REMOTE))
    asks = {
        "position": lambda: end.position(),
        "rows": lambda: end.rows(ALL_SLOTS, after="", max_bytes=1000),
        "entries": lambda: end.entries(ALL_SLOTS, after=Position(1, 0), max_bytes=1000),
        "counts": lambda: end.slot_counts(),
        "quorum": lambda: end.wait_quorum(Position(1, 1), timeout_s=0.1),
        "cursor": lambda: end.cursor("a move"),
        "take": lambda: end.take("a move", before="", after="c:", operations=[], namespaces={}),
    }
    node.faults[operation] = ["garbage"]

    with pytest.raises(PeerGarbled):
        asks[operation]()


def test_a_node_that_has_gone_fails_its_step_and_is_in_its_error(
    processor: ClusterQueryProcessor, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise PeerError("nobody listens", url="http://gone")

    move = redistribute(LOCAL, REMOTE)
    monkeypatch.setattr(RemoteEnd, "_send", refuse)

    run()

    assert "nobody listens" in Move.objects.get(pk=move.pk).error
    assert MoveStep.objects.get().attempts == 1
    assert not closed_slots()


# -- the route itself ----------------------------------------------------------------------------------------------


def ask(shard_node: ShardNode, operation: str, body: bytes | dict[str, Any], **more: Any) -> Any:
    """Ask as a coordinator does."""
    return shard_node.send(f"slots/{operation}", body if isinstance(body, bytes) else orjson.dumps(body), **more)


def test_the_route_does_what_its_coordinator_asks_and_nobody_else(head: Any) -> None:
    shard_node = ShardNode(head)

    answer = ask(shard_node, "set", {"epoch": 7, "slots": text_of(NO_SLOTS)})
    assert answer.json() == {"position": [1, 1]}
    refused = ask(shard_node, "set", {"epoch": 8, "slots": text_of(ALL_SLOTS)}, cluster="e" * 32)
    assert (refused.status_code, checked_error(refused)["code"]) == (409, "wrong_cluster")
    unknown = ask(shard_node, "set", {"epoch": 8, "slots": text_of(ALL_SLOTS)}, uid="f" * 32)
    assert (unknown.status_code, checked_error(unknown)["code"]) == (409, "need_placement")
    with transaction.atomic():
        Assignment.objects.all().delete()
        topology_changed()
    released = ask(shard_node, "set", {"epoch": 8, "slots": text_of(ALL_SLOTS)})
    assert (released.status_code, checked_error(released)["code"]) == (409, "need_placement")
    head.refresh_from_db()
    assert head.last_seq == 1


BAD = [
    ("set", {"epoch": -1, "slots": text_of(NO_SLOTS)}),
    ("set", {"epoch": True, "slots": text_of(NO_SLOTS)}),
    ("set", {"epoch": 1, "slots": "%%%"}),
    ("set", {"epoch": 1, "slots": text_of(NO_SLOTS)[:8]}),
    ("set", {"epoch": 1, "slots": [1, 2]}),
    ("set", {"slots": text_of(NO_SLOTS)}),
    ("set", b"[1]"),
    ("set", b"{"),
    ("set", b""),
    ("clean", {"slots": "%%%"}),
    ("clean", {"slots": text_of(NO_SLOTS), "epoch": "all"}),
    ("rows", {"slots": text_of(ALL_SLOTS), "after": "no cursor!", "max_bytes": 10}),
    ("rows", {"slots": text_of(ALL_SLOTS), "after": "", "max_bytes": 2**62}),
    ("entries", {"slots": text_of(ALL_SLOTS), "after": [1], "max_bytes": 10}),
    ("entries", {"slots": text_of(ALL_SLOTS), "after": None, "max_bytes": 10}),
    ("pin", {"holder": "h", "seq": 1.5}),
    ("quorum", {"position": [1, 1], "timeout_s": "soon"}),
    ("quorum", {"position": [1, 1], "timeout_s": None}),
    ("take", b"garbage"),
    ("take", b""),
]


@pytest.mark.parametrize(("operation", "body"), BAD)
def test_what_the_route_cannot_read_is_refused_and_changes_nothing(
    head: Any, operation: str, body: bytes | dict[str, Any]
) -> None:
    shard_node = ShardNode(head)

    answer = ask(shard_node, operation, body)

    assert answer.status_code == 400, answer.content
    checked_error(answer)
    head.refresh_from_db()
    assert head.last_seq == 0


def test_an_operation_that_there_is_not_is_not_found(head: Any) -> None:
    answer = ask(ShardNode(head), "explode", {})

    assert (answer.status_code, checked_error(answer)["code"]) == (404, "not_found")


def test_counts_of_slots_come_over_whole(processor: ClusterQueryProcessor) -> None:
    there = end_of(shard(REMOTE)).slot_counts()

    assert int(there[0].sum()) == len(held(REMOTE))
    assert np.array_equal(there[0] > 0, there[1] > 0)
