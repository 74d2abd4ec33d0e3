"""Digests: equal for equal contents however they lie, different for anything else."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from vectors.engine import digest, ids
from vectors.engine.digest import range_digests, view_digest
from vectors.engine.operations import Delete, NamespacePut, Patch, Upsert
from vectors.engine.shard import ShardEngine

UID = "a" * 32


class Written:
    """An engine and the seq of its last entry."""

    def __init__(self) -> None:
        self.engine, self.seq = ShardEngine(), 0

    def apply(self, operation, *, uid: str = UID) -> Written:
        self.seq += 1
        self.engine.apply(seq=self.seq, term=1, namespace=uid, operation=operation)
        return self


def rows(start, count, *, dimension=4, metadata=None):
    values = np.stack(
        [np.random.default_rng(number).standard_normal(dimension) for number in range(start, start + count)]
    )
    texts = [orjson.dumps({"n": number} if metadata is None else metadata) for number in range(start, start + count)]
    keys = [ids.key_of(number) for number in range(start, start + count)]
    return Upsert(keys, values.astype(np.float32), texts)


def namespace(name="a", *, dimension=4):
    return NamespacePut(name, dimension, "cosine", 0.99)


def plain(count=300) -> Written:
    return Written().apply(namespace()).apply(rows(0, count))


def test_two_engines_that_came_to_the_same_rows_by_other_ways_have_equal_digests():
    other = Written().apply(namespace())
    for start in range(250, -50, -50):
        other.apply(rows(start, 50))
    other.apply(rows(290, 30)).apply(rows(17, 3)).apply(Delete([ids.key_of(number) for number in range(300, 320)]))
    assert range_digests(other.engine) == range_digests(plain().engine)
    assert view_digest(other.engine.view("a")) == view_digest(plain().engine.view("a"))


@pytest.mark.parametrize("ranges", [1, 7, 64, 16384])
def test_every_row_is_in_the_range_of_its_slot(ranges):
    written = plain()
    found = range_digests(written.engine, ranges)
    assert sum(count for count, _ in found) == 300
    slots = ids.slots_of([ids.key_of(number) for number in range(300)]).astype(int)
    assert [count for count, _ in found] == np.bincount(slots * ranges // ids.SLOT_COUNT, minlength=ranges).tolist()
    total = sum(int(text, 16) for _, text in found) % (1 << 128)
    assert range_digests(written.engine, 1) == [(300, f"{total:032x}")]


@pytest.mark.parametrize(
    "change",
    [
        rows(300, 1),
        Delete([ids.key_of(5)]),
        Patch([ids.key_of(5)], [b'{"x":1}']),
        Upsert([ids.key_of(5)], np.zeros((1, 4), dtype=np.float32), [b'{"n":5}']),
        Upsert([ids.key_of("5")], rows(5, 1).values, [b'{"n":5}']),
    ],
)
def test_one_row_more_less_or_changed_changes_its_range_alone(change):
    before, after = range_digests(plain().engine), range_digests(plain().apply(change).engine)
    place = ids.slot_of(change.keys[0]) * 64 // ids.SLOT_COUNT
    assert [number for number in range(64) if before[number] != after[number]] == [place]


def test_the_uid_of_the_namespace_counts_and_its_name_does_not():
    other_name = Written().apply(namespace("b")).apply(rows(0, 300))
    assert range_digests(other_name.engine) == range_digests(plain().engine)
    other_uid = Written().apply(namespace(), uid="b" * 32).apply(rows(0, 300), uid="b" * 32)
    pairs = list(zip(range_digests(other_uid.engine), range_digests(plain().engine), strict=True))
    assert all(left[0] == right[0] for left, right in pairs)
    assert all(left[1] != right[1] for left, right in pairs if left[0])
    assert view_digest(other_uid.engine.view("a")) == view_digest(plain().engine.view("a"))


def test_a_row_that_moves_to_another_namespace_changes_the_digest():
    def two(first, second):
        written = Written().apply(namespace()).apply(namespace("b"), uid="b" * 32)
        return written.apply(rows(0, 2)).apply(rows(first, 1)).apply(rows(second, 1), uid="b" * 32)

    assert range_digests(two(8, 9).engine, 1) != range_digests(two(9, 8).engine, 1)


def test_metadata_counts_by_its_contents_and_not_by_the_order_of_its_keys():
    def with_text(text):
        upsert = rows(0, 1)
        return range_digests(Written().apply(namespace()).apply(Upsert(upsert.keys, upsert.values, [text])).engine, 1)

    assert with_text(b'{"a":1,"b":{"d":2,"c":3}}') == with_text(b'{"b":{"c":3,"d":2},"a":1}')
    assert with_text(b'{"a":1}') != with_text(b'{"a":1.0}')
    assert with_text(b'{"a":[1,2]}') != with_text(b'{"a":[2,1]}')
    assert with_text(b"{}") != with_text(b'{"a":null}')


def test_chunks_of_any_size_give_the_same(monkeypatch):
    written = plain().apply(Delete([ids.key_of(number) for number in range(0, 300, 7)]))
    expected, whole = range_digests(written.engine), view_digest(written.engine.view("a"))
    for size in (1, 3, 100):
        monkeypatch.setattr(digest, "_CHUNK_ROWS", size)
        assert range_digests(written.engine) == expected
        assert view_digest(written.engine.view("a")) == whole
    monkeypatch.setattr(digest, "_CHUNK_ROWS", 8192)
    monkeypatch.setattr(digest, "_CHUNK_BYTES", 1)
    assert range_digests(written.engine) == expected


def test_an_empty_engine_has_empty_ranges():
    assert range_digests(ShardEngine(), 2) == [(0, "0" * 32)] * 2
    assert range_digests(Written().apply(namespace()).engine, 2) == [(0, "0" * 32)] * 2


def test_rows_beyond_a_power_of_two_carry_over():
    # Sums of 32-bit limbs must not wrap.
    written = Written().apply(namespace(dimension=1))
    for start in range(0, 40_000, 10_000):
        keys = [ids.key_of(number) for number in range(start, start + 10_000)]
        written.apply(Upsert(keys, np.ones((10_000, 1), dtype=np.float32), [b"{}"] * 10_000))
    ((count, text),) = range_digests(written.engine, 1)
    each = [
        digest._chunk(view, 0, view.rows, None, bytes((32,)) + UID.encode()) for view in written.engine.view("a").parts
    ]
    numbers = [int.from_bytes(row.tobytes(), "little") for chunk in each for row in chunk.limbs]
    assert (count, int(text, 16)) == (40_000, sum(numbers) % (1 << 128))
