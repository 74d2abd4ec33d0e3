"""What clients of a sharded cluster asked and were told, and the proof that every row was there once at every moment.

Pure. A row has one writer, which goes on with it only when it knows what became of its last write; after a write of
unknown end it repeats that write and then leaves the row alone. So the states of a row are a sequence, and every answer
about it (a read by id, a listing of its group, a count) shows a place in that sequence, or lies.

What is proven: an answer that is not flagged shows of every row a state no older than what was acknowledged before the
question, none that nobody wrote, none older than an earlier answer showed; no answer has a row twice; lists are in
order; counts fit; searches over rows that nobody changes are exactly what one node would answer; no token is called
lost; nobody waits beyond the deadline; and at the end every row is there once, at the shard that owns its slot.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count, pairwise
from typing import NamedTuple

from tests.processes.history import Outcome
from vectors.engine.ids import key_of_text


class ShardingFault(StrEnum):
    """What a sharded cluster can be guilty of."""

    LOST = "an acknowledged write is lost"
    DELETED_IS_BACK = "a deleted row is back"
    INVENTED = "a row, version or value that nobody wrote"
    MISSING = "a row is missing from an answer that says it is complete"
    STALE = "an answer is older than what was acknowledged before it"
    STEPPED_BACK = "an answer is older than one before it"
    DOUBLED = "a row is answered twice"
    DISORDERED = "a list is not in order"
    MISCOUNTED = "a count that no state had"
    WRONG_SEARCH = "a search answers what one node would not"
    TOKEN_LOST = "a token was called lost"
    LATE = "an answer later than its deadline"
    MISPLACED = "a shard holds a row that is not its own"


class Found(NamedTuple):
    """A fault and what shows it."""

    kind: ShardingFault
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass
class RowWrite:
    """One request's effect on one row: it sets `version`, or deletes it (None). Times are of one monotonic clock.

    A patch sets the version and leaves the values, which stay those of the version `made`.
    """

    row_id: str
    group: str
    version: int | None
    began: float
    ended: float = float("inf")
    outcome: Outcome = Outcome.UNKNOWN
    answer: str = ""
    made: int | None = None

    def acknowledge(self, ended: float) -> None:
        """Take note that it is in force since a moment."""
        self.ended, self.outcome = ended, Outcome.ACKNOWLEDGED


class Row(NamedTuple):
    """A row as an answer has it; `made` as in `RowWrite`."""

    row_id: str
    version: int
    values: tuple[float, ...]
    made: int | None = None


@dataclass(frozen=True)
class View:
    """An answer that shows rows: all of the ids it was `about`, or of a `group`, that are there.

    `complete` is what the answer says of itself; `stale` that it came from copies that may be behind; `ordered` that
    it was to be in the order of ids; `final` that nothing goes on any more.
    """

    kind: str
    rows: tuple[Row, ...]
    began: float
    ended: float
    about: frozenset[str] | None = None
    group: str | None = None
    complete: bool = True
    stale: bool = False
    ordered: bool = False
    final: bool = False


@dataclass(frozen=True)
class Tally:
    """A count of the rows of a group, or of all."""

    number: int
    began: float
    ended: float
    group: str | None = None
    complete: bool = True


@dataclass(frozen=True)
class FixedSearch:
    """A search over rows that nobody changes: `ranking` is what one node with all of them answers, from best to worst.

    `hits` are (id, score) as answered; `top_k` is how many were wanted.
    """

    ranking: Sequence[tuple[str, float]]
    hits: Sequence[tuple[str, float]]
    top_k: int
    complete: bool


class Answered(NamedTuple):
    """How long any request took, and how long it may."""

    what: str
    took_s: float
    deadline_s: float


@dataclass
class ShardingHistory:
    """Everything that clients did, in any number of threads."""

    writes: list[RowWrite] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    searches: list[FixedSearch] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    lost_tokens: list[str] = field(default_factory=list)
    unseen: dict[int, RowWrite] = field(default_factory=dict)
    """Writes by version of which nobody told the ids of the rows, nor whether they are there."""
    versions: Iterator[int] = field(default_factory=lambda: count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, writes: Iterable[RowWrite]) -> None:
        """Take note of the rows of a write that is about to be sent; their outcomes are filled in later."""
        with self.lock:
            self.writes.extend(writes)

    def may_have_made(self, version: int, group: str, began: float) -> None:
        """Take note of a write whose rows were to get ids, which nobody has told."""
        with self.lock:
            self.unseen[version] = RowWrite("", group, version, began)

    def all_writes(self) -> list[RowWrite]:
        """Return the writes of all rows, those included whose ids are known only since an answer showed them."""
        known = {write.row_id for write in self.writes}
        shown = {(row.row_id, row.version) for view in self.views for row in view.rows if row.version in self.unseen}
        return [
            *self.writes,
            *(replace(self.unseen[version], row_id=row_id) for row_id, version in shown if row_id not in known),
        ]

    def acknowledged(self) -> int:
        """Return how many rows' writes were acknowledged."""
        with self.lock:
            return sum(write.outcome is Outcome.ACKNOWLEDGED for write in self.writes)


