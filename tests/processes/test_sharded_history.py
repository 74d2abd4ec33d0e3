"""The checker of sharded clusters: it accepts what a correct one may answer, and finds every fault planted in it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from tests.processes.history import Outcome
from tests.processes.sharded_history import (
    Answered,
    FixedSearch,
    Row,
    RowWrite,
    ShardingFault,
    ShardingHistory,
    Tally,
    View,
    sharding_faults,
)
from tests.processes.writers import values_of

GROUPS = ("a", "b")


@dataclass
class Model:
    """Rows behind a coordinator that keeps its word, in memory; a write under way is in force already, or not yet."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    history: ShardingHistory = field(default_factory=ShardingHistory)
    rows: dict[str, int] = field(default_factory=dict)
    under_way: list[RowWrite] = field(default_factory=list)
    now: float = 0.0

    def tick(self) -> float:
        """Return the next moment."""
        self.now += 1.0
        return self.now

    def begin(self, row_id: str, *, delete: bool = False) -> RowWrite:
        """Send a write; it may come into force at any moment from now on."""
        version = None if delete else next(self.history.versions)
        write = RowWrite(row_id, row_id[0], version, self.tick())
        self.history.wrote([write])
        self.under_way.append(write)
        return write

    def apply(self, write: RowWrite) -> None:
        """Bring a write into force."""
        self.rows.pop(write.row_id, None)
        if write.version is not None:
            self.rows[write.row_id] = write.version

    def end(self, write: RowWrite) -> None:
        """Answer a write."""
        self.apply(write)
        self.under_way.remove(write)
        write.acknowledge(self.tick())

    def write(self, row_id: str, *, delete: bool = False) -> RowWrite:
        """Write or delete a row and wait for the answer."""
        write = self.begin(row_id, delete=delete)
        self.end(write)
        return write

    def row(self, row_id: str) -> Row:
        """Return a row as an answer has it."""
        return Row(row_id, self.rows[row_id], tuple(values_of(row_id, self.rows[row_id])))

    def get(self, row_id: str, **options: object) -> View:
        """Read one row."""
        rows = (self.row(row_id),) if row_id in self.rows else ()
        return self.see(View("get", rows, self.tick(), self.tick(), frozenset({row_id}), **options))

    def list(self, group: str | None = None, **options: object) -> View:
        """List the rows of a group, or all."""
        wanted = sorted(row_id for row_id in self.rows if group is None or row_id[0] == group)
        rows = tuple(map(self.row, wanted))
        return self.see(View("scroll", rows, self.tick(), self.tick(), group=group, ordered=True, **options))

    def count(self, group: str | None = None) -> None:
        """Count the rows of a group, or all."""
        number = sum(group is None or row_id[0] == group for row_id in self.rows)
        self.history.tallies.append(Tally(number, self.tick(), self.tick(), group))

    def see(self, view: View) -> View:
        """Record an answer."""
        self.history.views.append(view)
        return view


def found(model: Model, **options: object) -> set[ShardingFault]:
    """Return the kinds of faults in what a model did."""
    return {fault.kind for fault in sharding_faults(model.history, values_of=values_of, **options)}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.mark.parametrize("seed", range(30))
def test_a_random_history_of_a_cluster_that_keeps_its_word_has_no_fault(seed):
    model = Model(random.Random(seed))
    rng = model.rng
    ids = [f"{group}{number}" for group in GROUPS for number in range(8)]
    left_alone: set[str] = set()
    for _ in range(400):
        kind = rng.random()
        busy = {write.row_id for write in model.under_way}
        free = [row_id for row_id in ids if row_id not in busy | left_alone]
        if kind < 0.3 and free:
            model.begin(rng.choice(free), delete=rng.random() < 0.3)
        elif kind < 0.5 and model.under_way:
            model.end(rng.choice(model.under_way))
        elif kind < 0.6 and model.under_way:
            model.apply(rng.choice(model.under_way))
        elif kind < 0.62 and model.under_way:
            # Its end is never known, in force or not; the same is written once more.
            write = rng.choice(model.under_way)
            model.under_way.remove(write)
            left_alone.add(write.row_id)
            again = RowWrite(write.row_id, write.group, write.version, model.tick())
            model.history.wrote([again])
            model.under_way.append(again)
        elif kind < 0.64 and free:
            # Refused: it never was.
            write = model.begin(rng.choice(free))
            model.under_way.remove(write)
            write.outcome = Outcome.REFUSED
        elif kind < 0.8:
            model.get(rng.choice(ids))
        elif kind < 0.9:
            model.list(rng.choice([*GROUPS, None]), complete=True)
        else:
            model.count(rng.choice([*GROUPS, None]))
    model.list(final=True)
    assert [str(fault) for fault in sharding_faults(model.history, values_of=values_of)] == []


