"""The checker of histories: it accepts what a correct cluster may answer, and finds every fault planted in it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from tests.processes.history import (
    Copy,
    FaultKind,
    FinalLog,
    History,
    Outcome,
    Position,
    Read,
    Write,
    faults,
)
from tests.processes.writers import values_of

NAMES = ("a", "b", "c")


@dataclass
class Model:
    """A replicated shard that keeps its word, in memory: three copies, one primary, promotions by vote."""

    rng: random.Random
    history: History = field(default_factory=History)
    logs: dict[str, list[Write]] = field(default_factory=lambda: {name: [] for name in NAMES})
    starts: dict[str, dict[int, int]] = field(default_factory=lambda: {name: {1: 1} for name in NAMES})
    primary: str = "a"
    term: int = 1
    now: float = 0.0
    set_aside: set[Position] = field(default_factory=set)

    def tick(self) -> float:
        """Return the next moment."""
        self.now += 1.0
        return self.now

    def write(self, row_id: str, level: str, *, delete: bool = False, fate: str = "answered") -> Write:
        """Write or delete a row; `fate` is answered, committed (503), refused, or unknown (applied or not)."""
        version = None if delete else next(self.history.versions)
        write = Write((row_id,), version, level, self.primary, self.tick())
        self.history.wrote(write)
        if fate == "refused" or (fate == "unknown" and self.rng.random() < 0.5):
            write.outcome = Outcome.REFUSED if fate == "refused" else Outcome.UNKNOWN
            return write
        log = self.logs[self.primary]
        position = Position(self.term, len(log) + 1)
        entry = write if fate != "unknown" else replace(write, position=position)
        log.append(entry)
        entry.position = position
        if fate == "unknown":
            return write
        if fate == "answered":
            others = [name for name in NAMES if name != self.primary]
            wanted = {"one": 0, "quorum": 1, "all": 2}[level]
            for name in self.rng.sample(others, wanted):
                self.ship(name)
        write.outcome = Outcome.ACKNOWLEDGED if fate == "answered" else Outcome.COMMITTED
        write.ended = self.tick()
        return write

    def ship(self, name: str) -> None:
        """Bring a copy to the primary's head, setting aside what the primary does not have."""
        if name != self.primary:
            ours, theirs = self.logs[self.primary], self.logs[name]
            common = next(
                (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] is not pair[1]),
                min(len(ours), len(theirs)),
            )
            self.set_aside.update(entry.position for entry in theirs[common:] if entry.position)
            self.logs[name] = list(ours)
            self.starts[name] = dict(self.starts[self.primary])

    def promote(self) -> None:
        """Make the most advanced of two copies the primary of a new term."""
        voters = self.rng.sample(NAMES, 2)
        self.primary = max(voters, key=lambda name: (self.place(name), name))
        self.term += 1
        log = self.logs[self.primary]
        start = Write((), None, "one", self.primary, self.tick(), position=Position(self.term, len(log) + 1))
        log.append(start)
        self.starts[self.primary][self.term] = len(log)

    def place(self, name: str) -> Position:
        """Return the position of a copy."""
        log = self.logs[name]
        return (log[-1].position or Position(0, 0)) if log else Position(0, 0)

    def rows(self, name: str) -> dict[str, int]:
        """Return version by row of a copy."""
        rows: dict[str, int] = {}
        for write in self.logs[name]:
            for row_id in write.ids:
                rows.pop(row_id, None)
                if write.version is not None:
                    rows[row_id] = write.version
        return rows

    def read(self, row_id: str, name: str, *, level: str = "one", token: Position | None = None) -> Read | None:
        """Read a row of a copy, as far as that copy may answer it."""
        began = self.tick()
        if token is not None and token not in [entry.position for entry in self.logs[name]]:
            return None
        source = self.primary if level != "one" else name
        self.ship(source)
        version = self.rows(source).get(row_id)
        read = Read(row_id, version, level, source, began, self.tick(), token, sees_answered=source == self.primary)
        self.history.read(read)
        return read

    def copies(self) -> list[Copy]:
        """Bring all copies to the head and return them."""
        for name in NAMES:
            self.ship(name)
        return [
            Copy(
                name,
                self.place(name),
                sorted(self.starts[name].items()),
                {row_id: row_of(row_id, version) for row_id, version in self.rows(name).items()},
            )
            for name in NAMES
        ]


def row_of(row_id: str, version: int) -> dict[str, object]:
    """Return a row as the API answers it."""
    return {"id": row_id, "values": values_of(row_id, version), "metadata": {"version": version}}


