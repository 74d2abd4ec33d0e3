"""A node of which only the registry's side can be seen: it answers status and placement as a test says."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson

from cluster.transport import PROTOCOL
from tests.cluster.scripted_peer import Connection, Request, ScriptedPeer


class StandInNode:
    """Listens on a free port from the start; by default an empty plain node that takes every placement or assignment.

    `placements`, `assignments` and `namespace_changes` are those it has taken; `status` is what it answers; `refusal`
    (status, code, detail) is what each of them gets instead; `silent` has it accept connections and say nothing.
    `orders` are the orders to stand for election, and what came for the replicas of its shard (route, body); `on_order`
    is called with each and returns a refusal or None.
    """

    def __init__(self, **status: Any) -> None:
        self.placements: list[dict[str, Any]] = []
        self.assignments: list[dict[str, Any]] = []
        self.namespace_changes: list[dict[str, Any]] = []
        self.refusal: tuple[int, str, dict[str, Any]] | None = None
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.on_order: Callable[[], tuple[int, str, dict[str, Any]] | None] = lambda: None
        self.silent = False
        self.status: dict[str, Any] = {
            "node": secrets.token_hex(16),
            "version": "0.1.0",
            "protocol": PROTOCOL,
            "cluster": "",
            "epoch": 0,
            "is_owner": False,
            "replication": False,
            "empty": True,
            "rows": 0,
            "replicas": 0,
            "shards": [],
            "is_coordinator": False,
            "assignment": None,
            **status,
        }
        self._peer = ScriptedPeer(self._serve)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._peer.url

    @property
    def node(self) -> str:
        """Its id."""
        return str(self.status["node"])

    @property
    def epochs(self) -> list[int]:
        """The epochs of the placements it has taken."""
        return [placement["epoch"] for placement in self.placements]

    def close(self) -> None:
        """End it."""
        self._peer.close()

    def has_applied(self, uid: str, *, term: int, seq: int) -> None:
        """Have it say from now on that its copy of a shard is at a position."""
        self.status["shards"] = [{"uid": uid, "role": "replica", "term": term, "seq": seq}]

    def _take_assignment(self, assignment: dict[str, Any]) -> None:
        self.assignments.append(assignment)
        uid, label = assignment["shard"]["uid"], assignment["shard"]["label"]
        coordinator = assignment["coordinator"]["url"]
        told = {"shard": uid, "label": label, "cluster": assignment["cluster"], "coordinator_url": coordinator}
        self.status["assignment"] = None if assignment["released"] else told
        self.status["shards"] = (
            [] if assignment["released"] else [{"uid": uid, "role": "primary", "term": 1, "seq": 0, "promised_term": 0}]
        )

    def _serve(self, connection: Connection) -> None:
        while (request := connection.request()) is not None:
            if self.silent:
                connection.hold()
                return
            self._answer(connection, request)

    def _answer(self, connection: Connection, request: Request) -> None:
        refusal = self.refusal if request.method == "PUT" else None
        if request.target.endswith(("/promote", "/replicas", "/lend")):
            self.orders.append((f"{request.method} {request.target.rsplit('/', 1)[1]}", orjson.loads(request.body)))
            refusal = self.on_order()
        if refusal is not None:
            status, code, detail = refusal
            error = {"code": code, "message": f"refused: {code}", "field": None, "detail": detail}
            connection.answer(orjson.dumps({"error": error, "request_id": None}), status=status)
            return
        if request.method == "PUT" and request.target == "/cluster/node/placement":
            placement = orjson.loads(request.body)
            self.placements.append(placement)
            self.status |= {"cluster": placement["cluster"], "epoch": placement["epoch"]}
        if request.method == "PUT" and request.target == "/cluster/node/assignment":
            self._take_assignment(orjson.loads(request.body))
        if request.method == "PUT" and request.target.endswith("/namespaces"):
            self.namespace_changes += orjson.loads(request.body)["changes"]
        if request.target.startswith("/cluster/node/alive"):
            connection.answer(b"", status=204)
            return
        copies = [copy for shard in self.status["shards"] for copy in shard.get("copies", ())]
        connection.answer(orjson.dumps({**self.status, "copies": copies}))


#: Makes a node that listens; what it is given is its status.
Nodes = Callable[..., StandInNode]


@contextmanager
def standin_nodes() -> Iterator[Nodes]:
    """Make nodes that listen until the context ends."""
    with ExitStack() as stack:

        def make(**status: Any) -> StandInNode:
            node = StandInNode(**status)
            stack.callback(node.close)
            return node

        yield make
