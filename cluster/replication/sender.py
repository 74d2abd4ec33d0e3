"""Sending one shard's log to one copy, step by step: ask where it is, then send what it lacks.

A step is one exchange with the copy's node. Between steps only the copy's last answered position is remembered, and a
sender may forget even that: it asks. So any number of senders may work on a copy at once (the background task and the
waiting writes of each worker process); the receiver takes what is next and answers where it is.

Precondition: this node is the shard's primary. What a copy has and the primary has not is cut back first, set aside in
a file by the copy's node, unless the copy's extra entries are of the primary's own term: those can only be missing here
because this node has lost them, and then nothing is cut anywhere, this node writes no more in that term, and a person
is called.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from django.conf import settings

from cluster.topology import topology
from cluster.transport.client import peer_client, read_json
from cluster.transport.errors import PeerGarbled, PeerRejected
from cluster.transport.messages import shard_path
from vectors.errors import Conflict, LogGap, Unavailable
from vectors.store import log, slices, terms
from vectors.store.log import Position
from vectors.store.terms import TermStart

logger = logging.getLogger(__name__)


class Deposed(Conflict):
    """Raised when a copy has promised a newer term than this primary's: another may be primary by now."""

    code = "deposed"


class PrimaryBehind(Unavailable):
    """Raised when a copy has entries of the primary's own term that the primary has lost."""

    code = "primary_behind"
    transient = False


@dataclass(frozen=True, slots=True)
class Target:
    """A copy as its senders know it: `shard_id` is the primary's own copy of the shard, the source."""

    replica: str
    url: str
    shard: str
    shard_id: int


class CopyPosition(NamedTuple):
    """Where a copy says it is."""

    term: int
    seq: int
    promised_term: int
    terms: list[TermStart]
    manifest_seq: int
    oldest_seq: int
    damaged: bool

    @classmethod
    def of(cls, document: Mapping[str, Any], *, url: str) -> CopyPosition:
        """Read it from an answer of the node at `url`; raise PeerGarbled."""
        try:
            history = [TermStart(int(term), int(first)) for term, first in document["terms"]]
            names = ("term", "seq", "promised_term", "manifest_seq", "oldest_seq")
            numbers = [int(document[name]) for name in names]
            if not all(0 <= number < 2**63 for number in numbers):
                raise ValueError("a number is out of range")
            term, seq, promised, manifest_seq, oldest = numbers
        except (KeyError, TypeError, ValueError) as error:
            raise PeerGarbled(f"answered a position without its parts: {error!r}", url=url) from None
        return cls(term, seq, promised, history, manifest_seq, oldest, bool(document.get("damaged")))


class Step(Enum):
    """What a step found: nothing to send, something sent, or that only a full sync helps."""

    UP_TO_DATE = "up to date"
    SENT = "sent"
    FULL_SYNC = "full sync"