def found(model: Model, copies: list[Copy] | None = None, **options: object) -> set[FaultKind]:
    """Return the kinds of faults in what a model did."""
    given = {"set_aside": model.set_aside, **options}
    return {fault.kind for fault in faults(model.history, copies or model.copies(), values_of=values_of, **given)}


@pytest.fixture
def model() -> Model:
    return Model(random.Random(0))


@pytest.mark.parametrize("seed", range(40))
def test_a_random_history_of_a_cluster_that_keeps_its_word_has_no_fault(seed):
    model = Model(random.Random(seed))
    rng = model.rng
    retired: set[str] = set()
    for step in range(300):
        live = [row_id for row_id in map(str, range(20 + step // 10)) if row_id not in retired]
        row_id = rng.choice(live)
        kind = rng.random()
        if kind < 0.5:
            fate = rng.choices(["answered", "committed", "refused", "unknown"], [20, 2, 1, 2])[0]
            level = rng.choice(["one", "quorum", "all"])
            write = model.write(row_id, level, delete=rng.random() < 0.2, fate=fate)
            if write.outcome is Outcome.UNKNOWN:
                retired.add(row_id)
        elif kind < 0.9:
            tokens = [write.position for write in model.history.writes if write.position and write.ended < model.now]
            token = rng.choice([None, *tokens[-5:]])
            model.read(row_id, rng.choice(NAMES), level=rng.choice(["one", "one", "quorum"]), token=token)
        elif kind < 0.97:
            model.ship(rng.choice(NAMES))
        else:
            # A quorum read of a primary that the others have left is refused: what it would show is not recorded.
            model.promote()
    assert [str(fault) for fault in faults(model.history, model.copies(), values_of=values_of)] == []
    assert found(model) == set()


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
def test_an_acknowledged_write_that_no_copy_has_is_lost(model, level):
    model.write("x", "all")
    write = model.write("y", level)
    for log in model.logs.values():
        if write in log:
            log.remove(write)
    assert FaultKind.LOST in found(model)


def test_a_quorum_write_is_not_excused_by_a_promotion(model):
    model.write("x", "all")
    write = model.write("y", "quorum")
    for name in NAMES[1:]:
        model.logs[name] = [entry for entry in model.logs[name] if entry is not write]
    model.primary, model.term = "b", 2
    model.logs["b"].append(Write((), None, "one", "b", model.tick(), position=Position(2, 2)))
    model.starts["b"][2] = 2
    assert found(model) == {FaultKind.LOST}


def test_a_write_of_level_one_may_be_set_aside_but_only_into_a_file(model):
    model.write("x", "all")
    write = model.write("y", "one")
    model.primary, model.term = "b", 2
    model.logs["b"].append(Write((), None, "one", "b", model.tick(), position=Position(2, 2)))
    model.starts["b"][2] = 2
    copies = model.copies()
    assert write.position in model.set_aside
    assert found(model, copies) == set()
    assert found(model, copies, set_aside=set()) == {FaultKind.DROPPED}
    assert found(model, copies, set_aside=None) == set()


def test_a_row_of_an_older_version_is_a_lost_write(model):
    first = model.write("x", "quorum")
    model.write("x", "quorum")
    copies = [replace(copy, rows={"x": row_of("x", first.version)}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.LOST}


def test_a_deleted_row_that_all_copies_have_again_is_found(model):
    write = model.write("x", "quorum")
    model.write("x", "quorum", delete=True)
    copies = [replace(copy, rows={"x": row_of("x", write.version)}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.DELETED_IS_BACK}


def test_a_copy_that_lacks_one_row_differs(model):
    model.write("x", "all")
    model.write("y", "all")
    first, second, third = model.copies()
    rows = {"y": second.rows["y"]}
    assert found(model, [first, replace(second, rows=rows), third]) == {FaultKind.COPIES_DIFFER}


def test_a_copy_whose_values_differ_in_one_place_differs(model):
    model.write("x", "all")
    first, second, third = model.copies()
    row = row_of("x", 1)
    row["values"] = [*row["values"][:-1], -1.0]
    assert found(model, [first, second, replace(third, rows={"x": row})]) == {FaultKind.COPIES_DIFFER}


def test_values_that_are_wrong_on_every_copy_are_invented(model):
    model.write("x", "all")
    row = {**row_of("x", 1), "values": [0.0]}
    copies = [replace(copy, rows={"x": row}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.INVENTED}


def test_a_copy_that_is_behind_or_has_other_terms_differs(model):
    model.write("x", "all")
    first, second, third = model.copies()
    assert found(model, [first, replace(second, position=Position(1, 0)), third]) == {FaultKind.COPIES_DIFFER}
    assert found(model, [first, second, replace(third, terms=[(1, 1), (2, 1)])]) == {FaultKind.COPIES_DIFFER}


def test_a_row_that_nobody_wrote_is_invented(model):
    model.write("x", "all")
    copies = [replace(copy, rows={**copy.rows, "z": row_of("z", 9)}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.INVENTED}


def test_a_refused_write_that_took_effect_is_invented(model):
    model.write("x", "quorum", fate="refused")
    copies = [replace(copy, rows={"x": row_of("x", 1)}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.INVENTED}


def test_a_write_that_was_set_aside_and_shows_up_again_is_found(model):
    model.write("w", "all")
    lost = model.write("x", "one")
    model.primary, model.term = "b", 2
    model.logs["b"].append(Write((), None, "one", "b", model.tick(), position=Position(2, 2)))
    model.starts["b"][2] = 2
    copies = [replace(copy, rows={**copy.rows, "x": row_of("x", lost.version)}) for copy in model.copies()]
    assert found(model, copies) == {FaultKind.INVENTED}


def test_an_unknown_write_may_be_there_or_not(model):
    model.history.wrote(Write(("x",), 7, "quorum", "a", model.tick()))
    copies = model.copies()
    assert found(model, copies) == set()
    assert found(model, [replace(copy, rows={"x": row_of("x", 7)}) for copy in copies]) == set()


@pytest.mark.parametrize("newer", [False, True])
def test_a_read_older_than_its_token_is_stale(model, newer):
    first = model.write("x", "one")
    second = model.write("x", "one", delete=newer)
    now = model.tick()
    model.history.read(Read("x", first.version, "one", "b", now, now + 0.5, token=second.position))
    assert found(model) == {FaultKind.STALE_READ}


def test_a_read_without_a_token_on_a_replica_may_be_old(model):
    first = model.write("x", "one")
    model.write("x", "one")
    now = model.tick()
    model.history.read(Read("x", first.version, "one", "b", now, now + 0.5))
    assert found(model) == set()


def test_a_quorum_read_that_misses_a_quorum_write_is_stale(model):
    model.write("x", "quorum")
    now = model.tick()
    model.history.read(Read("x", None, "quorum", "b", now, now + 0.5))
    assert found(model) == {FaultKind.STALE_READ}


def test_a_quorum_read_beside_the_write_may_miss_it(model):
    write = model.write("x", "quorum")
    model.history.read(Read("x", None, "quorum", "b", write.began, model.tick()))
    assert found(model) == set()


def test_a_primary_that_does_not_show_what_it_answered_is_stale(model):
    model.write("x", "one")
    now = model.tick()
    read = Read("x", None, "one", "a", now, now + 0.5, sees_answered=True)
    model.history.read(read)
    assert found(model) == {FaultKind.STALE_READ}
    model.history.reads[:] = [replace(read, node="b")]
    assert found(model) == set()


def test_a_read_of_a_version_that_was_never_written_or_not_yet_is_invented(model):
    now = model.tick()
    write = model.write("x", "one")
    read = Read("x", write.version, "one", "b", now - 0.5, now)
    model.history.read(read)
    assert found(model) == {FaultKind.INVENTED}
    model.history.reads[:] = [replace(read, version=99, ended=model.tick())]
    assert found(model) == {FaultKind.INVENTED}


def test_a_read_with_a_surviving_token_may_not_show_what_was_set_aside_below_it(model):
    model.write("w", "all")
    lost = model.write("x", "one")
    model.primary, model.term = "b", 2
    model.logs["b"].append(Write((), None, "one", "b", model.tick(), position=Position(2, 2)))
    model.starts["b"][2] = 2
    after = model.write("y", "quorum")
    now = model.tick()
    model.history.read(Read("x", lost.version, "one", "c", now, now + 0.5, token=after.position))
    assert found(model) == {FaultKind.STALE_READ}


def test_a_token_called_lost_must_be_lost(model):
    model.write("w", "all")
    kept = model.write("w", "all")
    now = model.tick()
    model.history.read(Read("w", None, "one", "b", now, now + 0.5, token=kept.position, token_lost=True))
    assert found(model) == {FaultKind.FALSE_LOSS}
    model.history.reads[:] = [replace(model.history.reads[0], token=Position(1, 40))]
    assert found(model) == set()


def test_a_log_knows_which_positions_it_has():
    log = FinalLog(Position(3, 20), [(2, 8), (3, 15)])
    assert [log.has(Position(1, 7)), log.has(Position(2, 8)), log.has(Position(3, 20))] == [True, True, True]
    assert [log.has(Position(1, 8)), log.has(Position(2, 15)), log.has(Position(3, 21))] == [False, False, False]
    assert log.could_lose(Position(1, 8))
    assert not log.could_lose(Position(3, 21))
    assert not log.could_lose(Position(1, 7))
