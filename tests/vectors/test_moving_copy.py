"""The two ends of a move: whatever is written while rows are read and followed, the target ends with those rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.vectors.conftest import Shard
from vectors import runtime
from vectors.engine import ids
from vectors.engine.digest import view_digest
from vectors.engine.filters import parse_filter
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Delete, NamespaceDrop, Patch, PayloadError, Upsert, encode
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import (
    Conflict,
    CursorMismatch,
    DimensionMismatch,
    InvalidInput,
    LogGap,
    LogMismatch,
    NotPrimary,
    SlotsClosed,
    SlotsOwned,
    StaleScope,
)
from vectors.models import LogEntry, MoveCursor, Namespace, Pin, ShardHead
from vectors.namespace_uids import ordered_uid
from vectors.query_processor import LocalQueryProcessor, VectorBatch, moving_wire
from vectors.query_processor.moving import MovingCopy
from vectors.query_processor.moving_pages import size_bytes_of
from vectors.store import recovery, terms
from vectors.store.checkpoint import checkpoint_run
from vectors.store.copies import shard_create
from vectors.store.log import Position
from vectors.store.verify import verify_shard

HALF = SlotSet.of(range(0, ids.SLOT_COUNT, 2))
TARGET = "7" * 32
MOVE = "step-1"
NAMES = ("a", "b")
KEYS = [ids.key_of(number) for number in range(24)] + [ids.key_of(f"id-{number}") for number in range(8)]

on_database = hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Mover:
    """Brings slots from one copy to another as a move does, each page through its binary form."""

    def __init__(self, source: MovingCopy, target: MovingCopy, slots: SlotSet, *, page_bytes: int = 1) -> None:
        self.source, self.target, self.slots, self.page_bytes = source, target, slots, page_bytes
        self.start = source.position()
        self.cursor = ""
        self.ended: list[str] = []
        self.copied = False
        self.at = self.start

    def specs(self) -> dict[str, NamespaceSpec]:
        """The namespaces that live, as the registry of a cluster has them."""
        engine = recovery.open_shard(ShardHead.objects.exclude(uid=TARGET).get().pk).engine
        return {space.spec.uid: space.spec for space in engine.namespaces()}

    def step(self) -> bool:
        """Bring one page; return whether the end of the source's log was reached."""
        if not self.copied:
            page = self.source.rows(self.slots, after=self.cursor.removeprefix("rows "), max_bytes=self.page_bytes)
            page = moving_wire.decode_rows(moving_wire.encode_rows(page))
            self.copied = page.is_last
            self._take(f"rows {page.cursor}", page.operations)
            return False
        page = self.source.entries(self.slots, after=self.at, max_bytes=self.page_bytes)
        page = moving_wire.decode_entries(moving_wire.encode_entries(page))
        self._take(f"log {page.position.term} {page.position.seq}", page.operations)
        self.at = page.position
        return page.is_at_head

    def run(self) -> None:
        while not self.step():
            pass

    def _take(self, after: str, operations) -> None:
        request = moving_wire.TakeRequest(MOVE, self.cursor, after, operations, self.specs())
        request = moving_wire.decode_take(moving_wire.encode_take(request))
        try:
            self._send(request)
        except Conflict as error:
            other = error.detail["other_uid"]
            if other not in self.ended:
                raise
            # What the registry's errands are there for: the end of the one comes in, then the rows of the other.
            self.target.namespace_end(other)
            self._send(request)
        self.cursor = self.target.cursor(MOVE)
        assert self.cursor == after

    def _send(self, request: moving_wire.TakeRequest) -> None:
        self.target.take(
            request.move,
            before=request.before,
            after=request.after,
            operations=request.operations,
            namespaces=request.namespaces,
        )


def digests(shard_id: int, slots: SlotSet) -> dict[str, tuple[int, str]]:
    """Rows and digest of every namespace that has rows in the slots, read from disk."""
    engine = recovery.open_shard(shard_id).engine
    found = {space.spec.uid: view_digest(space.view().only(slots)) for space in engine.namespaces()}
    return {uid: digest for uid, digest in found.items() if digest[0]}


