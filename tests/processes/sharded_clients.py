"""Clients of a sharded cluster: they write, delete, read, search and count in threads, and record it in a history.

Every writer has a group of rows of its own, some of which get their ids from the cluster; it deletes by ids and by
filter. A second namespace, `fixed`, is written once: what a search over it answers is known in advance.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

import requests

from tests.processes.at_work import AtWork
from tests.processes.clients import was_never_sent
from tests.processes.history import Outcome
from tests.processes.node import NodeProcess
from tests.processes.sharded_history import Answered, FixedSearch, Row, RowWrite, ShardingHistory, Tally, View
from tests.processes.writers import DIMENSION, hash_of, values_of

FIXED = "fixed"
ROWS_PER_WRITER = 40
PAGE = 60
# What a busy machine may add to a deadline.
SLACK_S = 1.5
# Longer than any deadline: what has not been answered by then will not be.
ANSWER_WITHIN_S = 15.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# These are said before anything is appended; every other error leaves open whether the write took effect.
REFUSALS = frozenset(
    {"slots_closed", "not_primary", "checkpoint_behind", "busy", "storage_full", "memory_limit", "not_ready"}
)


class ShardingRecorder:
    """Sends single requests to one node and records what they were and what was answered."""

    def __init__(self, node: NodeProcess, history: ShardingHistory, *, timeout_s: float = 3.0) -> None:
        self.node = node
        self.history = history
        self.timeout_s = timeout_s
        self._sessions = threading.local()

    # -- writes -------------------------------------------------------------------------------------------------

    def write(
        self,
        ids: Sequence[str],
        group: str,
        *,
        delete: bool = False,
        by_filter: bool = False,
        version: int | None = None,
        level: str = "one",
    ) -> tuple[list[RowWrite], str]:
        """Write a new version of rows, or the one given once more, or delete them, by a filter if wanted.

        Return what became of every row, and the token of the answer in the form that a read takes.
        """
        if version is None and not delete:
            version = next(self.history.versions)
        writes = [RowWrite(row_id, group, version, time.monotonic()) for row_id in ids]
        self.history.wrote(writes)
        if version is not None:
            rows = [_row(write.row_id, version, write.group) for write in writes]
            return writes, self._send(writes, "PUT", "/vectors/batch", {"vectors": rows}, level)
        body = {"filter": {"group": group, "id__in": list(ids)}} if by_filter else {"ids": list(ids)}
        return writes, self._send(writes, "POST", "/vectors/delete", body, level)

    def patch(
        self, row_id: str, group: str, *, version: int, made: int, level: str = "one"
    ) -> tuple[list[RowWrite], str]:
        """Give a row that is there another version but leave its values, which are those of `made`; as `write`."""
        write = RowWrite(row_id, group, version, time.monotonic(), made=made)
        self.history.wrote([write])
        body = {"metadata": {"version": version, "made": made}}
        token = self._send([write], "PATCH", f"/vectors/{row_id}", body, level)
        if write.answer.startswith("404"):
            view = View("patch", (), write.began, time.monotonic(), frozenset({row_id}))
            with self.history.lock:
                self.history.views.append(view)
        return [write], token

    def insert(self, rows: int, group: str, *, version: int, level: str = "one") -> tuple[list[RowWrite], str]:
        """Write rows that get their ids from the cluster; return as `write` does, for those whose ids were told."""
        began = time.monotonic()
        row = {"values": values_of("", version), "metadata": {"version": version, "group": group}}
        try:
            answer = self.ask("PUT", "/vectors/batch", {"vectors": [row] * rows}, consistency=level)
        except requests.RequestException as error:
            if not was_never_sent(error):
                self.history.may_have_made(version, group, began)
            return [], ""
        document = answer.json()
        ids = document["ids"] if answer.ok else document["error"].get("detail", {}).get("ids", [])
        if not ids and document["error"]["code"] not in REFUSALS:
            self.history.may_have_made(version, group, began)
        writes = [RowWrite(row_id, group, version, began) for row_id in ids]
        self.history.wrote(writes)
        return writes, self._settle(writes, answer)

    def _send(self, writes: Sequence[RowWrite], method: str, path: str, body: dict[str, Any], level: str) -> str:
        try:
            answer = self.ask(method, path, body, consistency=level)
        except requests.RequestException as error:
            for write in writes:
                write.outcome = Outcome.REFUSED if was_never_sent(error) else Outcome.UNKNOWN
                write.answer = repr(error)
            return ""
        token = self._settle(writes, answer)
        if "filter" in body and answer.ok:
            assert 0 <= answer.json()["deleted"] <= len(writes), answer.text
        return token

    def _settle(self, writes: Sequence[RowWrite], answer: requests.Response) -> str:
        """Take in what became of each row; return the token."""
        ended = time.monotonic()
        for write in writes:
            write.answer = f"{answer.status_code} {answer.text[:400]}"
        document = answer.json()
        if answer.ok:
            for write in writes:
                write.acknowledge(ended)
            return ",".join(f"{label}:{token}" for label, token in document["seq"].items())
        error = document["error"]
        if error["code"] == "partial_write" and error["detail"]["ids"]:
            self._partly(writes, error["detail"], ended)
        elif error["code"] in REFUSALS or answer.status_code in (400, 404):
            for write in writes:
                write.outcome = Outcome.REFUSED
        else:
            assert answer.status_code == 503, answer.text
        return ""

    @staticmethod
    def _partly(writes: Sequence[RowWrite], detail: dict[str, Any], ended: float) -> None:
        statuses = {shard["status"] for shard in detail["shards"].values()}
        assert statuses - {"committed"}, detail
        failed = set(detail["failed_ids"])
        assert failed <= {write.row_id for write in writes}, detail
        for write in writes:
            if write.row_id not in failed:
                write.acknowledge(ended)
            elif "unknown" not in statuses:
                write.outcome = Outcome.REFUSED

    # -- reads --------------------------------------------------------------------------------------------------

    def get(self, row_id: str, *, min_seq: str = "") -> requests.Response:
        """Read one row, after a write where its token is given."""
        began, answer = self._timed("GET", f"/vectors/{row_id}", None, **({"min_seq": min_seq} if min_seq else {}))
        if answer.ok or (answer.status_code == 404 and answer.json()["error"]["code"] == "vector_not_found"):
            self._see("get", [answer.json()] if answer.ok else [], began, answer, about=frozenset({row_id}))
        return answer

    def fetch(self, ids: Sequence[str], *, partial: bool | None = None) -> requests.Response:
        """Read several rows at once."""
        began, answer = self._timed("POST", "/vectors/fetch", {"ids": list(ids)}, **_partial(partial))
        if answer.ok:
            self._see("fetch", answer.json()["vectors"], began, answer, about=frozenset(ids))
        return answer

    def search(self, group: str, *, partial: bool | None = None) -> requests.Response:
        """List a group by a search that all of its rows match."""
        body = {"query": [1.0] * DIMENSION, "metric": "l2", "top_k": 1000, "filter": {"group": group}}
        began, answer = self._timed("POST", "/search", body, **_partial(partial))
        if answer.ok:
            self._see("search", answer.json(), began, answer, group=group)
            scores = [hit["score"] for hit in answer.json()]
            assert scores == sorted(scores), f"not best first: {answer.text[:1000]}"
        return answer

    def scroll(self, group: str | None = None, *, final: bool = False) -> View | None:
        """List a group, or all rows, page by page; None when a page was refused."""
        began, rows, after = time.monotonic(), [], None
        while True:
            query = {"limit": str(PAGE if not final else 2000)} | ({"after": after} if after else {})
            if group is not None:
                query["filter"] = f'{{"group": "{group}"}}'
            _began, answer = self._timed("GET", "/namespaces/vectors", None, **query)
            if not answer.ok:
                return None
            rows += answer.json()
            if "next" not in answer.links:
                break
            after = rows[-1]["id"]
        return self._see("scroll", rows, began, answer, group=group, ordered=True, final=final)

    def count(self, group: str | None = None) -> requests.Response:
        """Count a group, or all rows."""
        body = {} if group is None else {"filter": {"group": group}}
        began, answer = self._timed("POST", "/count", body)
        if answer.ok:
            tally = Tally(answer.json()["count"], began, time.monotonic(), group, _is_complete(answer))
            with self.history.lock:
                self.history.tallies.append(tally)
        return answer

    # -- rows that nobody changes -------------------------------------------------------------------------------

    def write_fixed(self, rows: int) -> FixedRows:
        """Write the fixed rows; to be called once."""
        fixed = FixedRows(rows)
        for first in range(0, rows, 1000):
            body = {"vectors": fixed.documents[first : first + 1000]}
            answer = self.ask("PUT", "/vectors/batch", body, namespace=FIXED)
            assert answer.ok, answer.text
        return fixed

    def search_fixed(
        self, fixed: FixedRows, number: int, *, top_k: int = 20, exact: bool = False, **query: str
    ) -> requests.Response:
        """Search the fixed rows; the answer is known."""
        body = {"query": fixed.queries[number], "metric": "l2", "top_k": top_k, "with_metadata": False, "exact": exact}
        _began, answer = self._timed("POST", "/search", body, namespace=FIXED, **query)
        if answer.ok:
            hits = [(hit["id"], hit["score"]) for hit in answer.json()]
            self._searched(FixedSearch(fixed.rankings[number], hits, top_k, _is_complete(answer)))
        return answer

    def count_fixed(self, fixed: FixedRows) -> requests.Response:
        """Count the fixed rows; the answer is known."""
        _began, answer = self._timed("POST", "/count", {}, namespace=FIXED)
        if answer.ok and _is_complete(answer):
            number = float(answer.json()["count"])
            right = [("rows", float(len(fixed.documents)))]
            self._searched(FixedSearch(right, [("rows", number)], 1, complete=True))
        return answer

    def _searched(self, search: FixedSearch) -> None:
        with self.history.lock:
            self.history.searches.append(search)

    # -- requests -----------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> requests.Response:
        """Send a request with this recorder's time-out and note how long it took."""
        session = vars(self._sessions).setdefault("session", requests.Session())
        query.setdefault("timeout", f"{self.timeout_s:g}")
        began = time.monotonic()
        answer = session.request(
            method, self.node.base_url + path, json=body, params=query, timeout=ANSWER_WITHIN_S + self.timeout_s
        )
        took = Answered(f"{method} {path} {answer.status_code}", time.monotonic() - began, self.timeout_s + SLACK_S)
        with self.history.lock:
            self.history.answered.append(took)
        return answer

    def forget_connection(self) -> None:
        """Use a new connection from now on, in this thread."""
        session = vars(self._sessions).pop("session", None)
        if session is not None:
            session.close()

    def _timed(self, method: str, path: str, body: Any, **query: str) -> tuple[float, requests.Response]:
        began = time.monotonic()
        answer = self.ask(method, path, body, **query)
        if answer.status_code == 409 and answer.json()["error"]["code"] == "token_lost":
            self.history.lost_tokens.append(query["min_seq"])
        return began, answer

    def _see(
        self, kind: str, documents: Sequence[dict[str, Any]], began: float, answer: requests.Response, **about: Any
    ) -> View:
        rows = tuple(
            Row(row["id"], row["metadata"]["version"], tuple(row["values"] or ()), row["metadata"].get("made"))
            for row in documents
        )
        stale = "X-MLVDB-Stale" in answer.headers
        view = View(kind, rows, began, time.monotonic(), complete=_is_complete(answer), stale=stale, **about)
        with self.history.lock:
            self.history.views.append(view)
        return view


