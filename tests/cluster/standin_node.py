"""A node of which only the registry's side can be seen: it answers status and placement as a test says."""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from tests.cluster.scripted_peer import Connection, Request, ScriptedPeer


class StandInNode:
    """Listens on a free port from the start; by default an empty plain node that takes every placement.

    `placements` are those it has taken; `status` is what it answers; `refusal` (status, code, detail) is what a
    placement gets instead; `silent` has it accept connections and say nothing.
    """

    def __init__(self, **status: Any) -> None:
        self.placements: list[dict[str, Any]] = []
        self.refusal: tuple[int, str, dict[str, Any]] | None = None
        self.silent = False
        self.status: dict[str, Any] = {
            "node": secrets.token_hex(16),
            "version": "0.1.0",
            "protocol": 1,
            "cluster": "",
            "epoch": 0,
            "is_owner": False,
            "replication": False,
            "empty": True,
            "rows": 0,
            "replicas": 0,
            "shards": [],
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

    def _serve(self, connection: Connection) -> None:
        while (request := connection.request()) is not None:
            if self.silent:
                connection.hold()
                return
            self._answer(connection, request)

    def _answer(self, connection: Connection, request: Request) -> None:
        if request.method == "PUT" and request.target == "/cluster/node/placement":
            if self.refusal is not None:
                status, code, detail = self.refusal
                error = {"code": code, "message": f"refused: {code}", "field": None, "detail": detail}
                connection.answer(orjson.dumps({"error": error, "request_id": None}), status=status)
                return
            placement = orjson.loads(request.body)
            self.placements.append(placement)
            self.status |= {"cluster": placement["cluster"], "epoch": placement["epoch"]}
        if request.target.startswith("/cluster/node/alive"):
            connection.answer(b"", status=204)
            return
        connection.answer(orjson.dumps(self.status))
