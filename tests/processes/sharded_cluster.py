"""A sharded cluster for a test: a coordinator with local shards and nodes that are, or may become, its remote ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import requests

from cluster.transport import wire
from mlvdb_site.http.signing import sign
from tests.processes.cluster import A_NODE, NodeGroup
from tests.processes.node import NodeProcess, wait_for
from tests.processes.sharded_clients import ShardingRecorder, values_for
from tests.processes.sharded_history import ShardingHistory, sharding_faults
from vectors.engine.ids import id_of, key_of_text, slot_of

COORDINATOR = "coordinator"
REACHED_WITHIN_S = 40.0
MOVED_WITHIN_S = 60.0
# Some phases last for milliseconds.
_PHASES_EVERY_S = 0.002


class ShardedCluster(NodeGroup):
    """Nodes by name: `coordinator`, and `shard_a`, `shard_b`, … which are the labels they get when they are added.

    `added` of the remote nodes are shards from the beginning, the others empty plain nodes. Options as for NodeGroup.
    """

    def __init__(
        self,
        local: int = 1,
        remote: int = 1,
        *,
        added: int | None = None,
        strategy: str = "hash",
        proxied: bool = False,
        settings_of: dict[str, dict[str, str]] | None = None,
        data_dirs: dict[str, Path] | None = None,
        **settings: str,
    ) -> None:
        sharding = ("--enable-sharding", "--shards", str(local), "--sharding-strategy", strategy)
        self.remote = [f"shard_{letter}" for letter in "abcdef"[:remote]]
        self._added = self.remote[: remote if added is None else added]
        options = {COORDINATOR: sharding} | dict.fromkeys(self.remote, ())
        super().__init__(options, proxied=proxied, settings_of=settings_of, data_dirs=data_dirs, **settings)

    @property
    def coordinator(self) -> NodeProcess:
        """The node that keeps the registry and spreads requests over the shards."""
        return self.nodes[COORDINATOR]

    def start(self) -> Self:
        """Start all nodes at once, make shards of those wanted, and wait until they have their share of the slots."""
        super().start()
        for name in self._added:
            self.add(name)
        # A node that was slow to answer gets its share by a later move.
        self.wait(lambda: all(self.slots()[name] for name in self._added), MOVED_WITHIN_S, "slots for every shard")
        self.wait_until_settled()
        return self

    def heal(self) -> None:
        """Make all well again, and wait until the coordinator knows that its shards are."""
        super().heal()
        self.wait(
            lambda: all(shard["is_healthy"] for shard in self.info()["shards"].values()),
            REACHED_WITHIN_S,
            "the health of all shards",
        )

    # -- the registry -------------------------------------------------------------------------------------------

    def add(self, label: str, **options: Any) -> int | None:
        """Add a shard: one of the remote nodes by its name, a local one by any other; return the move that fills it."""
        query = {"shard_id": label, **options}
        if label in self.remote:
            query["shard_url"] = self.url(label)
        answer = self.coordinator.post("/sharding/shards", params=query, timeout=20)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["shard_id"] == label, document
        assert document["is_local"] == (label not in self.remote), document
        return document.get("move")

    def remove(self, label: str, **options: Any) -> requests.Response:
        """Ask for the removal of a shard."""
        url = f"{self.coordinator.base_url}/sharding/shards/{label}"
        return self.coordinator.session.delete(url, params=options, timeout=20)

    def redistribute(self, source: str, target: str) -> int:
        """Move the slots of one shard to another; return the move."""
        answer = self.coordinator.post(f"/sharding/shards/{source}/redistribute/{target}", timeout=20)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["move"])

    def rebalance(self) -> int:
        """Spread the slots by weight; return the move."""
        answer = self.coordinator.post("/sharding/shards/redistribute-all", timeout=20)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["move"])

    def info(self) -> dict[str, Any]:
        """Return what the coordinator says of sharding."""
        answer = self.coordinator.get("/sharding/info")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def slots(self) -> dict[str, int]:
        """Return how many slots each shard owns."""
        return {label: shard["slots"] for label, shard in self.info()["shards"].items()}

    def wait_for_health(self, label: str, health: str, *, timeout_s: float = REACHED_WITHIN_S) -> None:
        """Wait until the coordinator thinks of a remote shard that it is alive, or dead."""
        self.wait(lambda: self.info()["shards"][label]["health"] == health, timeout_s, f"{label} {health}")

    # -- moves --------------------------------------------------------------------------------------------------

    def moves(self) -> list[dict[str, Any]]:
        """Return all moves, newest first."""
        return list(self.coordinator.get("/cluster/moves").json()["moves"])

    def move(self, number: int) -> dict[str, Any]:
        """Return a move."""
        answer = self.coordinator.get(f"/cluster/moves/{number}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def phases(self, number: int) -> set[str]:
        """Return the phases of a move and its steps, from the registry itself, which answers sooner than the API."""
        with self._registry() as database:
            move = database.execute("SELECT phase FROM cluster_move WHERE id = ?", (number,))
            steps = database.execute("SELECT phase FROM cluster_movestep WHERE move_id = ?", (number,))
            return {phase for (phase,) in [*move, *steps]}

    def wait_for_phase(self, number: int, *wanted: str, timeout_s: float = MOVED_WITHIN_S) -> str:
        """Wait until a step of a move is in one of these phases, or beyond all; return the phase that was seen."""
        ends = {*wanted, "done", "failed", "cancelled"}
        seen = wait_for(
            lambda: self.phases(number) & ends,
            timeout_s=timeout_s,
            what=f"{wanted} of move {number}",
            every_s=_PHASES_EVERY_S,
        )
        return next((phase for phase in wanted if phase in seen), "over")

    def wait_for_move(self, number: int | None, *, phase: str = "done", timeout_s: float = MOVED_WITHIN_S) -> None:
        """Wait until a move is over, and assert how it ended."""
        if number is None:
            return
        self.wait(lambda: self.move(number)["phase"] in {"done", "failed", "cancelled"}, timeout_s, f"move {number}")
        move = self.move(number)
        assert move["phase"] == phase, f"{move}\n{self.log_tail()}"

    def control(self, number: int, verb: str) -> requests.Response:
        """Pause, resume or cancel a move."""
        return self.coordinator.post(f"/cluster/moves/{number}/{verb}", timeout=20)

    def wait_until_settled(self, *, timeout_s: float = MOVED_WITHIN_S) -> None:
        """Wait until no move is left to do, no shard is on its way in or out, and all are well."""

        def is_settled() -> bool:
            shards = self.info()["shards"].values()
            moves = [move for move in self.moves() if move["kind"] in {"rebalance", "drain", "redistribute"}]
            over = all(move["phase"] in {"done", "failed", "cancelled"} for move in moves)
            # Between two moves of a drain, whose plan another change has overtaken, the shard says that it goes on.
            return over and all(shard["is_healthy"] and shard["state"] == "active" for shard in shards)

        self.wait(is_settled, timeout_s, "the end of all moves")

    # -- what the shards hold -----------------------------------------------------------------------------------

    def owners(self) -> Callable[[str], str]:
        """Return a function that names the shard of an id by the registry's slot table."""
        with self._registry() as database:
            labels = dict(database.execute("SELECT id, label FROM cluster_shard"))
            [[table]] = database.execute("SELECT slots FROM cluster_topology")
        numbers = memoryview(table).cast("H")
        return lambda row_id: str(labels[numbers[slot_of(key_of_text(row_id))]])

    def held(self) -> dict[str, list[str]]:
        """Return what each shard's primary copy holds, `namespace/id`, whether it owns it or not."""
        held: dict[str, list[str]] = {}
        spaces = self.coordinator.get("/namespaces").json()["namespaces"]
        labels = self.info()["shards"]
        for name in self.names:
            status = self.status(name)
            # A shard may be at another node by now than the one it was added with.
            if name != COORDINATOR and not status["assignment"]:
                continue
            for shard in status["shards"]:
                if shard["role"] == "primary":
                    assert shard["damage"] is None, shard
                    rows = [self._rows_of(name, status["cluster"], shard["uid"], space) for space in spaces]
                    held[shard["label"]] = [row_id for ids in rows for row_id in ids]
        return {label: ids for label, ids in held.items() if label in labels}

    def prove(self, history: ShardingHistory) -> None:
        """Assert that every promise of a history was kept and every row is there once, where it belongs."""
        self.wait_until_settled()
        recorder = ShardingRecorder(self.coordinator, history, timeout_s=10.0)
        view = recorder.scroll(final=True)
        assert view is not None, f"the rows could not be listed\n{self.log_tail()}"
        assert recorder.count().ok
        found = sharding_faults(history, values_of=values_for, placed=self.held(), owner_of=self._owner_of_held())
        assert not found, "\n".join([f"{len(found)} faults", *map(str, found[:20]), self.log_tail()])
        assert history.acknowledged() > 0
        # The numbers of remote shards are those of the last probe.
        self.wait(lambda: self._counted() == self._total(), 20, "as many rows at the shards as in the cluster")

    def _counted(self) -> int:
        return sum(shard["vector_count"] for shard in self.info()["shards"].values())

    def _total(self) -> int:
        return int(self.coordinator.get("/storage/info").json()["total_vectors"])

    def _owner_of_held(self) -> Callable[[str], str]:
        owners = self.owners()
        return lambda held: owners(held.partition("/")[2])

    def _rows_of(self, name: str, cluster: str, uid: str, namespace: str) -> Sequence[str]:
        path = f"/cluster/node/shards/{uid}/read?cluster={cluster}"
        arguments = {"namespace": namespace, "limit": 100_000, "with_values": False}
        body = wire.read_request("scroll", arguments)
        digest = hashlib.sha256(body).hexdigest()
        secret = self.nodes[name].environ.get("MLVDB_CLUSTER_SECRET", "")
        headers = sign(secret, node=A_NODE, method="POST", path_and_query=path, body_sha256=digest)
        headers["Content-Type"] = "application/msgpack"
        answer = self.nodes[name].session.post(self.nodes[name].base_url + path, data=body, headers=headers, timeout=10)
        if answer.status_code != 200:
            assert "namespace" in answer.text, f"{name}: {answer.status_code} {answer.text}"
            return []
        page = wire.answer_of("scroll", answer.content).value
        assert page.next_after is None
        return [f"{namespace}/{id_of(record.key)}" for record in page.records]

    def _registry(self) -> Any:
        path = self.coordinator.data_dir / "node.sqlite3"
        return contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10))

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until a condition is true; when that fails, say what the cluster was like."""
        try:
            wait_for(condition, timeout_s=timeout_s, what=what)
        except AssertionError as error:
            for path in ("/sharding/info", "/cluster/moves"):
                with contextlib.suppress(Exception):
                    error.add_note(json.dumps(self.coordinator.get(path).json(), indent=1))
            error.add_note(self.log_tail())
            raise
