"""Copies of a shard on other nodes, as far as a query processor sees them: positions, rows, errors, and when."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.query_processor import ClusterQueryProcessor, agreement, means, processor, reads
from cluster.query_processor.reading import Read
from cluster.query_processor.remote import CopyPosition
from cluster.query_processor.staleness import Hearing
from cluster.replication.placements import PlacementDocument
from cluster.transport.errors import PeerRefused, PeerSilent
from tests.cluster.members import SHARD, become_replica, placement_document
from tests.vectors.paper_logs import PaperLog
from vectors.models import ShardHead
from vectors.query_processor import Answer, RequestOptions, ShardAccount
from vectors.store import receive
from vectors.store.log import START, Position
from vectors.tokens import token_of


@dataclass
class Elsewhere:
    """One copy on another node. `value` is what each of its answers holds, `error` what it says instead."""

    name: str
    position: Position = START
    promised_term: int = 0
    epoch: int = 0
    value: Any = None
    lag: int | None = 0
    error: Exception | None = None
    is_silent: bool = False
    asked: list[tuple[Read, RequestOptions, Position | None]] = field(default_factory=list)
    positions_asked: int = 0
    timeouts_s: list[float] = field(default_factory=list)


class Cluster:
    """The other copies by URL, in the place of the transport."""

    def __init__(self) -> None:
        self.copies: dict[str, Elsewhere] = {}
        self.go_on = threading.Event()

    def add(self, url: str, copy: Elsewhere) -> Elsewhere:
        """Have a copy answer at a URL."""
        self.copies[url] = copy
        return copy

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand where the transport is."""
        means.means_forget()
        monkeypatch.setattr(processor, "knock", lambda _shard_uid: None)
        monkeypatch.setattr(agreement, "remote_position", self._position)
        monkeypatch.setattr(reads, "remote_read", self._read)

    def _at(self, url: str, timeout_s: float) -> Elsewhere:
        copy = self.copies.get(url)
        if copy is None:
            raise PeerRefused("nobody listens", url=url)
        copy.timeouts_s.append(timeout_s)
        if copy.is_silent and not self.go_on.wait(timeout_s):
            raise PeerSilent("is silent", url=url)
        if copy.error is not None:
            raise copy.error
        return copy

    def _position(self, url: str, cluster: str, shard_uid: str, *, timeout_s: float) -> CopyPosition:
        if url in self.copies:
            self.copies[url].positions_asked += 1
        copy = self._at(url, timeout_s)
        return CopyPosition(copy.position, copy.promised_term or copy.position.term, copy.epoch)

    def _read(
        self,
        url: str,
        cluster: str,
        shard_uid: str,
        read: Read,
        options: RequestOptions,
        at_least: Position | None,
        *,
        timeout_s: float,
    ) -> Answer[Any]:
        if url in self.copies:
            self.copies[url].asked.append((read, options, at_least))
        copy = self._at(url, timeout_s)
        account = ShardAccount("there", copy.name, lag=copy.lag, term=copy.position.term, seq=copy.position.seq)
        return Answer(copy.value, [account])


NAMESPACE = "books"
_NAMESPACE_UID = "b" * 32


class ReplicaHere:
    """This process's node as `replica_1`, with `rows` rows of the primary's; time stands still unless it is moved."""

    def __init__(self, *siblings: str, rows: int = 3, **told: Any) -> None:
        self.log = PaperLog()
        self.log.put(_NAMESPACE_UID, NAMESPACE)
        self.now = 1000.0
        self.hearing = Hearing(clock=lambda: self.now, looks_on=False)
        self.queries = ClusterQueryProcessor()
        self.place(placement_document(*siblings, **told))
        self.write(rows)
        self.receive()

    def place(self, told: PlacementDocument) -> None:
        """Tell this node of its placement."""
        self.head = become_replica(told)

    def write(self, rows: int = 1) -> Position:
        """Have the primary write rows that this copy does not have yet."""
        for _ in range(rows):
            self.log.upsert(_NAMESPACE_UID, len(self.log.entries))
        return self.log.position

    def receive(self) -> None:
        """Have this copy receive what it lacks."""
        head = ShardHead.objects.get(uid=SHARD)
        receive.receive(
            head.pk,
            term=self.log.term,
            before=Position(head.term, head.last_seq),
            entries=self.log.after(head.last_seq),
        )
        self.head = ShardHead.objects.get(uid=SHARD)

    @property
    def position(self) -> Position:
        """Where this copy is."""
        return Position(self.head.term, self.head.last_seq)

    def token(self, position: Position | None = None) -> str:
        """The session token of a position, of this copy's when none is given."""
        term, seq = position or self.position
        return token_of(SHARD, term=term, seq=seq)
