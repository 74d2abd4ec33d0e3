"""Clusters for tests: real nodes, with faults on their links where wanted; one primary and its replicas."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from mlvdb_site.http.signing import NO_BODY_SHA256, sign
from tests.processes.fault_proxy import Fault, FaultProxy
from tests.processes.history import Copy, History, Position, faults
from tests.processes.node import NodeProcess, wait_for
from tests.processes.writers import contents, values_of
from vectors.store.slices import slices_in

PRIMARY = "primary"
MEMBERS_WITHIN_S = 40.0
EQUAL_WITHIN_S = 45.0
# Checkpoints all the time: copies are made of segments as well as of tails, and logs are pruned behind them.
BUSY = {"MLVDB_TAIL_SOFT_BYTES": "100k", "MLVDB_CHECKPOINT_INTERVAL_S": "3", "MLVDB_LEASE_S": "1"}
# What nodes tell each other is told to a test that says it is one.
A_NODE = "7" * 32


class NodeGroup:
    """Real nodes by name, started and ended together; a context manager once a kind of cluster says how it starts.

    With `proxied` every node is known to the others under the URL of a fault proxy in front of it, while the test and
    its clients speak to the node itself. Settings hold for all nodes; `settings_of` adds some for single ones,
    `data_dirs` names a place for their data, `options` are what `serve` is started with.
    """

    def __init__(
        self,
        options: Mapping[str, tuple[str, ...]],
        *,
        proxied: bool = False,
        settings_of: dict[str, dict[str, str]] | None = None,
        data_dirs: dict[str, Path] | None = None,
        **settings: str,
    ) -> None:
        self.names = list(options)
        self.nodes: dict[str, NodeProcess] = {}
        self.links: dict[str, FaultProxy] = {}
        for name in self.names:
            own = (settings_of or {}).get(name, {})
            node = NodeProcess((data_dirs or {}).get(name), options=options[name], **settings, **own)
            self.nodes[name] = node
            if proxied:
                self.links[name] = FaultProxy(node.port)
                node.environ["MLVDB_ADVERTISE_URL"] = self.links[name].url

    def start(self) -> Self:
        """Start all nodes at once, and make a cluster of them."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(NodeProcess.start, self.nodes.values()))
        return self

    def close(self) -> None:
        """End everything; stopped processes are let go on first."""
        for link in self.links.values():
            link.close()
        for node in self.nodes.values():
            thaw(node)
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            ends = [pool.submit(node.close) for node in self.nodes.values()]
        errors = [end.exception() for end in ends]
        for error in errors:
            if error is not None:
                raise error

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException as error:
            error.add_note(self.log_tail())
            self.close()
            raise

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> NodeProcess:
        return self.nodes[name]

    def log_tail(self) -> str:
        """Return the end of what every node wrote."""
        return "\n".join(f"===== {name}\n{node.log_tail(25)}" for name, node in self.nodes.items())

    def url(self, name: str) -> str:
        """Return the URL under which the other nodes know a node."""
        return self.links[name].url if name in self.links else self.nodes[name].base_url

    def node_id(self, name: str) -> str:
        """Return the id a node has made for itself."""
        return (self.nodes[name].data_dir / "node-id").read_text().strip()

    def cut_off(self, *names: str, fault: Fault = Fault.SILENT) -> None:
        """Cut the links between these nodes and all others; both sides go on among themselves."""
        for inside in names:
            for outside in set(self.names) - set(names):
                self.links[outside].set_for(self.node_id(inside), fault)
                self.links[inside].set_for(self.node_id(outside), fault)

    def heal(self) -> None:
        """Make all links well, let stopped nodes go on, and start those that were killed."""
        for link in self.links.values():
            link.heal()
        for node in self.nodes.values():
            thaw(node)
            if node.process is not None and node.process.poll() is not None:
                node.start()

    def status(self, name: str) -> dict[str, Any]:
        """Return what a node tells its peers of itself."""
        path = "/cluster/node/status"
        secret = self.nodes[name].environ.get("MLVDB_CLUSTER_SECRET", "")
        headers = sign(secret, node=A_NODE, method="GET", path_and_query=path, body_sha256=NO_BODY_SHA256)
        answer = self.nodes[name].get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def verify(self) -> None:
        """Assert that every record and file of every node is what its checksum says."""
        for name, node in self.nodes.items():
            verified = node.manage("verify")
            assert verified.returncode == 0, f"{name}: {verified.stdout}{verified.stderr}"