class Sender:
    """Sends to one copy. `known` is the position it last answered, None when it must be asked. Not thread-safe."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.known: Position | None = None

    def step(self, *, timeout_s: float, even_if_silent: bool = False) -> Step:
        """Bring the copy one slice forward.

        A node that was not told of its placement yet answers `need_placement` (PeerRejected): whoever may change the
        registry pushes it. Raise the errors of `cluster.transport`, Deposed, PrimaryBehind, and StorageError and the
        like.
        """
        head = self._head()
        if self.known is None:
            position = self.ask(timeout_s=timeout_s, even_if_silent=even_if_silent)
            # Read again: the copy may have been sent, by others, what was written since the look above.
            head = self._head()
            common = self._common(head, position, timeout_s, even_if_silent)
            if common is None:
                return Step.FULL_SYNC
            self.known = common
        if self.known.seq >= head.last_seq:
            return Step.UP_TO_DATE
        try:
            entries = slices.read_slice(
                self.target.shard_id,
                self.known.seq,
                through=head.last_seq,
                max_bytes=settings.MLVDB_SLICE_BYTES,
            )
        except LogGap:
            return Step.FULL_SYNC
        self._send(head, slices.encode_slice(self.known, entries), timeout_s, even_if_silent)
        return Step.SENT

    def ask(self, *, timeout_s: float, even_if_silent: bool = False) -> CopyPosition:
        """Ask the copy where it is."""
        answer = peer_client().json(
            self.target.url,
            "GET",
            shard_path(self.target.shard, "position", **self._fence()),
            timeout_s=timeout_s,
            even_if_silent=even_if_silent,
        )
        return CopyPosition.of(answer, url=self.target.url)

    def _head(self) -> log.Head:
        head = log.read_head(self.target.shard_id)
        if head is None or not head.is_primary:
            raise Deposed("this node is not the shard's primary")
        return head

    def _common(self, head: log.Head, theirs: CopyPosition, timeout_s: float, even_if_silent: bool) -> Position | None:
        """Return the position to send from, having cut the copy back where it must be; None: full sync."""
        if theirs.promised_term > head.term:
            raise self._deposed(theirs.promised_term)
        if theirs.damaged:
            return None
        ours = terms.read_terms(self.target.shard_id)
        common = terms.last_common(ours, head.last_seq, theirs.terms, theirs.seq)
        if common.seq < theirs.seq:
            if theirs.term == head.term:
                # Another entry at a seq of theirs would make the two logs look the same once this one is as long.
                terms.term_heard(self.target.shard_id, head.term + 1)
                raise PrimaryBehind(
                    f"{self.target.replica} has entries up to {theirs.seq} of this primary's term {head.term}, whose"
                    f" own log ends at {head.last_seq}: this node has lost data; promote {self.target.replica}",
                    detail={"replica": self.target.replica, "seq": theirs.seq, "last_seq": head.last_seq},
                )
            if common.seq < theirs.manifest_seq:
                return None
            self._cut_back(common, head, timeout_s, even_if_silent)
        if common.seq + 1 < slices.oldest_seq(self.target.shard_id) and common.seq < head.last_seq:
            return None
        return common

    def _cut_back(self, to: Position, head: log.Head, timeout_s: float, even_if_silent: bool) -> None:
        logger.warning("copy_cut_back replica=%s shard=%s to=%s", self.target.replica, self.target.shard[:8], tuple(to))
        fence = self._fence(term=head.term, to_term=to.term, to_seq=to.seq)
        self._exchange("cut-back", fence, b"", timeout_s, even_if_silent)

    def _send(self, head: log.Head, body: bytes, timeout_s: float, even_if_silent: bool) -> None:
        try:
            answer = self._exchange(
                "slice", self._fence(term=head.term, head_seq=head.last_seq), body, timeout_s, even_if_silent
            )
        except PeerRejected as rejected:
            if rejected.peer_code not in ("log_gap", "log_mismatch"):
                raise
            # It is elsewhere than it was: another sender was faster, or it was cut back or refilled.
            self.known = None
            return
        try:
            self.known = Position(int(answer["term"]), int(answer["seq"]))
        except (KeyError, TypeError, ValueError):
            raise PeerGarbled("answered a slice without a position", url=self.target.url) from None
        if self.known.term > head.term:
            raise self._deposed(self.known.term)

    def _exchange(
        self, what: str, fence: Mapping[str, str | int], body: bytes, timeout_s: float, even_if_silent: bool
    ) -> Any:
        """Have the copy's node do something to its log."""
        try:
            answer = peer_client().call(
                self.target.url,
                "POST",
                shard_path(self.target.shard, what, **fence),
                body=body,
                timeout_s=timeout_s,
                even_if_silent=even_if_silent,
            )
        except PeerRejected as rejected:
            if rejected.peer_code == "stale_term":
                raise self._deposed(int(rejected.peer_detail.get("promised_term", 0))) from rejected
            raise
        return read_json(self.target.url, answer)

    def _deposed(self, term: int) -> Deposed:
        """Stop taking writes, since a copy has promised a newer term, and return the error that says so."""
        terms.term_heard(self.target.shard_id, term)
        return Deposed(
            f"{self.target.replica} has promised term {term}: another node may be the primary",
            detail={"replica": self.target.replica, "promised_term": term},
        )

    def _fence(self, **more: int) -> dict[str, str | int]:
        """Return the query that fences an effect: cluster and epoch, and what else is given."""
        now = topology()
        return {"cluster": now.cluster, "epoch": now.epoch, **more}