def sharding_faults(
    history: ShardingHistory,
    *,
    values_of: Callable[[str, int], Sequence[float]],
    placed: Mapping[str, Collection[str]] | None = None,
    owner_of: Callable[[str], str] | None = None,
) -> list[Found]:
    """Return every promise that was broken.

    `placed` has the ids that each shard holds at the end, owned or not, and `owner_of` names the shard of an id.
    """
    states = _States(history.all_writes())
    return [
        *_wrong_views(history.views, states, values_of),
        *_wrong_tallies(history.tallies, states),
        *_wrong_searches(history.searches),
        *(Found(ShardingFault.TOKEN_LOST, token) for token in history.lost_tokens),
        *(Found(ShardingFault.LATE, str(one)) for one in history.answered if one.took_s > one.deadline_s),
        *_misplaced(placed or {}, owner_of),
    ]


class _States:
    """The sequence of states of every row: place 0 is before its first write, place n after its n-th."""

    def __init__(self, writes: Iterable[RowWrite]) -> None:
        self.of_row: dict[str, list[RowWrite]] = defaultdict(list)
        self.of_group: dict[str | None, dict[str, None]] = defaultdict(dict)
        self.made: dict[tuple[str, int | None], int] = {}
        for write in writes:
            if write.made is not None:
                self.made[write.row_id, write.version] = write.made
            if write.outcome is not Outcome.REFUSED:
                self.of_row[write.row_id].append(write)
                self.of_group[write.group][write.row_id] = None
                self.of_group[None][write.row_id] = None

    def version(self, row_id: str, place: int) -> int | None:
        return self.of_row[row_id][place - 1].version if place else None

    def known(self, row_id: str, began: float) -> int:
        """Return the place of the newest state that was acknowledged before a moment."""
        writes = self.of_row.get(row_id, ())
        return max((place for place, write in enumerate(writes, 1) if write.ended < began), default=0)

    def begun(self, row_id: str, ended: float) -> int:
        """Return the place of the newest state that may have come into force before a moment."""
        return bisect_left(self.of_row.get(row_id, ()), ended, key=lambda write: write.began)

    def possible(self, row_id: str, began: float, ended: float) -> dict[int, int | None]:
        """Return version by place for every state that an answer may show."""
        places = range(self.known(row_id, began), self.begun(row_id, ended) + 1)
        return {place: self.version(row_id, place) for place in places}


def _wrong_views(
    views: Sequence[View], states: _States, values_of: Callable[[str, int], Sequence[float]]
) -> Iterator[Found]:
    seen: dict[str, list[tuple[float, float, int, int, str]]] = defaultdict(list)
    for view in views:
        shown = {row.row_id: row for row in view.rows}
        for row_id, many in Counter(row.row_id for row in view.rows).items():
            if many > 1:
                yield Found(ShardingFault.DOUBLED, f"{row_id} {many} times in {_brief(view)}")
        if view.ordered and any(
            ahead > behind for ahead, behind in pairwise(key_of_text(row.row_id) for row in view.rows)
        ):
            yield Found(ShardingFault.DISORDERED, _brief(view))
        for row in view.rows:
            made = states.made.get((row.row_id, row.version), row.version)
            are_wrong = row.values and tuple(row.values) != tuple(values_of(row.row_id, made))
            if are_wrong or (row.made or row.version) != made:
                yield Found(ShardingFault.INVENTED, f"values of {row}, made in {made}, in {_brief(view)}")
        about = view.about if view.about is not None else states.of_group[view.group]
        for row_id in about | shown.keys() if isinstance(about, frozenset) else {**about, **shown}:
            present = shown.get(row_id)
            if present is None and not view.complete:
                continue
            version = None if present is None else present.version
            possible = states.possible(row_id, view.began, view.ended)
            places = [place for place, allowed in possible.items() if allowed == version]
            if places:
                seen[row_id].append((view.began, view.ended, places[0], places[-1], _brief(view)))
            elif not view.stale or not _was_ever(states, row_id, version, view.ended):
                yield _verdict(states, view, row_id, version, possible)
    for row_id, observations in seen.items():
        yield from _steps_back(row_id, observations)


