"""Writers that remember what was acknowledged, and the check of a node against their memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import requests

from tests.processes.at_work import AtWork
from tests.processes.node import NodeProcess

DIMENSION = 8
PAGE = 500


@dataclass
class Attempt:
    """One write of one id: the version it set, None for a delete; whether it was acknowledged."""

    version: int | None
    acknowledged: bool = False


@dataclass
class History:
    """What was asked of the node, per id, in order: each id belongs to one writer."""

    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: count(1))

    def possible(self, row_id: str) -> set[int | None]:
        """Return the versions that the node may hold: that of the last acknowledged write, or of one tried since."""
        allowed: set[int | None] = {None}
        for attempt in self.attempts[row_id]:
            allowed = {attempt.version} if attempt.acknowledged else allowed | {attempt.version}
        return allowed

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged."""
        # Writers add to both meanwhile.
        return sum(attempt.acknowledged for attempts in list(self.attempts.values()) for attempt in list(attempts))


def values_of(row_id: str, version: int) -> list[float]:
    """Return the values that a version of a row has."""
    return [float(hash_of(f"{row_id}:{version}:{place}") % 997) for place in range(DIMENSION)]


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    number = 7
    for byte in text.encode():
        number = (number * 31 + byte) % 1_000_003
    return number


class Writers(AtWork):
    """Threads that write, overwrite and delete, alone and in batches, until they are stopped; a context manager."""

    def __init__(self, node: NodeProcess, *, threads: int = 4, seed: int = 0, history: History | None = None) -> None:
        self.node = node
        self.history = History() if history is None else history
        self._lock = threading.Lock()
        jobs = [partial(self._run, number, random.Random(seed * 100 + number)) for number in range(threads)]
        super().__init__(jobs, ends_within_s=30)

    def wait_for(self, acknowledged: int, timeout_s: float = 30.0) -> None:
        """Wait until that many writes were acknowledged in all."""
        self._wait(
            lambda: self.history.acknowledged >= acknowledged,
            timeout_s=timeout_s,
            missing=lambda: f"{self.history.acknowledged} acknowledged; {self.history.statuses[-5:]}",
        )

    def _run(self, number: int, rng: random.Random) -> None:
        session = requests.Session()
        while not self._stop.is_set():
            version = next(self.history.versions)
            rows = [f"w{number}-{rng.randrange(60)}" for _ in range(rng.choice([1, 1, 5, 20]))]
            rows = list(dict.fromkeys(rows))
            deleting = rng.random() < 0.15
            attempts = {row_id: Attempt(None if deleting else version) for row_id in rows}
            with self._lock:
                for row_id, attempt in attempts.items():
                    self.history.attempts.setdefault(row_id, []).append(attempt)
            try:
                answer = self._send(session, rows, None if deleting else version)
            except requests.RequestException:
                session.close()
                session = requests.Session()
                self._stop.wait(0.02)
                continue
            with self._lock:
                self.history.statuses.append(answer.status_code)
                for attempt in attempts.values():
                    attempt.acknowledged = answer.ok
            if answer.status_code == 503:
                self._stop.wait(0.05)

    def _send(self, session: requests.Session, rows: list[str], version: int | None) -> requests.Response:
        url = self.node.base_url
        if version is None:
            # The namespace may not be there yet: a 404 is a refusal that changed nothing.
            return session.post(f"{url}/vectors/delete", json={"ids": rows}, timeout=15)
        body = [
            {"id": row_id, "values": values_of(row_id, version), "metadata": {"version": version}} for row_id in rows
        ]
        if len(body) == 1:
            return session.post(f"{url}/vectors", json=body[0], timeout=15)
        return session.put(f"{url}/vectors/batch", json={"vectors": body}, timeout=15)


def contents(node: NodeProcess, **query: str) -> dict[str, dict[str, Any]]:
    """Return every row of the default namespace by id, page by page; fail when one is answered twice."""
    rows: dict[str, dict[str, Any]] = {}
    url: str | None = f"{node.base_url}/namespaces/vectors?limit={PAGE}"
    while url is not None:
        answer = node.session.get(url, timeout=15, params=query)
        assert answer.status_code == 200, answer.text
        for row in answer.json():
            assert row["id"] not in rows, f"{row['id']} was answered twice"
            rows[row["id"]] = row
        url = answer.links.get("next", {}).get("url")
    return rows


def check(node: NodeProcess, history: History) -> None:
    """Assert that the node holds what was acknowledged: each row once, in a version that it may have."""
    rows = contents(node)
    assert not set(rows) - set(history.attempts), "rows that nobody wrote"
    for row_id in history.attempts:
        row = rows.get(row_id)
        version = None if row is None else row["metadata"]["version"]
        allowed = history.possible(row_id)
        assert version in allowed, f"{row_id}: the node has version {version}, acknowledged or tried since: {allowed}"
        if row is not None:
            assert row["values"] == values_of(row_id, version), f"{row_id}: the values are not those of its version"
    total = node.post("/count", {}).json()["count"]
    assert total == len(rows)
    verified = node.manage("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