@pytest.mark.parametrize(("final", "kind"), [(True, ShardingFault.LOST), (False, ShardingFault.MISSING)])
def test_an_acknowledged_row_that_a_complete_answer_lacks_is_found(model, final, kind):
    model.write("a1")
    model.rows.clear()
    model.list(final=final)
    assert found(model) == {kind}


def test_a_row_that_an_answer_lacks_which_says_so_is_no_fault(model):
    model.write("a1")
    model.rows.clear()
    model.list(complete=False)
    assert found(model) == set()


def test_a_row_missing_from_a_read_by_id_is_found(model):
    model.write("a1")
    model.rows.clear()
    model.get("a1")
    assert found(model) == {ShardingFault.MISSING}


@pytest.mark.parametrize(("final", "kind"), [(True, ShardingFault.LOST), (False, ShardingFault.STALE)])
def test_an_older_version_than_the_acknowledged_one_is_found(model, final, kind):
    first = model.write("a1")
    model.write("a1")
    model.rows["a1"] = first.version
    model.list("a", final=final)
    assert found(model) == {kind}


def test_an_older_version_is_found_in_an_incomplete_answer_too_but_not_in_one_flagged_as_stale(model):
    first = model.write("a1")
    model.write("a1")
    model.rows["a1"] = first.version
    model.get("a1", stale=True)
    assert found(model) == set()
    model.get("a1", complete=False)
    assert found(model) == {ShardingFault.STALE}


def test_a_deleted_row_that_is_back_is_found(model):
    write = model.write("a1")
    model.write("a1", delete=True)
    model.rows["a1"] = write.version
    model.list(final=True)
    assert found(model) == {ShardingFault.DELETED_IS_BACK}


def test_a_row_that_comes_and_goes_while_its_write_is_under_way_steps_back(model):
    write = model.begin("a1")
    model.apply(write)
    model.get("a1")
    model.rows.clear()
    model.get("a1")
    assert found(model) == {ShardingFault.STEPPED_BACK}


def test_two_answers_at_the_same_time_may_show_states_in_any_order(model):
    write = model.begin("a1")
    model.apply(write)
    seen = model.get("a1")
    model.see(View("get", (), seen.began, seen.ended, frozenset({"a1"})))
    assert found(model) == set()


def test_a_row_answered_twice_is_found_whether_or_not_the_answer_is_complete(model):
    model.write("a1")
    view = model.list()
    model.history.views[:] = [replace(view, rows=view.rows * 2)]
    assert found(model) == {ShardingFault.DOUBLED}
    model.history.views[:] = [replace(view, rows=view.rows * 2, complete=False)]
    assert found(model) == {ShardingFault.DOUBLED}


def test_a_list_out_of_order_is_found(model):
    model.write("a1")
    model.write("a2")
    view = model.list()
    model.history.views[:] = [replace(view, rows=view.rows[::-1])]
    assert found(model) == {ShardingFault.DISORDERED}


@pytest.mark.parametrize("stale", [False, True])
def test_a_version_that_nobody_wrote_or_not_yet_is_invented(model, stale):
    write = model.write("a1")
    model.rows["a1"] = 99
    model.get("a1", stale=stale)
    assert found(model) == {ShardingFault.INVENTED}
    row = Row("a1", write.version, tuple(values_of("a1", write.version)))
    model.history.views[:] = [View("get", (row,), write.began - 0.8, write.began - 0.4, frozenset({"a1"}), stale=stale)]
    assert found(model) == {ShardingFault.INVENTED}


def test_a_refused_write_that_took_effect_is_invented(model):
    write = model.begin("a1")
    model.apply(write)
    write.outcome = Outcome.REFUSED
    model.list(final=True)
    assert found(model) == {ShardingFault.INVENTED}


def test_values_of_another_version_are_invented(model):
    model.write("a1")
    view = model.get("a1")
    wrong = view.rows[0]._replace(values=tuple(values_of("a1", 77)))
    model.history.views[:] = [replace(view, rows=(wrong,))]
    assert found(model) == {ShardingFault.INVENTED}


def test_a_patch_leaves_the_values_and_other_values_or_a_patch_of_another_row_are_invented(model):
    made = model.write("a1").version
    patched = next(model.history.versions)
    model.history.wrote([RowWrite("a1", "a", patched, model.tick(), model.tick(), Outcome.ACKNOWLEDGED, made=made)])
    right = Row("a1", patched, tuple(values_of("a1", made)), made)
    view = View("get", (right,), model.tick(), model.tick(), frozenset({"a1"}))
    model.history.views[:] = [view]
    assert found(model) == set()
    for wrong in (right._replace(values=tuple(values_of("a1", patched))), right._replace(made=99)):
        model.history.views[:] = [replace(view, rows=(wrong,))]
        assert found(model) == {ShardingFault.INVENTED}


