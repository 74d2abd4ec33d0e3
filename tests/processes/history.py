"""What clients of a replicated shard asked and were told, and the proof that its copies kept their word. Pure.

The log gives every acknowledged write a position (term, seq), and the copies at the end say at which seq each term
begins. So the final log is known exactly: a write survived when the term of the final log at its seq is its own. From
that follows what every row must be, and what every read had to see.

What is proven: no write acknowledged by a quorum is lost; no other acknowledged write is lost but by a promotion, and
then it was set aside in a file; no read is older than its token, than the quorum writes before a quorum read, or than
what the same node had answered before; all copies are equal in full; no deleted row is back; nothing is invented.

What recorders have to keep to: a row has one writer, which goes on with it only when it knows the position of its
write, or that it was refused. A write of unknown end may take effect at any time.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple

QUORUM_LEVELS = frozenset({"quorum", "all"})


class Position(NamedTuple):
    """A place in a log."""

    term: int
    seq: int


class Outcome(StrEnum):
    """What a writer was told. COMMITTED: its place in the log, but that the level was not reached (503)."""

    ACKNOWLEDGED = "acknowledged"
    COMMITTED = "committed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class FaultKind(StrEnum):
    """What a copy or an answer can be guilty of."""

    LOST = "an acknowledged write is lost"
    DROPPED = "a write was set aside by a promotion, and no file has it"
    COPIES_DIFFER = "copies differ"
    DELETED_IS_BACK = "a deleted row is back"
    INVENTED = "a row or version that nobody wrote"
    STALE_READ = "a read is older than it may be"
    FALSE_LOSS = "a token was called lost although its write survived"


@dataclass(frozen=True)
class Fault:
    """One broken promise."""

    kind: FaultKind
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass
class Write:
    """One request that writes `version` to rows, or deletes them (None). Times are of one monotonic clock.

    `min_seq` is its token as a read takes it, `answer` what was answered, for people.
    """

    ids: tuple[str, ...]
    version: int | None
    level: str
    node: str
    began: float
    ended: float = float("inf")
    outcome: Outcome = Outcome.UNKNOWN
    position: Position | None = None
    min_seq: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Read:
    """One row as a node answered it: the version (None: no such row), or that the token is lost.

    `sees_answered`: the node was asked as the primary, and so had to show every write it had acknowledged before.
    """

    row_id: str
    version: int | None
    level: str
    node: str
    began: float
    ended: float
    token: Position | None = None
    token_lost: bool = False
    sees_answered: bool = False


@dataclass(frozen=True)
class Copy:
    """One copy at the end: its position, where its terms begin, and every row by id as the API answers it."""

    name: str
    position: Position
    terms: Sequence[tuple[int, int]]
    rows: Mapping[str, Mapping[str, Any]]


@dataclass
class History:
    """Everything that clients did, in any number of threads."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, write: Write) -> None:
        """Take note of a write that is about to be sent; its outcome is filled in later."""
        with self.lock:
            self.writes.append(write)

    def read(self, read: Read) -> None:
        """Take note of an answered read."""
        with self.lock:
            self.reads.append(read)

    def acknowledged(self, *levels: str) -> int:
        """Return how many writes were acknowledged, at any of the levels or, without one, at all."""
        with self.lock:
            return sum(
                write.outcome is Outcome.ACKNOWLEDGED and (not levels or write.level in levels) for write in self.writes
            )


class FinalLog:
    """The log that all copies share at the end: which positions are in it, and what is known of those that are not."""

    def __init__(self, last: Position, terms: Iterable[tuple[int, int]]) -> None:
        self.last = last
        starts = {1: 1} | dict(terms)
        self._terms = sorted(starts)
        self._first_seqs = [starts[term] for term in self._terms]

    def has(self, position: Position) -> bool:
        """Return whether the entry of that position is in the log."""
        place = bisect_right(self._first_seqs, position.seq) - 1
        return 1 <= position.seq <= self.last.seq and self._terms[place] == position.term

    def could_lose(self, position: Position) -> bool:
        """Return whether a promotion may have set the entry aside: a later term begins at or before its seq."""
        return any(
            term > position.term and first_seq <= position.seq
            for term, first_seq in zip(self._terms, self._first_seqs, strict=True)
        )

    def holds(self, position: Position, floor: Position) -> bool | None:
        """Return whether a log that has `floor` has `position`, which is not after it; None when nobody can tell."""
        if self.has(floor):
            return self.has(position)
        # A floor that was set aside: its branch is known within its own term, and below where it left the final log.
        if position.term == floor.term:
            return True
        return False if position.term > floor.term else None


def faults(
    history: History,
    copies: Sequence[Copy],
    *,
    values_of: Callable[[str, int], list[float]],
    set_aside: Collection[Position] | None = None,
) -> list[Fault]:
    """Return every promise that the copies at the end and the answers on the way have broken.

    `set_aside` are the positions found in the files of copies that were cut back; None when they cannot be known
    (that copy never came back). `values_of` gives the values that a version of a row was written with.
    """
    first = copies[0]
    log = FinalLog(first.position, first.terms)
    rows: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.outcome is not Outcome.REFUSED:
            for row_id in write.ids:
                rows[row_id].append(write)
    return [
        *_differences(copies),
        *_losses(history.writes, log, set_aside),
        *_wrong_rows(first, rows, log, values_of),
        *_wrong_reads(history, rows, log),
    ]