def some_batch(keys, seed: int, dimension: int) -> VectorBatch:
    values = np.random.default_rng([seed, len(keys)]).standard_normal((len(keys), dimension), dtype=np.float32)
    return VectorBatch(list(keys), values, [orjson.dumps({"n": seed, "k": row % 3}) for row in range(len(keys))])


@pytest.fixture
def target(shard: Shard) -> MovingCopy:
    """A second shard of the node, which may be written in no slot."""
    return MovingCopy(shard_create(TARGET, "shard_1", writable=NO_SLOTS, epoch=1).pk)


@pytest.fixture
def source(shard: Shard) -> MovingCopy:
    return MovingCopy(shard.head.pk)


@pytest.fixture
def target_head(target: MovingCopy) -> ShardHead:
    return ShardHead.objects.get(uid=TARGET)


a_write = st.one_of(
    st.tuples(st.just("upsert"), st.sampled_from(NAMES), st.sets(st.sampled_from(KEYS), min_size=1, max_size=8)),
    st.tuples(st.just("patch"), st.sampled_from(NAMES), st.sampled_from(KEYS)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.sets(st.sampled_from(KEYS), min_size=1, max_size=5)),
    st.tuples(st.just("filter"), st.sampled_from(NAMES), st.integers(0, 2)),
    st.tuples(st.just("late filter"), st.sampled_from(NAMES), st.sets(st.sampled_from(KEYS), min_size=1)),
    st.tuples(st.just("drop"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("checkpoint"), st.none(), st.none()),
    st.tuples(st.just("page"), st.none(), st.none()),
)


class Writer:
    """Does what clients do at the source; deletes by filter also with rows that changed after they were found."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.done = shard, 0
        self.ended: list[str] = []

    def write(self, what: str, name: str, argument) -> None:
        self.done += 1
        queries, number = self.shard.queries, self.done
        if what == "upsert":
            queries.upsert_many(some_batch(sorted(argument), number, 2 + NAMES.index(name)), namespace=name)
            return
        if what == "checkpoint":
            self.shard.checkpoint()
            return
        there = queries.list_namespaces().value
        if name not in there:
            return
        if what == "patch" and queries.fetch([argument], namespace=name).value.records:
            queries.patch(argument, metadata=orjson.dumps({f"p{number % 2}": number}), namespace=name)
        elif what == "delete":
            queries.delete(keys=sorted(argument), namespace=name)
        elif what == "filter":
            queries.delete(filter=parse_filter({"k": argument}), namespace=name)
        elif what == "late filter":
            self._delete_by_filter_found_before(name, sorted(argument))
        elif what == "drop":
            row = Namespace.objects.get(shard=self.shard.head, name=name, dropped_at=None)
            queries.namespace_drop(name)
            self.ended.append(row.uid)

    def _delete_by_filter_found_before(self, name: str, keys: list[bytes]) -> None:
        queries = self.shard.queries
        found_at = queries.head().last_seq
        queries.upsert_many(some_batch(keys[::2], self.done, 2 + NAMES.index(name)), namespace=name)
        engine_shard = runtime.runtime().shard(self.shard.head.pk)
        uid = Namespace.objects.get(shard=self.shard.head, name=name, dropped_at=None).uid
        delete = Delete(keys, found_at)
        engine_shard.appender.append(namespace=uid, kind=delete.kind, keys=keys, payload=encode(delete))


@on_database
@given(
    before=st.lists(a_write, max_size=8), during=st.lists(a_write, max_size=20), page=st.sampled_from([1, 200, 10**6])
)
def test_the_target_ends_with_exactly_the_rows_that_the_source_has_of_the_slots(shard, before, during, page):
    ShardHead.objects.filter(uid=TARGET).delete()
    for name in list(shard.queries.list_namespaces().value):
        shard.queries.namespace_drop(name)
    source = MovingCopy(shard.head.pk)
    head = shard_create(TARGET, "shard_1", writable=NO_SLOTS, epoch=1)
    target = MovingCopy(head.pk)
    writer = Writer(shard)
    for write in before:
        if write[0] != "page":
            writer.write(*write)

    mover = Mover(source, target, HALF, page_bytes=page)
    mover.ended = writer.ended
    source.pin(MOVE, mover.start.seq)
    for write in during:
        if write[0] == "page":
            mover.step()
        else:
            writer.write(*write)
    mover.run()

    living = set(mover.specs())
    expected = digests(shard.head.pk, HALF)
    found = digests(head.pk, ALL_SLOTS)
    assert {uid: digest for uid, digest in found.items() if uid in living} == expected
    assert verify_shard(head).findings == []
    source.unpin(MOVE)


@pytest.fixture
def mover(shard: Shard, source: MovingCopy, target: MovingCopy) -> Mover:
    """A move of half of the slots from a source with 30 rows, none of them read yet."""
    shard.queries.upsert_many(some_batch([ids.key_of(number) for number in range(30)], 1, 3), namespace="a")
    return Mover(source, target, HALF)


def rows_of(copy: MovingCopy) -> int:
    return int(copy.slot_counts()[0].sum())


def test_rows_come_in_pages_of_about_the_bytes_asked_for_and_all_of_them_once(shard, source):
    shard.queries.upsert_many(some_batch(KEYS, 1, 2), namespace="a")
    shard.checkpoint()
    shard.queries.upsert_many(some_batch(KEYS[:5], 2, 3), namespace="b")
    seen, cursor, pages = [], "", 0
    while True:
        page = source.rows(HALF, after=cursor, max_bytes=100)
        assert page.rows == sum(upsert.rows for _, upsert in page.batches)
        assert page.is_last or 100 <= page.size_bytes < 400
        seen += [(spec.uid, key) for spec, upsert in page.batches for key in upsert.keys]
        cursor, pages = page.cursor, pages + 1
        if page.is_last:
            break
    uids = {row.name: row.uid for row in Namespace.objects.all()}
    inside = [key for key in KEYS if ids.slot_of(key) in HALF]
    expected = [(uids["a"], key) for key in inside] + [(uids["b"], key) for key in KEYS[:5] if key in inside]
    assert sorted(seen) == sorted(expected)
    assert pages > 3


def test_a_page_that_does_not_follow_is_refused_and_says_where_the_next_one_begins(mover, target):
    mover.step()
    cursor = target.cursor(MOVE)
    before = target.position()
    with pytest.raises(CursorMismatch) as caught:
        target.take(MOVE, before="", after="other", operations=[], namespaces={})
    assert caught.value.detail == {"cursor": cursor}
    assert (target.cursor(MOVE), target.position()) == (cursor, before)


def test_a_page_that_has_come_in_already_changes_nothing(mover, target):
    page = mover.source.rows(HALF, after="", max_bytes=10**6)
    for _ in range(2):
        position = target.take(MOVE, before="", after="x", operations=page.operations, namespaces=mover.specs())
        assert position == target.position()
    assert MoveCursor.objects.get().rows == page.rows
    assert LogEntry.objects.filter(shard__uid=TARGET, kind=Upsert.kind).count() == 1


def test_rows_do_not_come_in_where_clients_may_write(mover, target):
    page = mover.source.rows(HALF, after="", max_bytes=10**6)
    target.set_slots(2, SlotSet.of([ids.slot_of(page.batches[0][1].keys[0])]))
    with pytest.raises(SlotsOwned):
        target.take(MOVE, before="", after="x", operations=page.operations, namespaces=mover.specs())
    assert (rows_of(target), target.cursor(MOVE)) == (0, "")


def test_rows_come_in_while_clients_are_refused(shard, mover, target, target_head):
    mover.run()
    assert rows_of(target) == rows_of_slots(mover.source, HALF) > 0
    slots = SlotSet.of([ids.slot_of(ids.key_of(0))])
    target.set_slots(3, ALL_SLOTS - slots)
    with pytest.raises(SlotsClosed):
        LocalQueryProcessor(target_head.pk).upsert_many(some_batch([ids.key_of(0)], 9, 3), namespace="a")


def rows_of_slots(copy: MovingCopy, slots: SlotSet) -> int:
    return int(copy.slot_counts()[0][slots.mask].sum())


def test_rows_of_a_namespace_that_has_ended_here_are_passed_over(mover, target):
    (uid,) = mover.specs()
    target.namespace_end(uid)
    mover.run()
    assert rows_of(target) == 0
    assert Namespace.objects.get(shard__uid=TARGET).dropped_at is not None
    assert target.cursor(MOVE)


def test_rows_of_a_namespace_that_nobody_knows_are_passed_over(mover, target):
    page = mover.source.rows(HALF, after="", max_bytes=10**6)
    target.take(MOVE, before="", after="x", operations=page.operations, namespaces={})
    assert (rows_of(target), target.cursor(MOVE)) == (0, "x")


def test_rows_end_an_older_namespace_of_their_name_and_are_passed_over_for_a_newer_one(mover, target):
    """The fixture's namespaces were made by a node for itself: older than any that a registry makes."""
    page = mover.source.rows(HALF, after="", max_bytes=10**6)
    (living,) = mover.specs().values()
    newer = replace(living, uid=ordered_uid(now_ms=1))
    newest = replace(living, uid=ordered_uid(now_ms=2), dimension=5)
    renamed = [(newer.uid, operation) for _, operation in page.operations]

    target.namespace_adopt(living)
    target.take(MOVE, before="", after="x", operations=renamed, namespaces={newer.uid: newer})
    assert (rows_of(target), living_uids(target)) == (page.rows, [newer.uid])

    target.namespace_adopt(newest)
    for before, spec in (("x", newer), ("y", living)):
        operations = [(spec.uid, operation) for _, operation in page.operations]
        target.take(MOVE, before=before, after=chr(ord(before) + 1), operations=operations, namespaces=mover.specs())
    assert (rows_of(target), living_uids(target)) == (0, [newest.uid])


def test_rows_of_a_dropped_namespace_that_come_before_its_end_are_passed_over(mover, target):
    newer = NamespaceSpec(ordered_uid(now_ms=1), "a", 5, "l2", 0.9)
    target.namespace_adopt(newer)
    mover.run()
    assert (rows_of(target), living_uids(target)) == (0, [newer.uid])


def test_a_namespace_is_adopted_changed_and_ends_the_one_that_had_its_name(target, target_head):
    old = NamespaceSpec(ordered_uid(now_ms=1), "a", 5, "l2", 0.9)
    new = NamespaceSpec(ordered_uid(now_ms=2), "a", 3, "ip", 0.8)
    for spec in (old, new, replace(new, recall_target=0.7)):
        target.namespace_adopt(spec)
    target.namespace_adopt(old)
    engine = recovery.open_shard(target_head.pk).engine
    assert [(space.spec.uid, space.spec.recall_target) for space in engine.namespaces()] == [(new.uid, 0.7)]
    assert verify_shard(target_head).findings == []
    with pytest.raises(Conflict):
        target.namespace_adopt(replace(new, dimension=4))


def test_a_late_errand_of_a_dropped_namespace_ends_nothing_of_the_one_made_since(target):
    old = NamespaceSpec(ordered_uid(now_ms=1), "a", 5, "l2", 0.9)
    new = NamespaceSpec(ordered_uid(now_ms=2), "a", 3, "ip", 0.8)
    target.namespace_adopt(new)
    target.namespace_adopt(old)
    target.namespace_end(old.uid)
    assert living_uids(target) == [new.uid]


def living_uids(_target: MovingCopy) -> list[str]:
    """Return the uids of the namespaces that live in the target."""
    return list(Namespace.objects.filter(shard__uid=TARGET, dropped_at__isnull=True).values_list("uid", flat=True))


def test_values_of_another_dimension_are_refused(mover, target):
    (uid,) = mover.specs()
    upsert = Upsert([ids.key_of(1)], np.zeros((1, 7), dtype=np.float32), [b"{}"])
    with pytest.raises(DimensionMismatch):
        target.take(MOVE, before="", after="x", operations=[(uid, upsert)], namespaces=mover.specs())


@pytest.mark.parametrize("operation", [NamespaceDrop(), Delete([ids.key_of(1)], 4)])
def test_only_rows_are_taken(target, operation):
    with pytest.raises(InvalidInput):
        target.take(MOVE, before="", after="x", operations=[("0" * 32, operation)], namespaces={})


def test_cleaning_removes_the_rows_of_the_slots_and_no_others(shard, source):
    shard.queries.upsert_many(some_batch(KEYS, 1, 3), namespace="a")
    shard.checkpoint()
    shard.queries.upsert_many(some_batch(KEYS[:9], 1, 2), namespace="b")
    staying = digests(shard.head.pk, ALL_SLOTS - HALF)
    leaving = rows_of_slots(source, HALF)
    source.set_slots(2, ALL_SLOTS - HALF)
    assert source.clean(HALF) == leaving > 0
    end = source.position()
    assert source.clean(HALF) == 0
    assert source.position() == end
    assert digests(shard.head.pk, ALL_SLOTS) == staying
    shard.checkpoint()
    assert digests(shard.head.pk, ALL_SLOTS) == staying


def test_slots_that_clients_may_write_are_not_cleaned(shard, source):
    shard.queries.upsert_many(some_batch(KEYS, 1, 3), namespace="a")
    before = source.position()
    with pytest.raises(SlotsOwned):
        source.clean(HALF)
    source.set_slots(2, SlotSet.of([HALF.numbers[0]]))
    with pytest.raises(SlotsOwned):
        source.clean(HALF)
    assert rows_of(source) == len(KEYS)
    assert source.position().seq == before.seq + 1


def test_cleaning_that_comes_late_takes_nothing_away(mover, target):
    mover.step()
    rows = rows_of(target)
    with pytest.raises(CursorMismatch):
        target.clean(HALF, move=MOVE)
    target.set_slots(5, NO_SLOTS)
    with pytest.raises(StaleScope):
        target.clean(HALF, epoch=4)
    assert rows_of(target) == rows > 0
    assert target.clean(HALF, epoch=5) == rows


def test_a_move_that_is_forgotten_begins_anew(mover, target):
    mover.run()
    target.forget(MOVE)
    assert target.cursor(MOVE) == ""
    target.clean(HALF, move=MOVE)
    assert rows_of(target) == 0
    again = Mover(mover.source, target, HALF)
    again.run()
    assert rows_of(target) == rows_of_slots(mover.source, HALF)


def test_entries_that_are_pruned_are_a_gap_unless_they_are_pinned(shard, mover, source):
    start = source.position()
    source.pin(MOVE, start.seq)
    for number in range(2):
        shard.queries.upsert_many(some_batch(KEYS, number, 3), namespace="a")
        shard.checkpoint()
    assert source.entries(HALF, after=start, max_bytes=10**6).rows
    source.unpin(MOVE)
    shard.queries.upsert_many(some_batch(KEYS, 3, 3), namespace="a")
    shard.checkpoint()
    with pytest.raises(LogGap):
        source.entries(HALF, after=start, max_bytes=10**6)
    assert not Pin.objects.exists()


def test_a_position_that_the_log_does_not_have_is_a_mismatch(mover, source):
    seq = source.position().seq
    for after in (Position(2, seq), Position(1, seq + 1)):
        with pytest.raises(LogMismatch):
            source.entries(HALF, after=after, max_bytes=1)


def test_a_new_term_of_the_source_makes_the_rows_to_be_read_anew(shard, source, mover):
    start = source.position()
    terms.term_start(shard.head.pk, 2)
    with pytest.raises(LogMismatch):
        source.entries(HALF, after=start, max_bytes=10**6)


def test_rows_that_were_cleared_at_the_source_make_the_rows_to_be_read_anew(shard, source, mover):
    start = source.position()
    source.set_slots(2, ALL_SLOTS - HALF)
    source.clean(HALF)
    with pytest.raises(LogMismatch):
        source.entries(HALF, after=start, max_bytes=10**6)
    assert source.entries(ALL_SLOTS - HALF, after=start, max_bytes=10**6).operations == []


def test_a_copy_that_is_no_primary_is_no_end_of_a_move(shard, source, mover):
    terms.term_heard(shard.head.pk, 5)
    for ask in (
        source.position,
        lambda: source.rows(HALF, after="", max_bytes=1),
        lambda: source.entries(HALF, after=Position(1, 1), max_bytes=1),
        lambda: source.take(MOVE, before="", after="x", operations=[], namespaces={}),
        lambda: source.namespace_end("0" * 32),
    ):
        with pytest.raises(NotPrimary):
            ask()


def test_a_new_primary_knows_no_cursor(mover, target, target_head):
    mover.step()
    assert target.cursor(MOVE)
    terms.term_start(target_head.pk, 2)
    assert target.cursor(MOVE) == ""


def test_slots_are_opened_for_a_move_only_where_its_rows_came_in_in_this_term(mover, target, target_head):
    mover.step()
    terms.term_start(target_head.pk, 2)

    with pytest.raises(CursorMismatch):
        target.set_slots(9, HALF, cursor_of=MOVE)
    assert [change.writable for change in target.slot_changes()] == [NO_SLOTS]

    target.take(MOVE, before="", after="x", operations=[], namespaces={})
    target.set_slots(9, HALF, cursor_of=MOVE)
    assert [change.writable for change in target.slot_changes()] == [NO_SLOTS, HALF]


def test_counts_by_slot_are_those_of_living_rows(shard, source):
    shard.queries.upsert_many(some_batch(KEYS, 1, 3), namespace="a")
    shard.checkpoint()
    shard.queries.upsert_many(some_batch(KEYS[:4], 1, 2), namespace="b")
    shard.queries.delete(keys=KEYS[:2], namespace="a")
    rows, sizes = source.slot_counts()
    expected = np.bincount(ids.slots_of(KEYS[2:] + KEYS[:4]), minlength=ids.SLOT_COUNT)
    assert rows.dtype == sizes.dtype == np.int64
    assert np.array_equal(rows, expected)
    page = source.rows(ALL_SLOTS, after="", max_bytes=10**6)
    assert (rows.sum(), sizes.sum()) == (page.rows, page.size_bytes)
    assert page.size_bytes == sum(size_bytes_of(operation) for _, operation in page.operations)
    half = source.rows(HALF, after="", max_bytes=10**6)
    assert int(sizes[HALF.mask].sum()) == half.size_bytes > 0


def test_the_senders_of_the_target_are_told_of_what_came_in(shard, mover, target_head):
    told = []
    target = MovingCopy(target_head.pk, on_knock=told.append)
    ShardHead.objects.filter(pk=target_head.pk).update(knocked=False)
    mover.target = target
    mover.step()
    assert told == [TARGET]


def test_a_long_tail_asks_for_a_checkpoint(shard, mover, target_head, settings):
    settings.MLVDB_TAIL_SOFT_BYTES = 1
    asked = []
    mover.target = MovingCopy(target_head.pk, request_checkpoint=asked.append)
    mover.step()
    assert asked == [TARGET]
    mover.run()
    checkpoint_run(TARGET, owner="test")
    assert digests(target_head.pk, ALL_SLOTS) == digests(shard.head.pk, HALF)


@pytest.mark.parametrize("decode", [moving_wire.decode_rows, moving_wire.decode_entries, moving_wire.decode_take])
def test_an_altered_or_torn_page_is_refused(mover, decode):
    page = mover.source.rows(HALF, after="", max_bytes=300)
    request = moving_wire.TakeRequest(MOVE, "", "x", [("0" * 32, Patch([KEYS[0]], [b"{}"]))], mover.specs())
    data = {
        moving_wire.decode_rows: moving_wire.encode_rows(page),
        moving_wire.decode_entries: moving_wire.encode_entries(
            mover.source.entries(HALF, after=Position(1, 1), max_bytes=1)
        ),
        moving_wire.decode_take: moving_wire.encode_take(request),
    }[decode]
    decode(data)
    for at in range(0, len(data), 7):
        harmed = bytearray(data)
        harmed[at] ^= 1
        with pytest.raises(PayloadError):
            decode(bytes(harmed))
        with pytest.raises(PayloadError):
            decode(data[:at])
    others = [moving_wire.decode_rows, moving_wire.decode_entries, moving_wire.decode_take]
    for other in others:
        if other is not decode:
            with pytest.raises(PayloadError):
                other(data)