def test_a_row_of_another_group_in_a_listing_is_judged_as_well(model):
    model.write("a1")
    model.write("b1", delete=True)
    view = model.list("a")
    model.history.views[:] = [replace(view, rows=(*view.rows, Row("b1", 5, tuple(values_of("b1", 5)))))]
    assert found(model) == {ShardingFault.INVENTED}


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_count_of_one_too_few_or_too_many_is_found(model, difference):
    model.write("a1")
    model.write("a2")
    model.count("a")
    [right] = model.history.tallies
    assert found(model) == set()
    model.history.tallies[:] = [replace(right, number=right.number + difference)]
    assert found(model) == {ShardingFault.MISCOUNTED}


def test_an_incomplete_count_may_be_too_low_but_not_too_high(model):
    model.write("a1")
    began, ended = model.tick(), model.tick()
    model.history.tallies.append(Tally(0, began, ended, "a", complete=False))
    assert found(model) == set()
    model.history.tallies.append(Tally(2, began, ended, "a", complete=False))
    assert found(model) == {ShardingFault.MISCOUNTED}


def test_a_row_whose_id_nobody_told_is_believed_from_its_first_answer_on_and_lost_when_it_goes(model):
    model.history.may_have_made(7, "a", model.tick())
    model.list("a")
    assert found(model) == set()
    model.rows["a9"] = 7
    model.list("a")
    assert found(model) == set()
    model.rows.clear()
    model.list("a")
    assert found(model) == {ShardingFault.STEPPED_BACK}


@pytest.mark.parametrize(("version", "began"), [(8, 0.0), (7, 99.0)])
def test_a_row_of_a_version_that_nobody_wrote_without_ids_or_not_yet_is_invented(model, version, began):
    model.history.may_have_made(7, "a", began)
    model.rows["a9"] = version
    model.list("a")
    assert found(model) == {ShardingFault.INVENTED}


RANKING = (("x", 1.0), ("y", 2.0), ("z", 2.0), ("w", 5.0))


@pytest.mark.parametrize(
    ("hits", "complete", "faults"),
    [
        (RANKING[:3], True, set()),
        (RANKING[:2], True, {ShardingFault.WRONG_SEARCH}),
        ((*RANKING[:2], RANKING[3]), True, {ShardingFault.WRONG_SEARCH}),
        ((*RANKING[:2], RANKING[3]), False, set()),
        ((RANKING[0], RANKING[2], RANKING[1]), True, {ShardingFault.WRONG_SEARCH}),
        ((RANKING[0], RANKING[2], RANKING[1]), False, {ShardingFault.WRONG_SEARCH}),
        ((("x", 1.5), *RANKING[1:3]), True, {ShardingFault.WRONG_SEARCH}),
        ((("v", 1.5),), False, {ShardingFault.WRONG_SEARCH}),
        ((RANKING[0], RANKING[0], RANKING[1]), False, {ShardingFault.DOUBLED}),
        ((), False, set()),
    ],
)
def test_a_search_is_what_one_node_would_answer_or_a_part_of_it_that_says_so(model, hits, complete, faults):
    model.history.searches.append(FixedSearch(RANKING, hits, 3, complete))
    assert found(model) == faults


def test_a_token_called_lost_and_an_answer_after_its_deadline_are_found(model):
    model.history.lost_tokens.append("shard_0:1.0.1.7")
    model.history.answered.append(Answered("search", 1.9, 2.0))
    assert found(model) == {ShardingFault.TOKEN_LOST}
    model.history.answered.append(Answered("search", 2.1, 2.0))
    assert found(model) == {ShardingFault.TOKEN_LOST, ShardingFault.LATE}


def test_a_row_at_two_shards_or_at_the_wrong_one_is_found(model):
    owners = {"a1": "shard_0", "a2": "shard_1"}
    right = {"shard_0": ["a1"], "shard_1": ["a2"]}
    assert found(model, placed=right, owner_of=owners.__getitem__) == set()
    both = {"shard_0": ["a1", "a2"], "shard_1": ["a2"]}
    assert found(model, placed=both) == {ShardingFault.DOUBLED}
    wrong = {"shard_0": ["a1", "a2"], "shard_1": []}
    assert found(model, placed=wrong, owner_of=owners.__getitem__) == {ShardingFault.MISPLACED}