def _differences(copies: Sequence[Copy]) -> Iterator[Fault]:
    first = copies[0]
    for other in copies[1:]:
        if other.position != first.position:
            yield Fault(
                FaultKind.COPIES_DIFFER, f"{first.name} is at {first.position}, {other.name} at {other.position}"
            )
        if sorted(map(tuple, other.terms)) != sorted(map(tuple, first.terms)):
            yield Fault(FaultKind.COPIES_DIFFER, f"terms: {first.name} {first.terms}, {other.name} {other.terms}")
        for row_id in sorted(first.rows.keys() | other.rows.keys()):
            ours, theirs = first.rows.get(row_id), other.rows.get(row_id)
            if ours != theirs:
                detail = f"{row_id}: {first.name} has {_short(ours)}, {other.name} {_short(theirs)}"
                yield Fault(FaultKind.COPIES_DIFFER, detail)


def _losses(writes: Iterable[Write], log: FinalLog, set_aside: Collection[Position] | None) -> Iterator[Fault]:
    for write in writes:
        if write.outcome is not Outcome.ACKNOWLEDGED or write.position is None or log.has(write.position):
            continue
        if write.level in QUORUM_LEVELS or not log.could_lose(write.position):
            yield Fault(FaultKind.LOST, f"{write} is not in the log that ends at {log.last}")
        elif set_aside is not None and write.position not in set_aside:
            yield Fault(FaultKind.DROPPED, f"{write}")


def _wrong_rows(
    copy: Copy,
    rows: Mapping[str, Sequence[Write]],
    log: FinalLog,
    values_of: Callable[[str, int], list[float]],
) -> Iterator[Fault]:
    for row_id in sorted(copy.rows.keys() - rows.keys()):
        yield Fault(FaultKind.INVENTED, f"{copy.name} has {row_id}: {_short(copy.rows[row_id])}")
    for row_id, writes in rows.items():
        row = copy.rows.get(row_id)
        version = None if row is None else row["metadata"]["version"]
        if row is not None and row["values"] != values_of(row_id, version):
            yield Fault(FaultKind.INVENTED, f"{row_id}: not the values of version {version}: {_short(row)}")
        last = _newest(write for write in writes if write.position is not None and log.has(write.position))
        allowed = {None if last is None else last.version} | {w.version for w in writes if w.position is None}
        if version not in allowed:
            if last is not None and last.version is None:
                kind = FaultKind.DELETED_IS_BACK
            elif last is None or version not in {write.version for write in writes} | {None}:
                kind = FaultKind.INVENTED
            else:
                kind = FaultKind.LOST
            yield Fault(kind, f"{row_id}: {copy.name} has version {version}, the last write that survived is {last}")


def _wrong_reads(history: History, rows: Mapping[str, Sequence[Write]], log: FinalLog) -> Iterator[Fault]:
    floors = _Floors(history.writes, log)
    for read in history.reads:
        if read.token_lost:
            if read.token is not None and log.has(read.token):
                yield Fault(FaultKind.FALSE_LOSS, f"{read}")
            continue
        begun = [write for write in rows.get(read.row_id, ()) if write.began < read.ended]
        if read.version is not None and read.version not in {write.version for write in begun}:
            yield Fault(FaultKind.INVENTED, f"{read}")
            continue
        for floor in floors.of(read):
            allowed = _visible(begun, floor, log)
            if read.version not in allowed:
                yield Fault(FaultKind.STALE_READ, f"{read} had to see {floor}: version {sorted(map(str, allowed))}")
                break


def _visible(writes: Iterable[Write], floor: Position, log: FinalLog) -> set[int | None]:
    """Return the versions of a row that some log with `floor` in it may show."""
    within: list[Write] = []
    perhaps: list[Write] = []
    visible: set[int | None] = set()
    for write in writes:
        position = write.position
        if position is None or position.seq > floor.seq:
            visible.add(write.version)
            continue
        held = log.holds(position, floor)
        if held:
            within.append(write)
        elif held is None:
            perhaps.append(write)
    base = _newest(within)
    base_seq = 0 if base is None or base.position is None else base.position.seq
    visible.add(None if base is None else base.version)
    visible.update(write.version for write in perhaps if write.position is not None and write.position.seq > base_seq)
    return visible


class _Floors:
    """For each moment, the newest position that a quorum, or one node, had acknowledged before it."""

    def __init__(self, writes: Iterable[Write], log: FinalLog) -> None:
        self._lines: dict[str, tuple[list[float], list[Position]]] = defaultdict(lambda: ([], []))
        for write in sorted(writes, key=lambda write: write.ended):
            # What a promotion set aside may be missing from then on, on the node that acknowledged it too.
            if write.outcome is Outcome.ACKNOWLEDGED and write.position is not None and log.has(write.position):
                self._note(f"node {write.node}", write.ended, write.position)
                if write.level in QUORUM_LEVELS:
                    self._note("quorum", write.ended, write.position)

    def _note(self, line: str, moment: float, position: Position) -> None:
        moments, positions = self._lines[line]
        moments.append(moment)
        positions.append(max(position, positions[-1], key=lambda place: place.seq) if positions else position)

    def of(self, read: Read) -> Iterator[Position]:
        """Yield the positions that a read had to see."""
        if read.token is not None:
            yield read.token
        lines = [f"node {read.node}"] * read.sees_answered + ["quorum"] * (read.level in QUORUM_LEVELS)
        for line in lines:
            moments, positions = self._lines[line]
            place = bisect_right(moments, read.began)
            if place:
                yield positions[place - 1]


def _newest(writes: Iterable[Write]) -> Write | None:
    return max(
        (write for write in writes if write.position is not None),
        key=lambda write: (write.position.seq if write.position else 0, write.began),
        default=None,
    )


def _short(row: Mapping[str, Any] | None) -> str:
    return "nothing" if row is None else f"{row['metadata']} {row['values'][:3]}…"