class ReplicationCluster(NodeGroup):
    """Nodes by name: `primary`, `replica_1`, `replica_2`, …; `head` is the name of the node that is the primary now."""

    def __init__(
        self,
        replicas: int = 1,
        *,
        proxied: bool = False,
        settings_of: dict[str, dict[str, str]] | None = None,
        data_dirs: dict[str, Path] | None = None,
        **settings: str,
    ) -> None:
        options: dict[str, tuple[str, ...]] = {PRIMARY: ("--enable-replication", "primary")}
        options |= {f"replica_{number}": () for number in range(1, replicas + 1)}
        super().__init__(options, proxied=proxied, settings_of=settings_of, data_dirs=data_dirs, **settings)
        self.head = PRIMARY

    def start(self) -> Self:
        """Start all nodes at once, register the replicas, and wait until all of them are members."""
        super().start()
        for name in self.replicas:
            self.add(name)
        self.wait_until_members()
        return self

    @property
    def primary(self) -> NodeProcess:
        """The node that is the primary now."""
        return self.nodes[self.head]

    @property
    def replicas(self) -> list[str]:
        """The names of the others."""
        return [name for name in self.names if name != self.head]

    def heal(self) -> None:
        """Make all well again, and see who the primary is."""
        super().heal()
        shards = {name: self.shard(name) for name in self.names}
        self.head = max(self.names, key=lambda name: (shards[name]["role"] == "primary", shards[name]["term"]))

    # -- the registry -------------------------------------------------------------------------------------------

    def add(self, name: str) -> dict[str, Any]:
        """Register a replica with the primary."""
        query = {"replica_id": name, "replica_url": self.url(name)}
        answer = self.primary.post("/replication/replicas", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def info(self) -> dict[str, Any]:
        """Return what the primary says of its replicas, by our names: a promotion gives the old one another."""
        answer = self.primary.get("/replication/info")
        assert answer.status_code == 200, answer.text
        names = {self.url(name): name for name in self.names}
        return {names[replica["url"]]: replica for replica in answer.json()["replicas"].values()}

    def wait_until_members(self, *names: str, timeout_s: float = MEMBERS_WITHIN_S) -> None:
        """Wait until replicas (all, when none is named) are members and their node knows it."""
        wanted = names or tuple(self.replicas)

        def are_members() -> bool:
            info = self.info()
            return all(name in info and info[name]["member"] and info[name]["state"] == "following" for name in wanted)

        self._wait(are_members, timeout_s, f"members: {wanted}")

    def promote(self, name: str, *, force: bool = False) -> str:
        """Ask a replica itself to become the primary, or the one it says has more; return the new primary's name."""
        # A former primary that has not heard yet of the next one would answer that it is the primary already.
        wait_for(
            lambda: self.shard(name)["role"] == "replica", timeout_s=20, what=f"{name} to know that it is a replica"
        )
        query = {"force": "true"} if force else {}
        answer = self.nodes[name].post("/replication/promote", params=query, timeout=30)
        if answer.status_code == 409 and answer.json()["error"]["code"] == "more_caught_up":
            url = answer.json()["error"]["detail"]["url"]
            [name] = [other for other in self.names if self.url(other) == url]
            answer = self.nodes[name].post("/replication/promote", params=query, timeout=30)
        assert answer.status_code == 200, f"{answer.text}\n{self.log_tail()}"
        self.head = name
        return name

    # -- what the copies are ------------------------------------------------------------------------------------

    def shard(self, name: str) -> dict[str, Any]:
        """Return what a node says of its one shard copy."""
        [shard] = self.status(name)["shards"]
        return dict(shard)

    def position(self, name: str) -> Position:
        """Return how far a node's copy is."""
        shard = self.shard(name)
        return Position(shard["term"], shard["seq"])

    def wait_until_equal(self, *names: str, timeout_s: float = EQUAL_WITHIN_S) -> Position:
        """Wait until the copies of nodes (all, when none is named) are at one position; return it."""
        wanted = [self.head, *(names or self.replicas)]

        def are_equal() -> bool:
            return len({self.position(name) for name in wanted}) == 1

        self._wait(are_equal, timeout_s, f"one position of {wanted}")
        return self.position(self.head)

    def copies(self, *names: str) -> list[Copy]:
        """Wait until copies are at one position and return them in full; writes must have ended."""
        self.wait_until_equal(*names)
        copies = []
        for name in [self.head, *(names or self.replicas)]:
            shard = self.shard(name)
            assert shard["damage"] is None, shard
            terms = [(int(term), int(first_seq)) for term, first_seq in shard["terms"]]
            rows = wait_for(lambda name=name: _rows(self.nodes[name]), timeout_s=20, what=f"the rows of {name}")
            copies.append(Copy(name, Position(shard["term"], shard["seq"]), terms, rows[0]))
        return copies

    def set_aside(self) -> set[Position]:
        """Return the positions of all entries that the nodes have set aside in files."""
        return {
            Position(entry.term, entry.seq)
            for node in self.nodes.values()
            for path in (node.data_dir / "set-aside").glob("*.slice")
            for _before, entries in slices_in(path)
            for entry in entries
        }

    def prove(self, history: History) -> None:
        """Assert that all copies are equal in full and that every promise made in a history was kept."""
        copies = self.copies()
        found = faults(history, copies, values_of=values_of, set_aside=self.set_aside())
        assert not found, "\n".join([f"{len(found)} faults", *map(str, found[:20]), self.log_tail()])
        assert history.acknowledged() > 0

    def _wait(self, condition: Any, timeout_s: float, what: str) -> None:
        try:
            wait_for(condition, timeout_s=timeout_s, what=what)
        except AssertionError as error:
            with contextlib.suppress(Exception):
                error.add_note(json.dumps(self.primary.get("/replication/info").json(), indent=1))
            for name in self.names:
                with contextlib.suppress(Exception):
                    error.add_note(f"{name}: {json.dumps(self.status(name))}")
            error.add_note(self.log_tail())
            raise


def freeze(node: NodeProcess) -> None:
    """Stop all processes of a node (SIGSTOP): its kernel accepts connections, and nobody answers."""
    _signal_all(node, signal.SIGSTOP)


def thaw(node: NodeProcess) -> None:
    """Let a stopped node go on."""
    _signal_all(node, signal.SIGCONT)


@contextlib.contextmanager
def frozen(node: NodeProcess) -> Iterator[None]:
    """Keep a node stopped within the context."""
    freeze(node)
    try:
        yield
    finally:
        thaw(node)


def kill_all(node: NodeProcess) -> None:
    """Kill every process of a node at the same moment, as a power cut does; returns when all are gone."""
    _signal_all(node, signal.SIGKILL)
    if node.process is not None:
        node.process.wait()
    node.wait_until_gone()


def _signal_all(node: NodeProcess, number: signal.Signals) -> None:
    for pid in node.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _rows(node: NodeProcess) -> tuple[dict[str, dict[str, Any]]] | None:
    """Return the rows of a copy, wrapped so that none at all is true; None while it does not answer."""
    try:
        return (contents(node),)
    except AssertionError:
        return None