class FixedRows:
    """Rows with values of few distinct numbers, so that scores are exact in float32 and ties are many."""

    QUERIES = 6

    def __init__(self, rows: int) -> None:
        vectors = {f"fixed-{number}": _digits(f"row {number}") for number in range(rows)}
        self.documents = [
            {"id": row_id, "values": values, "metadata": {"size": len(row_id)}} for row_id, values in vectors.items()
        ]
        self.queries = [_digits(f"query {number}") for number in range(self.QUERIES)]
        self.rankings = [
            sorted(
                ((row_id, _distance(query, values)) for row_id, values in vectors.items()),
                key=lambda hit: (hit[1], hit[0]),
            )
            for query in self.queries
        ]


class ShardingClients(AtWork):
    """Writers (who delete as well) and readers of all kinds in threads, at work until the context ends."""

    def __init__(
        self,
        recorder: ShardingRecorder,
        *,
        fixed: FixedRows | None = None,
        level: str = "one",
        writers: int = 2,
        readers: int = 2,
        seed: int = 0,
    ) -> None:
        self.recorder, self.history = recorder, recorder.history
        self.fixed, self.level, self.seed = fixed, level, seed
        self.failures: deque[str] = deque(maxlen=20)
        self.written = self.answered = self.incomplete = 0
        self._groups = [f"g{seed}w{number}" for number in range(writers)]
        self._recent: deque[tuple[str, str]] = deque(maxlen=16)
        self._lock = threading.Lock()
        jobs = [partial(self._write_on, number) for number in range(writers)]
        jobs += [partial(self._read_on, number) for number in range(readers)]
        super().__init__(jobs, ends_within_s=3 * ANSWER_WITHIN_S)

    def wait_for(self, *, writes: int = 0, reads: int = 0, timeout_s: float = 30.0) -> None:
        """Wait until that many more writes are acknowledged and reads answered in full."""
        written, answered = self.written + writes, self.answered + reads
        self._wait(
            lambda: self.written >= written and self.answered >= answered,
            timeout_s=timeout_s,
            missing=lambda: (
                f"{written - self.written} of {writes} writes and {answered - self.answered} of {reads} reads; "
                f"failures: {list(self.failures)[-5:]}"
            ),
        )

    def _write_on(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        group, numbers = self._groups[number], count()
        rows: list[str] = []
        # Of which version the values are of each row that is there.
        made_in: dict[str, int] = {}
        while not self._stop.is_set():
            while len(rows) < ROWS_PER_WRITER:
                rows.append(f"{group}-{next(numbers)}")
            ids = rng.sample(rows, rng.choice([1, 1, 4, 15]))
            delete = rng.random() < 0.2
            by_filter = rng.random() < 0.3
            version = None if delete else next(self.history.versions)
            unknown: set[str] = set()
            made = made_in.get(ids[0]) if len(ids) == 1 and rng.random() < 0.5 else None
            left = ids
            if version is not None and made is None and len(rows) < 2 * ROWS_PER_WRITER and rng.random() < 0.1:
                writes, token = self.recorder.insert(rng.choice([1, 3]), group, version=version, level=self.level)
                ids = [write.row_id for write in writes]
                rows += ids
                left = [write.row_id for write in writes if write.outcome is not Outcome.ACKNOWLEDGED]
                unknown |= {write.row_id for write in writes if write.outcome is Outcome.UNKNOWN}
            while left and not self._stop.is_set():
                if version is not None and made is not None:
                    writes, token = self.recorder.patch(ids[0], group, version=version, made=made, level=self.level)
                else:
                    writes, token = self.recorder.write(
                        left, group, delete=delete, by_filter=by_filter, version=version, level=self.level
                    )
                left = []
                for write in writes:
                    if write.outcome is Outcome.ACKNOWLEDGED:
                        continue
                    self.failures.append(f"{write.row_id}: {write.answer}")
                    if write.outcome is Outcome.UNKNOWN:
                        unknown.add(write.row_id)
                    left.append(write.row_id)
                if left:
                    self._stop.wait(0.1)
            if ids and not left:
                self._recent.append((ids[0], token))
                with self._lock:
                    self.written += 1
            self._stop.wait(rng.uniform(0.0, 0.02) if ids else 0.1)
            if version is None:
                made_in = {row_id: known for row_id, known in made_in.items() if row_id not in ids}
            elif made is None:
                made_in |= dict.fromkeys(ids, version)
            # A write whose end nobody knows may take effect at any time: after its repetition the row is left alone.
            rows = [row_id for row_id in rows if row_id not in unknown]

    def _read_on(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + 500 + number)
        while not self._stop.is_set():
            try:
                answer = self._read_one(rng)
            except requests.RequestException as error:
                self.failures.append(repr(error))
                self.recorder.forget_connection()
                self._stop.wait(0.05)
                continue
            if answer is not None:
                if answer.status_code not in (200, 404, 503):
                    raise AssertionError(f"a read was answered with {answer.status_code} {answer.text}")
                if answer.status_code == 503:
                    self.failures.append(answer.text[:300])
                elif not _is_complete(answer):
                    self.incomplete += 1
                else:
                    with self._lock:
                        self.answered += 1
            self._stop.wait(rng.uniform(0.0, 0.02))

    def _read_one(self, rng: random.Random) -> requests.Response | None:
        group = rng.choice(self._groups)
        row_ids = [f"{group}-{rng.randrange(ROWS_PER_WRITER)}" for _ in range(5)]
        kind = rng.randrange(9 if self.fixed is not None else 6)
        if kind == 0:
            return self.recorder.get(row_ids[0])
        if kind == 1 and self._recent:
            row_id, token = rng.choice(list(self._recent))
            return self.recorder.get(row_id, min_seq=token)
        if kind == 2:
            return self.recorder.fetch(list(dict.fromkeys(row_ids)), partial=rng.choice([None, True]))
        if kind == 3:
            self.recorder.scroll(group)
            return None
        if kind == 4:
            return self.recorder.count(group)
        if self.fixed is None or kind < 6:
            return self.recorder.search(group)
        if kind == 6:
            return self.recorder.count_fixed(self.fixed)
        return self.recorder.search_fixed(self.fixed, rng.randrange(FixedRows.QUERIES), exact=rng.random() < 0.5)


def values_for(row_id: str, version: int) -> list[float]:
    """Return the values of a version of a row; those whose ids come from the cluster have the version's."""
    return values_of("" if _UUID.fullmatch(row_id) else row_id, version)


def _row(row_id: str, version: int, group: str) -> dict[str, Any]:
    return {"id": row_id, "values": values_for(row_id, version), "metadata": {"version": version, "group": group}}


def _partial(partial: bool | None) -> dict[str, str]:
    return {} if partial is None else {"partial": str(partial).lower()}


def _is_complete(answer: requests.Response) -> bool:
    return answer.headers.get("X-MLVDB-Complete") != "false"


def _digits(text: str) -> list[float]:
    return [float(hash_of(f"{text}:{place}") % 7) for place in range(DIMENSION)]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
