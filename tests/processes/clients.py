"""Clients of a replicated shard: they write, delete and read, alone or in threads, and record it in a history."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import requests
from urllib3.exceptions import NewConnectionError

from tests.processes.at_work import AtWork
from tests.processes.history import History, Outcome, Position, Read, Write
from tests.processes.node import NodeProcess
from tests.processes.writers import values_of
from vectors.tokens import parse_token

ROWS_PER_WRITER = 30
RECENT = 8
# Longer than the nodes' own deadlines: what a node has not answered by then, it will not.
ANSWER_WITHIN_S = 12.0
# These are said before anything is appended; every other error leaves open whether the write took effect.
REFUSALS = frozenset(
    {"not_primary", "checkpoint_behind", "busy", "storage_full", "memory_limit", "not_ready", "namespace_not_found"}
)


class Recorder:
    """Sends single requests to nodes by name and records what they were and what was answered."""

    def __init__(self, nodes: Mapping[str, NodeProcess], history: History, *, timeout_s: float = 5.0) -> None:
        self.nodes = nodes
        self.history = history
        self.timeout_s = timeout_s
        self._sessions = threading.local()

    def write(self, node: str, ids: Sequence[str], *, level: str = "one", delete: bool = False) -> Write:
        """Write a new version of rows, or delete them, and return what became of it."""
        version = None if delete else next(self.history.versions)
        write = Write(tuple(ids), version, level, node, time.monotonic())
        self.history.wrote(write)
        query = {"consistency": level, "timeout": f"{self.timeout_s:g}"}
        try:
            if version is None:
                answer = self._ask(node, "POST", "/vectors/delete", {"ids": list(ids)}, query)
            else:
                rows = [
                    {"id": row_id, "values": values_of(row_id, version), "metadata": {"version": version}}
                    for row_id in ids
                ]
                answer = self._ask(node, "PUT", "/vectors/batch", {"vectors": rows}, query)
        except requests.RequestException as error:
            write.outcome = Outcome.REFUSED if was_never_sent(error) else Outcome.UNKNOWN
            write.answer = repr(error)
            return write
        write.answer = f"{answer.status_code} {answer.text[:300]}"
        document = answer.json()
        if answer.ok:
            self._place(write, document["seq"])
            write.ended = time.monotonic()
            write.outcome = Outcome.ACKNOWLEDGED
            return write
        error, detail = document["error"], document["error"]["detail"]
        if error["code"] == "not_enough_copies":
            assert answer.status_code == 503, write.answer
            # As many as required may have it while the members change: then two sets of them are asked.
            assert 1 <= detail["acknowledged"] <= detail["required"], write.answer
            if version is not None:
                assert sorted(detail["ids"]) == sorted(ids), write.answer
            self._place(write, detail["seq"])
            write.outcome = Outcome.COMMITTED
        elif error["code"] in REFUSALS or answer.status_code in (400, 404):
            write.outcome = Outcome.REFUSED
        return write

    def read(
        self, node: str, row_id: str, *, level: str = "one", after: Write | None = None, search: bool = False
    ) -> requests.Response:
        """Read a row by its id or by a search, after a write where one is given; record it unless it failed."""
        query = {"consistency": level, "timeout": f"{self.timeout_s:g}"}
        if after is not None:
            query["min_seq"] = after.min_seq
        began = time.monotonic()
        if search:
            body = {"query": values_of(row_id, 1), "filter": {"id": row_id}}
            answer = self._ask(node, "POST", "/search", body, query)
        else:
            answer = self._ask(node, "GET", f"/vectors/{row_id}", None, query)
        ended = time.monotonic()
        lost = answer.status_code == 409 and answer.json()["error"]["code"] == "token_lost"
        # An answer that says that something is missing from it has not broken its word.
        if not (answer.ok or answer.status_code == 404 or lost) or answer.headers.get("X-MLVDB-Complete") == "false":
            return answer
        found = answer.json() if answer.ok else []
        if search:
            found = found[0] if found else None
        self.history.read(
            Read(
                row_id,
                found["metadata"]["version"] if answer.ok and found else None,
                level,
                node,
                began,
                ended,
                None if after is None else after.position,
                token_lost=lost,
                sees_answered="X-MLVDB-Stale" not in answer.headers,
            )
        )
        return answer

    def forget_connections(self, node: str) -> None:
        """Use a new connection from now on, in this thread."""
        session = vars(self._sessions).pop(node, None)
        if session is not None:
            session.close()

    def _ask(self, node: str, method: str, path: str, body: Any, query: dict[str, str]) -> requests.Response:
        session = vars(self._sessions).setdefault(node, requests.Session())
        url = self.nodes[node].base_url + path
        return session.request(method, url, json=body, params=query, timeout=ANSWER_WITHIN_S)

    @staticmethod
    def _place(write: Write, tokens: dict[str, str]) -> None:
        # The clusters of these tests have one shard.
        [(label, text)] = tokens.items()
        token = parse_token(text)
        write.position = Position(token.term, token.seq)
        write.min_seq = f"{label}:{text}"


class Clients(AtWork):
    """Writers and readers in threads, at work until the context ends.

    A writer keeps to one node of `write_to` and goes to the next when that does not do what was asked; readers ask any
    of `read_from`. Row ids carry the seed, so that several groups may share a history.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        write_to: Sequence[str],
        read_from: Sequence[str],
        levels: Sequence[str] = ("one", "quorum"),
        writers: int = 2,
        readers: int = 2,
        seed: int = 0,
    ) -> None:
        self.recorder = recorder
        self.history = recorder.history
        self.write_to, self.read_from, self.levels = write_to, read_from, levels
        self.seed = seed
        self.failures: list[str] = []
        self.acknowledged: list[Write] = []
        self._rows: list[str] = []
        jobs = [partial(self._write_on, number) for number in range(writers)]
        jobs += [partial(self._read_on, number) for number in range(readers)]
        super().__init__(jobs, ends_within_s=2 * ANSWER_WITHIN_S)

    def wait_for(self, acknowledged: int, *levels: str, timeout_s: float = 45.0) -> None:
        """Wait until that many more of these writes are acknowledged, at any of the levels when some are named."""
        wanted = self._count(levels) + acknowledged
        self._wait(
            lambda: self._count(levels) >= wanted,
            timeout_s=timeout_s,
            missing=lambda: (
                f"{wanted - self._count(levels)} of {acknowledged} writes {levels} are not acknowledged; "
                f"failures: {self.failures[-5:]}"
            ),
        )

    def _count(self, levels: Sequence[str]) -> int:
        return sum(not levels or write.level in levels for write in list(self.acknowledged))

    def _write_on(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        place, made = number, 0
        rows: list[str] = []
        while not self._stop.is_set():
            while len(rows) < ROWS_PER_WRITER:
                rows.append(f"w{self.seed}-{number}-{made}")
                made += 1
            node = self.write_to[place % len(self.write_to)]
            ids = rng.sample(rows, rng.choice([1, 1, 4, 12]))
            self._rows.extend(ids)
            write = self.recorder.write(node, ids, level=rng.choice(self.levels), delete=rng.random() < 0.2)
            if write.outcome is Outcome.ACKNOWLEDGED:
                self.acknowledged.append(write)
            else:
                self.failures.append(f"{node}: {write.answer}")
            if write.outcome is Outcome.UNKNOWN:
                # It may take effect at any time: whoever wrote these rows again could not say which version counts.
                rows = [row_id for row_id in rows if row_id not in ids]
            if write.outcome is not Outcome.ACKNOWLEDGED:
                place += 1
                self.recorder.forget_connections(node)
                self._stop.wait(0.05)
            self._stop.wait(rng.uniform(0.0, 0.02))

    def _read_on(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + 500 + number)
        while not self._stop.is_set():
            if self.acknowledged:
                self._read_one(rng, rng.choice(self.read_from))
            self._stop.wait(rng.uniform(0.0, 0.02))

    def _read_one(self, rng: random.Random, node: str) -> None:
        row_id, level, after = rng.choice(self._rows[-200:]), "one", None
        kind = rng.random()
        if kind < 0.6:
            after = rng.choice(self.acknowledged[-RECENT:])
            row_id = rng.choice(after.ids)
        elif kind < 0.8:
            level = "quorum"
        try:
            answer = self.recorder.read(node, row_id, level=level, after=after, search=rng.random() < 0.5)
        except requests.RequestException as error:
            self.failures.append(f"{node}: {error!r}")
            self.recorder.forget_connections(node)
            self._stop.wait(0.05)
            return
        if answer.status_code not in (200, 404, 409, 503):
            raise AssertionError(f"{node} answered a read with {answer.status_code} {answer.text}")


def was_never_sent(error: requests.RequestException) -> bool:
    """Return whether the connection was refused, so that the node has not seen the request."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, NewConnectionError)