def _verdict(
    states: _States, view: View, row_id: str, version: int | None, possible: Mapping[int, int | None]
) -> Found:
    allowed = sorted(map(str, possible.values()))
    detail = f"{row_id} in version {version}, not one of {allowed}, in {_brief(view)}"
    if version is None:
        return Found(ShardingFault.LOST if view.final else ShardingFault.MISSING, detail)
    if not _was_ever(states, row_id, version, view.ended):
        return Found(ShardingFault.INVENTED, detail)
    if set(possible.values()) == {None}:
        return Found(ShardingFault.DELETED_IS_BACK, detail)
    return Found(ShardingFault.LOST if view.final else ShardingFault.STALE, detail)


def _was_ever(states: _States, row_id: str, version: int | None, ended: float) -> bool:
    """Return whether a row may have been in that state at any time before a moment."""
    begun = states.begun(row_id, ended)
    return any(states.version(row_id, place) == version for place in range(begun + 1))


def _steps_back(row_id: str, observations: list[tuple[float, float, int, int, str]]) -> Iterator[Found]:
    """Yield the answers that show an older state of a row than one that had ended before they were asked for."""
    by_end = sorted(observations, key=lambda one: one[1])
    ends = [one[1] for one in by_end]
    newest: list[int] = []
    for _began, _ended, at_least, _at_most, _what in by_end:
        newest.append(max(at_least, newest[-1] if newest else 0))
    for began, _ended, _at_least, at_most, what in observations:
        before = bisect_left(ends, began)
        if before and newest[before - 1] > at_most:
            yield Found(ShardingFault.STEPPED_BACK, f"{row_id}: state {at_most} after {newest[before - 1]}, in {what}")


def _wrong_tallies(tallies: Iterable[Tally], states: _States) -> Iterator[Found]:
    for tally in tallies:
        least = most = 0
        for row_id in states.of_group[tally.group]:
            versions = states.possible(row_id, tally.began, tally.ended).values()
            least += None not in versions
            most += any(version is not None for version in versions)
        if tally.number > most or (tally.complete and tally.number < least):
            yield Found(ShardingFault.MISCOUNTED, f"{tally}: between {least} and {most}")


def _wrong_searches(searches: Iterable[FixedSearch]) -> Iterator[Found]:
    for search in searches:
        ids = [row_id for row_id, _score in search.hits]
        if len(set(ids)) < len(ids):
            yield Found(ShardingFault.DOUBLED, f"{ids}")
        elif search.complete:
            if list(search.hits) != list(search.ranking[: search.top_k]):
                yield Found(ShardingFault.WRONG_SEARCH, f"{search.hits}, expected {search.ranking[: len(search.hits)]}")
        elif not _is_subsequence(search.hits, search.ranking):
            yield Found(ShardingFault.WRONG_SEARCH, f"{search.hits}, of an incomplete answer")


def _is_subsequence(part: Sequence[object], whole: Sequence[object]) -> bool:
    rest = iter(whole)
    return all(one in rest for one in part)


def _misplaced(placed: Mapping[str, Collection[str]], owner_of: Callable[[str], str] | None) -> Iterator[Found]:
    held = Counter(row_id for ids in placed.values() for row_id in ids)
    for row_id, many in held.items():
        if many > 1:
            holders = [label for label, ids in placed.items() if row_id in ids]
            yield Found(ShardingFault.DOUBLED, f"{row_id} is held by {holders}")
    for label, ids in placed.items():
        for row_id in ids:
            if owner_of is not None and owner_of(row_id) != label:
                yield Found(ShardingFault.MISPLACED, f"{row_id} is at {label}, its slot is {owner_of(row_id)}'s")


def _brief(view: View) -> str:
    flags = ", ".join(flag for flag in ("complete", "stale", "final") if getattr(view, flag))
    about = view.group or (f"{len(view.about)} ids" if view.about is not None else "all")
    return f"a {view.kind} of {about} ({flags}) from {view.began:.3f} to {view.ended:.3f}"
